"""The Ray engine on a cluster of this machine: dying workers and drivers, poison, requests to end, what is refused."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from PIL import Image

from fampe_fast.batch import ray_engine
from fampe_fast.batch.attempts import unfinished
from fampe_fast.batch.local import Progress, RunReport, run_local
from fampe_fast.batch.manifest import MANIFEST
from fampe_fast.batch.model_spec import ModelSpec
from fampe_fast.batch.ray_engine import run_ray
from fampe_fast.batch.reading import read_maps
from fampe_fast.batch.run_log import logged
from fampe_fast.batch.shards import finished_shards
from fampe_fast.batch.storage import Storage
from fampe_fast.cli import DONE, SOME_FAILED, UNUSABLE, main
from fampe_fast.models.embedded import load_embedded_classifier

from . import ray_makers
from .small_runs import DEADLY, a_classifier, digest_of, draw, draw_with_errors, planned

pytest.importorskip("pyarrow")

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600
"""Seconds after which a test fails, where the cluster hangs."""


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def too_late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"the cluster hangs: nothing for {PATIENCE} seconds")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start a cluster of two cores for this module, and end it."""
    if not hasattr(signal, "alarm"):
        pytest.skip("needs signal.alarm")
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'fampe_fast[ray]'")
    pytest.importorskip("ray.data")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as changed, in_time():
        changed.delenv("RAY_ADDRESS", raising=False)
        changed.setenv("RAY_USAGE_STATS_ENABLED", "0")
        changed.setenv("RAY_worker_niceness", "0")  # as that of the tests
        # The actors find the tests' modules.
        changed.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
        found = ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        signal.signal(signal.SIGTERM, before)
        yield found.address_info["gcs_address"]
        ray.shutdown()


