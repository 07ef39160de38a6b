"""Measure how long one image waits for its map: the median and the slowest hundredth of many calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fampe_fast import FAMPE, warmup

from ..common.command import Say
from ..common.machine import Build, Machine
from ..common.results import ENOUGH, NOT_RUN, LatencyRow, status_of, table
from ..common.timing import Call, seconds_of
from .cases import BARE, Case, ModelSpec, Way
from .contestants import Models, build, failing_uncompiled, in_precision
from .profiling import graph_launches
from .report import graphs_of

BARE_PASS = "bare pass"
_FAMPE = {"FAMPE, 1 pass": 1, "FAMPE, 10 passes": 10}
KINDS = (BARE_PASS, *_FAMPE)


@dataclass(frozen=True)
class LatencyPlan:
    """What is measured, and how.

    Attributes:
        model: which classifier.
        device: where.
        build: the machine and versions that the rows belong to.
        precisions: of the model.
        compile: off, on and graphs, or some of them; what is compiled comes last.
        repetitions: of every call, as far as the time allows.
    """

    model: ModelSpec
    device: torch.device
    build: Build
    precisions: tuple[str, ...]
    compile: tuple[str, ...]
    repetitions: int = ENOUGH

    def rows(self) -> list[LatencyRow]:
        """List what is to be measured, in its order."""
        name = self.model.name
        ways = [(precision, compiled) for precision in self.precisions for compiled in self.compile]
        return [
            LatencyRow(name, kind, precision, compiled, self.build, NOT_RUN)
            for precision, compiled in sorted(ways, key=lambda way: way[1] != "off")
            for kind in KINDS
        ]


def measure_latencies(plan: LatencyPlan, deadline: float, say: Say) -> Iterator[LatencyRow]:
    """Measure row by row; after the deadline (``time.monotonic``) yield rows that say so."""
    published = plan.model.load(plan.device)
    side = published.input_size[0]
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(plan.device)
    models = Models.of(published, image, plain=False)
    target = torch.zeros(1, dtype=torch.long, device=plan.device)
    for row in plan.rows():
        if time.monotonic() > deadline:
            yield row
            continue
        try:
            with failing_uncompiled():
                call = in_precision(_call(row, models, image, target), row.precision, plan.device)
                for _ in range(3):  # what compiles, captures or allocates does so here
                    call()
            launches = graph_launches(call, plan.device)
            seconds = _repeated(call, plan, deadline)
        except Exception as error:
            yield replace(row, status=status_of(error))
            continue
        found = replace(row.of([1e3 * each for each in seconds]), graph_launches=launches)
        say(f"{found.kind}, {found.precision}, {found.compile}: {found.p50_ms:.3g} ms")
        yield found


def _call(row: LatencyRow, models: Models, image: Tensor, target: Tensor) -> Call:
    side = image.shape[-1]
    if row.kind == BARE_PASS:
        way = Way(BARE, row.precision, row.compile, prepared=True)
        return build(way, Case(1, side, 1, 1), models, 1, image, target)
    method = FAMPE(models.ours, passes=_FAMPE[row.kind], precision=row.precision, compile=row.compile)
    warmup(method, side, device=image.device)
    attribute: Callable[..., Tensor] = method.attribute
    return lambda: attribute(image, target)


def _repeated(call: Call, plan: LatencyPlan, deadline: float) -> list[float]:
    """Time the call at least once, each time until the device has done its work."""
    found = [seconds_of(call, plan.device)]
    while len(found) < plan.repetitions and time.monotonic() < deadline:
        found.append(seconds_of(call, plan.device))
    return found


def markdown(rows: Sequence[LatencyRow], of: Machine) -> str:
    """Write a table of one image's latencies."""
    lines = [
        f"One image, {', '.join(dict.fromkeys(row.model for row in rows))} on {of}.",
        "",
        f"p50 and p99 of calls that wait for the device; p99 of {ENOUGH} calls at least.",
        *(["", f"**{of.warning}**"] if of.warning else []),
        "",
        *table(("", "precision", "compilation", "p50 ms", "p99 ms", "calls"), map(_cells, rows), left=3),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: LatencyRow) -> list[str]:
    if not row.measured:
        return [row.kind, row.precision, row.compile, row.status, "", ""]
    return [
        f"{row.kind}{'' if row.verified else ', UNVERIFIED'}",
        row.precision,
        f"{row.compile}{graphs_of(row.compile, row.graph_launches)}",
        f"{row.p50_ms:.3g}",
        "" if row.p99_ms is None else f"{row.p99_ms:.3g}",
        str(row.repetitions),
    ]
