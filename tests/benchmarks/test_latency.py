"""One image's latency: percentiles, what comes first, what time has run out for, and what is told apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.common.machine import Build, Machine
from benchmarks.common.results import MEASURED, NOT_RUN, LatencyRow, percentile
from benchmarks.end_to_end import latency
from benchmarks.end_to_end.cases import ModelSpec
from benchmarks.end_to_end.latency import KINDS, LatencyPlan, markdown, measure_latencies

BUILD = Build("a processor", "2.0", "none", "abc", "2026-01-01", "0.9")
PLAN = LatencyPlan(ModelSpec("embedded"), torch.device("cpu"), BUILD, ("bf16", "auto"), ("off", "on", "graphs"))


def test_percentiles_are_values_that_were_measured() -> None:
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0.0, 0.5, 0.99)] == [1, 2, 3]
    values = [float(k) for k in range(1, 201)]
    assert (percentile(values, 0.5), percentile(values, 0.99)) == (100, 198)


def test_a_hundredth_needs_a_hundred_calls() -> None:
    row = LatencyRow("net", "bare pass", "auto", "off", BUILD, NOT_RUN)
    assert row.of([1.0] * 98 + [5.0]) == replace(row, status=MEASURED, p50_ms=1.0, p99_ms=None, repetitions=99)
    assert row.of([1.0] * 98 + [5.0] * 2) == replace(row, status=MEASURED, p50_ms=1.0, p99_ms=5.0, repetitions=100)


def test_what_compiles_comes_last() -> None:
    ways = list(dict.fromkeys((row.precision, row.compile) for row in PLAN.rows()))
    assert ways == [
        ("bf16", "off"), ("auto", "off"), ("bf16", "on"), ("bf16", "graphs"), ("auto", "on"), ("auto", "graphs"),
    ]  # fmt: skip
    assert [row.kind for row in PLAN.rows()] == [*KINDS] * 6


def test_nothing_is_begun_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_call", lambda *args: pytest.fail("begun"))
    assert list(measure_latencies(PLAN, 0.0, print)) == PLAN.rows()


def test_every_way_is_walked_and_what_fails_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, whose compiler traces alone: CUDA graphs are refused, and the bare passes run without."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    plan = replace(PLAN, precisions=("auto",), repetitions=2)
    rows = {(row.kind, row.compile): row for row in measure_latencies(plan, float("inf"), lambda text: None)}
    refused = "failed: ValueError: compile='graphs' needs a CUDA GPU, and the images are on cpu; use 'on' or 'off'"
    for (kind, compiled), row in rows.items():
        assert row.status == (refused if compiled == "graphs" and kind != "bare pass" else MEASURED), (kind, compiled)
    assert all(row.p50_ms > 0 and row.repetitions == 2 for row in rows.values() if row.measured)
    said = markdown(list(rows.values()), Machine(BUILD))
    assert "| FAMPE, 1 pass | auto | on | " in said
    assert f"| FAMPE, 10 passes | auto | graphs | {refused} |" in said


def test_a_graph_that_is_missing_is_named() -> None:
    row = LatencyRow("net", "FAMPE, 1 pass", "bf16", "graphs", BUILD).of([2.0])
    said = markdown([replace(row, graph_launches=0), replace(row, graph_launches=2, verified=False)], Machine(BUILD))
    assert "| FAMPE, 1 pass | bf16 | graphs, NO GRAPH ACTIVE | 2 |  | 1 |" in said
    assert "| FAMPE, 1 pass, UNVERIFIED | bf16 | graphs (2 a call) | 2 |  | 1 |" in said
