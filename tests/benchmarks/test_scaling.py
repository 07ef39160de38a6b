"""The scaling model: known answers, formulas against simulation, both against a run's own log, and the document."""

from __future__ import annotations

import math
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling
from benchmarks.scaling import (
    CASES,
    GPU,
    MAP_BYTES,
    PARQUET,
    PHONE,
    SMALL,
    Photographs,
    ShardTimes,
    Store,
    Worker,
    estimate,
    limits,
    replay,
    simulate,
    tables,
)

ANY = Store("any", 1, math.inf, math.inf)
DOCUMENT = Path(__file__).parents[2] / "docs" / "results" / "scaling.md"


# Known answers --------------------------------------------------------------------------------------------------------


def test_the_device_alone() -> None:
    """A pass of 10 ms, ten of them an image: 1,024 images in 102.4 s, after the first group is decoded."""
    worker = Worker("", 0.01, decoders=1, store_seconds=0.001, start_seconds=5)
    images = Photographs("", 0.02, 0)
    found = simulate(worker, images, ANY, images=1024, devices=1, passes=10)
    assert found.seconds == pytest.approx(5 + 8 * 0.02 + 102.4 + 512 * 0.001)
    assert found.busy == pytest.approx(102.4 / found.seconds)
    paper = estimate(worker, images, ANY, images=1024, devices=1, passes=10)
    assert paper.bottleneck == "device"
    assert paper.seconds == pytest.approx(5 + 102.4)
    assert paper.device_hours == pytest.approx((5 + 102.4) / 3600)


def test_decoding_alone() -> None:
    """Four cores at 0.4 s an image: ten images a second, and the last four groups are there at the same moment."""
    worker = Worker("", 0.001, decoders=4, store_seconds=0.001, start_seconds=0)
    images = Photographs("", 0.4, 0)
    found = simulate(worker, images, ANY, images=1024, devices=1, passes=1)
    assert found.seconds == pytest.approx(1024 * 0.4 / 4 + 4 * 8 * 0.001 + 512 * 0.001)
    paper = estimate(worker, images, ANY, images=1024, devices=1, passes=1)
    assert (paper.bottleneck, paper.seconds) == ("decoding", pytest.approx(102.4))


def test_a_slow_writer_holds_the_device_back() -> None:
    worker = Worker("", 0.001, decoders=4, store_seconds=0.1, start_seconds=0)
    found = simulate(worker, Photographs("", 0.0, 0), ANY, images=4 * 512, devices=1, passes=1)
    assert found.seconds == pytest.approx(
        0.512 + 4 * 51.2
    )  # the first shard is explained, then one store after another


def test_what_all_share_does_not_grow_with_the_devices() -> None:
    slow = Store("", 1, 100, math.inf)
    one, many = (simulate(GPU, SMALL, slow, images=8192, devices=n, passes=1).seconds for n in (1, 8))
    assert one == pytest.approx(many, rel=0.05)
    assert many == pytest.approx(GPU.start_seconds + 81.92, rel=0.02)
    narrow = Store("", 0, math.inf, 1e6)
    found = simulate(GPU, SMALL, narrow, images=8192, devices=8, passes=1).seconds
    assert found == pytest.approx(GPU.start_seconds + 8192 * (SMALL.bytes + MAP_BYTES) / 1e6, rel=0.02)


def test_a_device_that_has_one_shard_more_ends_last() -> None:
    paper = estimate(GPU, SMALL, ANY, images=512 * 5, devices=4, passes=200)
    found = simulate(GPU, SMALL, ANY, images=512 * 5, devices=4, passes=200)
    expected = 2 * 512 * 200 * GPU.pass_seconds
    assert paper.seconds == pytest.approx(GPU.start_seconds + expected)
    assert found.seconds == pytest.approx(paper.seconds, rel=0.03)
    few = estimate(GPU, SMALL, ANY, images=100, devices=4, passes=200)  # less than a shard
    assert few.seconds == pytest.approx(GPU.start_seconds + 100 * 200 * GPU.pass_seconds)


def test_failures_cost_what_they_cost() -> None:
    case: dict[str, Any] = {"images": 512 * 64, "devices": 4, "passes": 200}
    plain = simulate(GPU, SMALL, ANY, **case)
    runs = [simulate(GPU, SMALL, ANY, **case, failures=60.0, seed=seed) for seed in range(20)]
    assert plain.lost == 0
    assert all(found.lost > 0 and found.seconds > plain.seconds for found in runs)
    assert runs[0] == simulate(GPU, SMALL, ANY, **case, failures=60.0, seed=0) != runs[1]
    # One a minute and device, for as long as the devices work; a lost one's start is another half minute.
    hours = 512 * 64 * 200 * GPU.pass_seconds / 3600
    lost = sum(found.lost for found in runs) / len(runs)
    assert lost == pytest.approx(60 * hours, rel=0.3)


def test_odd_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 8, got 100"):
        simulate(GPU, SMALL, ANY, images=1000, devices=1, passes=1, rows=100)