@pytest.fixture
def on_ray(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make shards with a kind of actor; within the time."""

    def run(storage: Storage, maker: type[ray_engine.ShardMaker], **options: Any) -> RunReport:
        monkeypatch.setattr(ray_engine, "ShardMaker", maker)
        return run_ray(storage, **{"decoders": 0, **options})

    with in_time():
        yield run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_with_errors(tmp_path_factory.mktemp("ray") / "images", 22)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, images: Path) -> str:
    return local_digest(tmp_path_factory.mktemp("ray") / "local", images)


def local_digest(folder: Path, images: Path, decoders: int = 0) -> str:
    storage = planned(folder, images, a_classifier())
    run_local(storage, devices=["cpu"], workers=decoders, classifier=a_classifier())
    return digest_of(storage)


@pytest.fixture
def storage(tmp_path: Path, images: Path) -> Storage:
    return planned(tmp_path / "out", images, a_classifier())


def test_a_worker_that_dies_costs_an_attempt_and_no_byte(on_ray: Any, storage: Storage, undisturbed: str) -> None:
    seen: list[Progress] = []
    report = on_ray(storage, ray_makers.DyingMaker, on_progress=seen.append)
    assert (report.shards, report.rows, report.errors, report.missing) == (6, 22, 4, 0)
    assert (report.stopped, report.given_up) == (False, ())
    assert [(one.shards, one.total_shards) for one in seen] == [(k, 6) for k in range(1, 7)]
    assert digest_of(storage) == undisturbed
    assert {line["shard"]: line["attempt"] for line in logged(storage, "shard")} == {
        shard: 2 if shard == ray_makers.DEADLY_SHARD else 1 for shard in range(6)
    }
    assert unfinished(storage) == {}
    assert storage.exists(MANIFEST)


def test_poison_is_given_up_while_the_others_are_made(on_ray: Any, storage: Storage, undisturbed: str) -> None:
    poison = ray_makers.DEADLY_SHARD
    report = on_ray(storage, ray_makers.PoisonedMaker)
    assert report.given_up == (poison,)
    assert (report.missing, report.stopped) == (1, False)
    assert finished_shards(storage) == set(range(6)) - {poison}
    assert unfinished(storage) == {poison: ray_engine.RETRIES + 1}
    assert not storage.exists(MANIFEST)
    # Where it is cured, the next run makes it.
    report = on_ray(storage, ray_makers.SmallMaker)
    assert (report.shards, report.given_up, report.missing) == (1, (), 0)
    assert digest_of(storage) == undisturbed


def test_an_image_that_kills_the_actor_costs_its_row(on_ray: Any, tmp_path: Path) -> None:
    folder = draw(tmp_path / "images", 8)
    Image.new("RGB", DEADLY).save(folder / "006.png")
    storage = planned(tmp_path / "out", folder, a_classifier())
    report = on_ray(storage, ray_makers.SmallMaker, workers=1)
    assert (report.shards, report.errors, report.given_up) == (2, 1, ())
    errors = [error for part in read_maps(storage.address, columns=["error"]) for error in part["error"]]
    assert errors == [None] * 6 + [f"the decoder died, signal {int(signal.SIGABRT)}", None]
    assert digest_of(storage) == local_digest(tmp_path / "local", folder, decoders=1)


def test_a_driver_that_is_killed_costs_no_byte(on_ray: Any, cluster: str, storage: Storage, undisturbed: str) -> None:
    code = "from tests.batch.ray_makers import drive; drive()"
    driver = subprocess.Popen([sys.executable, "-c", code, storage.address, cluster], cwd=ROOT)
    try:
        while not finished_shards(storage):
            assert driver.poll() is None
            time.sleep(0.05)
    finally:
        driver.kill()
        driver.wait()
    assert len(finished_shards(storage)) < 6
    report = on_ray(storage, ray_makers.SmallMaker)
    assert report.missing == 0
    assert digest_of(storage) == undisturbed


def asking(number: int, times: int = 1) -> Any:
    def ask(progress: Progress) -> None:
        if progress.shards == 1:
            for _ in range(times):
                signal.raise_signal(number)

    return ask


def test_requests_to_end(on_ray: Any, storage: Storage, undisturbed: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):  # of the second one
        on_ray(storage, ray_makers.SlowMaker, workers=1, on_progress=asking(signal.SIGINT, 2))
    assert 0 < len(finished_shards(storage)) < 6
    report = on_ray(storage, ray_makers.SlowMaker, workers=1, on_progress=asking(signal.SIGTERM))
    assert report.stopped
    assert report.given_up == ()
    assert 0 < report.missing < 6
    assert report.missing == 6 - len(finished_shards(storage))
    assert signal.getsignal(signal.SIGTERM) is before
    report = on_ray(storage, ray_makers.SmallMaker)
    assert (report.missing, report.stopped) == (0, False)
    assert digest_of(storage) == undisturbed


def test_what_every_worker_fails_of_ends_the_run(on_ray: Any, storage: Storage) -> None:
    with pytest.raises(RuntimeError, match=r"^\S+: ValueError: the model is not the planned one$"):
        on_ray(storage, ray_makers.UnloadableMaker, workers=1)
    assert unfinished(storage) == {}


def test_the_command_works_on_a_cluster(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each actor loads the plan's model anew, and has processes that decode."""
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    folder = draw(tmp_path / "images", 6)
    sizes = {"model": ModelSpec(source="embedded"), "rows_per_shard": 2, "batch_size": 2, "threads": 2}
    one, two = (planned(tmp_path / name, folder, load_embedded_classifier(), **sizes) for name in ("one", "two"))
    run_local(one, devices=["cpu"], workers=0)
    with in_time():
        words = ["--engine", "ray", "--address", cluster, "--workers", "1", "--decoders", "1"]
        assert main(["batch", "--out", two.address, *words]) == DONE
    assert digest_of(one) == digest_of(two)
    found = capsys.readouterr()
    assert found.out == ""
    assert f"all 3 shards are in {two}: 6 of 6 images have a map" in found.err


def test_a_machine_must_have_room_for_a_worker(on_ray: Any, tmp_path: Path, images: Path) -> None:
    from dataclasses import replace

    from fampe_fast.batch.plan import every_row, read_back, write_plan
    from fampe_fast.batch.storage import open_storage

    made = planned(tmp_path / "cpu", images, a_classifier())
    storage = open_storage(tmp_path / "cuda")
    write_plan(storage, replace(read_back(made), device="cuda"), every_row(made, read_back(made)))
    with pytest.raises(ValueError, match=re.escape("no machine of the cluster has room for a worker (num_gpus=0.5)")):
        on_ray(storage, ray_makers.SmallMaker, gpus_per_worker=0.5)


# Without a cluster ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers must be at least 1, got 0"),
        ({"gpus_per_worker": 1.5}, r"a share in \(0, 1\], as a worker uses one GPU, got 1.5"),
        ({"gpus_per_worker": 2}, r"a share in \(0, 1\], as a worker uses one GPU, got 2"),
        ({"gpus_per_worker": 0}, r"a share in \(0, 1\], as a worker uses one GPU, got 0"),
        ({"gpus_per_worker": 0.5}, "the plan is for CPUs"),
    ],
)
def test_numbers_out_of_range_are_refused(storage: Storage, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_ray(storage, **options)


def test_a_missing_ray_is_said_before_anything_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    out = tmp_path / "out"
    assert main(["batch", str(draw(tmp_path / "images", 1)), "--out", str(out), "--engine", "ray"]) == UNUSABLE
    assert "ray[data] is needed to work on a cluster: pip install 'fampe_fast[ray]'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--engine", "ray", "--part", "0/2"], "--part: not an option of --engine ray"),
        (["--engine", "ray", "--devices", "cpu,cpu"], "--devices: not an option of --engine ray"),
        (["--workers", "2"], "--workers: not an option of --engine local"),
        (
            ["--address", "a:1", "--gpus-per-worker", "0.5"],
            "--address, --gpus-per-worker: not an option of --engine local",
        ),
    ],
)
def test_options_of_the_other_engine_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", "--out", str(tmp_path / "out"), *words]) == UNUSABLE
    assert message in capsys.readouterr().err


def test_shards_that_were_given_up_are_named(
    storage: Storage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def run(dest: Storage, **options: Any) -> RunReport:
        given.update(options)
        return RunReport(4, 14, 0, 0, 1.0, 1.0, False, 2, (3, 5))

    monkeypatch.setattr(ray_engine, "ray_module", lambda: None)
    monkeypatch.setattr(ray_engine, "run_ray", run)
    words = ["--address", "a:1", "--workers", "2", "--gpus-per-worker", "0.5", "--retry-errors"]
    assert main(["batch", "--out", storage.address, "--engine", "ray", *words]) == SOME_FAILED
    found = capsys.readouterr().err
    assert "given up, as every worker that tried them died: shards 3, 5" in found
    assert f"4 of 6 shards are finished; continue with: fampe-fast batch --out {storage} --engine ray" in found
    assert (given["address"], given["workers"], given["gpus_per_worker"]) == ("a:1", 2, 0.5)
    assert given["retry_errors"]


def test_blocks_are_small_and_not_too_many() -> None:
    cut = ray_engine._blocks
    assert cut(range(5), 2) == [[0], [1], [2], [3], [4]]
    assert cut(range(0), 2) == []
    assert [len(block) for block in cut(range(97), 3)] == [2] * 48 + [1]
    assert {len(block) for block in cut(range(80_000), 3)} == {ray_engine.TOGETHER}
    many = cut(range(2_000_000), 1000)
    assert len(many) == ray_engine.BLOCKS
    assert [shard for block in many for shard in block] == list(range(2_000_000))