# Formulas and simulation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].name}-{case[3]}-{case[4]}-{case[5]}-{case[6]}")
def test_the_simulation_says_what_the_formulas_say(case: tuple[Any, ...]) -> None:
    worker, photographs, store, images, devices, passes, failures = case
    run = {"images": images, "devices": devices, "passes": passes, "failures": failures}
    paper, found = estimate(worker, photographs, store, **run), simulate(worker, photographs, store, **run)
    assert found.seconds == pytest.approx(paper.seconds, rel=0.05 if failures else 0.02)
    assert found.busy == pytest.approx(paper.busy, rel=0.05 if failures else 0.02)


def test_the_cases_have_every_bottleneck() -> None:
    found = {estimate(*case[:3], images=case[3], devices=case[4], passes=case[5]).bottleneck for case in CASES}
    assert found == set(limits(GPU, SMALL, PARQUET, 1, 1))


def test_a_wrong_formula_would_be_seen() -> None:
    """Were decoding not ahead of the device, or one part a tenth slower, the comparison above would fail."""
    run: dict[str, Any] = {"images": 20_480, "devices": 2, "passes": 200}
    paper = estimate(GPU, PHONE, PARQUET, **run)
    slower = replace(GPU, pass_seconds=1.1 * GPU.pass_seconds)
    assert simulate(slower, PHONE, PARQUET, **run).seconds > 1.05 * paper.seconds
    behind = replace(GPU, decoders=1)
    assert simulate(behind, PHONE, PARQUET, **run).seconds > 2 * paper.seconds


# A run's own log ------------------------------------------------------------------------------------------------------


def logged_run(root: Path, monkeypatch: pytest.MonkeyPatch, writing: float) -> list[dict[str, Any]]:
    """Run four shards with a model and a store that take their time, and read what the run has logged of them."""
    pytest.importorskip("pyarrow")
    from fampe_fast.batch.local import run_local
    from fampe_fast.batch.run_log import logged
    from fampe_fast.batch.storage import Storage

    from ..batch import small_runs

    write, forward = Storage.write, small_runs.Fragile.forward

    def slow_write(self: Storage, name: str, content: bytes) -> None:
        time.sleep(writing if name.startswith("maps/") else 0)
        write(self, name, content)

    def slow_forward(self: small_runs.Fragile, pixels: Any) -> Any:
        time.sleep(0.3)
        return forward(self, pixels)

    monkeypatch.setattr(Storage, "write", slow_write)
    monkeypatch.setattr(small_runs.Fragile, "forward", slow_forward)
    storage = small_runs.planned(
        root / "out", small_runs.draw(root / "images", 16), small_runs.a_classifier(), options={"passes": 1}
    )
    run_local(storage, devices=["cpu"], workers=0, classifier=small_runs.a_classifier())
    return sorted(logged(storage, "shard"), key=lambda line: float(line["time"]))


@pytest.mark.slow
@pytest.mark.parametrize("writing", [0.5, 1.0], ids=["device", "storing"])
def test_the_model_of_a_worker_reproduces_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writing: float
) -> None:
    lines = logged_run(tmp_path, monkeypatch, writing)
    assert len(lines) == 4
    parts = [ShardTimes(line["explaining"], line["waiting"], line["storing"]) for line in lines]
    # A shard's seconds run from when the last one was through: what was waited for the writer is in them alone.
    seconds = sum(line["seconds"] for line in lines) + lines[-1]["storing"]
    busy = sum(part.explaining for part in parts) / seconds
    found = replay(parts)
    assert found.seconds == pytest.approx(seconds, rel=0.15)
    assert found.busy == pytest.approx(busy, rel=0.15)
    # Another model of a worker, which stores while the device waits, is not what was measured.
    behind = sum(sum(part) for part in parts)
    assert behind > 1.25 * seconds
    # Nor is one whose writer never holds the device back, where it does.
    if writing > 0.5:
        assert sum(part.explaining + part.waiting for part in parts) < 0.75 * seconds


# The document ---------------------------------------------------------------------------------------------------------


def test_the_documents_tables_are_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    shown = dict(re.findall(r"<!-- (.*?) -->\n(.*?)\n<!-- end -->", DOCUMENT.read_text(), re.DOTALL))
    assert shown == tables()
    scaling.main()
    printed = capsys.readouterr().out
    assert all(f"<!-- {name} -->\n{table}\n<!-- end -->" in printed for name, table in shown.items())


def test_what_is_stored_is_as_large_as_the_tables_say() -> None:
    """Encode a shard's maps of noise as a run does, and rows of a plan."""
    pytest.importorskip("pyarrow")
    import numpy as np

    from fampe_fast.batch.plan import Row, _encoded

    rows = [
        Row(k, k, f"/data/train/n{k // 1300:08d}/n{k // 1300:08d}_{k * 7919 % 100000}.JPEG") for k in range(100_000)
    ]
    assert len(_encoded(rows)) / len(rows) == pytest.approx(scaling.PLAN_BYTES["image files"], rel=0.2)
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    maps = np.random.default_rng(0).standard_normal((32, 224 * 224)) / 8
    column = pa.array(list(maps.astype(np.float16)), pa.list_(pa.float16()))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"map": column}), buffer, compression="zstd", compression_level=1, use_dictionary=False)
    assert len(buffer.getvalue()) / 32 == pytest.approx(MAP_BYTES, rel=0.05)
