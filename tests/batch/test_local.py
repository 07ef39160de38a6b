"""The local engine: parts, devices, signals, full disks, and runs that are killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from fampe_fast.batch import image_bytes, local
from fampe_fast.batch.attempts import unfinished
from fampe_fast.batch.local import Progress, RunReport, run_local, shards_to_do
from fampe_fast.batch.manifest import MANIFEST, read_manifest
from fampe_fast.batch.model_spec import ModelSpec
from fampe_fast.batch.plan import read_back
from fampe_fast.batch.reading import read_maps
from fampe_fast.batch.retry import Retry
from fampe_fast.batch.run_log import logged
from fampe_fast.batch.shards import finished_shards, shard_name
from fampe_fast.batch.storage import Storage, open_storage

from .interrupted import KILLS
from .small_runs import a_classifier, digest_of, draw, draw_with_errors, planned
from .test_worker import failing

pytest.importorskip("pyarrow")

ROOT = Path(__file__).resolve().parents[2]


def run(storage: Storage, **options: Any) -> RunReport:
    return run_local(storage, **{"devices": ["cpu"], "workers": 0, "classifier": a_classifier(), **options})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return draw_with_errors(tmp_path / "images", 22)


@pytest.fixture
def undisturbed(tmp_path: Path, images: Path) -> str:
    storage = planned(tmp_path / "undisturbed", images, a_classifier())
    run(storage)
    return digest_of(storage)


@pytest.fixture
def storage(tmp_path: Path, images: Path) -> Storage:
    return planned(tmp_path / "out", images, a_classifier())


def test_a_run_reports_what_it_does_and_ends_with_a_manifest(storage: Storage) -> None:
    seen: list[Progress] = []
    report = run(storage, on_progress=seen.append)
    assert (report.shards, report.rows, report.errors, report.transient) == (6, 22, 4, 0)
    assert (report.images, report.stopped, report.missing) == (18, False, 0)
    assert 0 < report.busy <= 1
    assert [(one.shards, one.images, one.total_shards, one.total_images) for one in seen] == [
        (k, min(4 * k, 22), 6, 22) for k in range(1, 7)
    ]
    assert seen[-1].seconds_left == 0
    assert seen[0].seconds_left > 0
    entries = read_manifest(storage)
    assert [(entry.shard, entry.rows) for entry in entries] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4), (5, 2)]
    lines = {line["shard"]: line for line in logged(storage, "shard")}
    for entry in entries:
        assert entry.bytes == storage.size(shard_name(entry.shard))
        assert lines[entry.shard]["sha256"] == entry.sha256
    assert unfinished(storage) == {}


def test_the_manifest_can_be_made_from_the_shards_alone(storage: Storage) -> None:
    run(storage)
    before = read_manifest(storage)
    for name in [*storage.names("log"), MANIFEST]:
        storage.remove(name)
    report = run(storage)
    assert (report.shards, report.missing) == (0, 0)
    assert read_manifest(storage) == before


def test_parts_one_after_the_other_and_any_order_give_the_bytes_of_one_run(storage: Storage, undisturbed: str) -> None:
    assert run(storage, part=(2, 3)).missing == 4
    assert finished_shards(storage) == {2, 5}
    assert not storage.exists(MANIFEST)
    run(storage, shards=[4, 0])
    assert run(storage, shards=[3, 0, 1]).shards == 2
    assert digest_of(storage) == undisturbed
    assert storage.exists(MANIFEST)


def test_a_part_or_a_shard_that_there_is_none_of_is_refused(storage: Storage) -> None:
    with pytest.raises(ValueError, match="the part must be I of N with I from 0 to N - 1, got 3 of 3"):
        run(storage, part=(3, 3))
    with pytest.raises(IndexError, match="there is no shard 6"):
        run(storage, shards=[6])
    with pytest.raises(ValueError, match="there are no devices"):
        run(storage, devices=[])


def test_shards_that_often_ended_a_process_come_last(storage: Storage) -> None:
    storage.write("attempts/000001-4", b"")
    storage.write("attempts/000002-3", b"")
    assert shards_to_do(storage, read_back(storage), range(6)) == [0, 2, 3, 4, 5, 1]


def test_marks_of_processes_that_died_after_they_stored_a_shard_are_removed_at_the_end(storage: Storage) -> None:
    run(storage, shards=[0, 1])
    storage.write("attempts/000000-1", b"")
    storage.write("attempts/000000-2", b"")
    run(storage, shards=[2])
    assert unfinished(storage) == {0: 2}
    run(storage)
    assert unfinished(storage) == {}


def test_errors_that_have_passed_are_healed_to_the_bytes_of_an_undisturbed_run(
    storage: Storage, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_bytes, "Retry", lambda: Retry(1))
    failing(monkeypatch, "010.png", 1)
    assert run(storage).transient == 1
    assert digest_of(storage) != undisturbed
    assert run(storage).shards == 0
    report = run(storage, retry_errors=True)
    assert (report.shards, report.transient) == (1, 0)
    assert digest_of(storage) == undisturbed
    assert sum(entry.transient for entry in read_manifest(storage)) == 0


def test_repaired_files_get_their_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = draw(tmp_path / "images", 6)
    whole = (folder / "004.png").read_bytes()
    (folder / "004.png").write_bytes(whole[:100])
    storage = planned(tmp_path / "out", folder, a_classifier(), rows_per_shard=2)
    report = run(storage)
    assert (report.errors, report.transient) == (1, 0)
    (folder / "004.png").write_bytes(whole)
    assert run(storage, retry_errors=True).shards == 0
    report = run(storage, retry_errors="all")
    assert (report.shards, report.rows, report.errors) == (1, 2, 0)
    assert run(storage, retry_errors="all").shards == 0
    other = planned(tmp_path / "other", folder, a_classifier(), rows_per_shard=2)
    run(other)
    assert digest_of(storage) == digest_of(other)
    assert sum(entry.errors for entry in read_manifest(storage)) == 0


def test_a_full_disk_stops_with_whole_shards_and_the_next_run_goes_on(
    storage: Storage, undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Storage.write

    def full(self: Storage, name: str, content: bytes) -> None:
        if name == shard_name(2):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        write(self, name, content)

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(OSError, match="No space left"):
        run(storage)
    assert finished_shards(storage) == {0, 1}
    assert unfinished(storage) == {}  # the shard is not to blame
    monkeypatch.setattr(Storage, "write", write)
    run(storage)
    assert digest_of(storage) == undisturbed


# Signals --------------------------------------------------------------------------------------------------------------


def asking(number: int, times: int = 1) -> Callable[[Progress], None]:
    def ask(progress: Progress) -> None:
        if progress.shards == 1:
            for _ in range(times):
                signal.raise_signal(number)

    return ask


@pytest.fixture
def heeded() -> Iterator[None]:
    """Heed Ctrl-C, which a job in a shell's background is started without."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_request_to_end_lets_the_shards_at_work_be_finished(storage: Storage, undisturbed: str, name: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    told: list[bool] = []
    report = run(storage, on_progress=asking(getattr(signal, name)), on_stop=lambda: told.append(True))
    assert report.stopped
    assert told == [True]
    assert 0 < report.shards < 6
    assert report.missing == 6 - report.shards
    assert len(finished_shards(storage)) == report.shards
    assert unfinished(storage) == {}
    assert signal.getsignal(signal.SIGTERM) is before
    run(storage)
    assert digest_of(storage) == undisturbed


@pytest.mark.usefixtures("heeded")
def test_the_second_request_ends_at_once(storage: Storage, undisturbed: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(storage, on_progress=asking(signal.SIGINT, 2))
    assert 0 < len(finished_shards(storage)) < 6
    assert unfinished(storage) == {}
    run(storage)
    assert digest_of(storage) == undisturbed


# Processes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_devices_share_the_shards(tmp_path: Path) -> None:
    """Each has a process of its own, which loads the plan's model anew."""
    from fampe_fast.models.embedded import load_embedded_classifier

    folder = draw(tmp_path / "few", 6)
    sizes = {"model": ModelSpec(source="embedded"), "rows_per_shard": 2, "batch_size": 2}
    one, two = (planned(tmp_path / name, folder, load_embedded_classifier(), **sizes) for name in ("one", "two"))
    run(one, classifier=load_embedded_classifier())
    report = run(two, devices=["cpu", "cpu"], classifier=None)
    assert (report.shards, report.missing, report.stopped) == (3, 0, False)
    assert digest_of(one) == digest_of(two)
    assert len(list(two.names("log"))) == 2


@pytest.mark.slow
def test_what_a_devices_process_fails_of_is_said(tmp_path: Path) -> None:
    storage = planned(tmp_path / "out", draw(tmp_path / "few", 1), a_classifier())
    with pytest.raises(RuntimeError, match=r"cpu: .*fragile"):  # no name that a process could load
        run(storage, devices=["cpu", "cpu"], classifier=None)


@pytest.mark.parametrize(
    ("message", "sent"),
    [("CUDA error: an illegal memory access was encountered", None), ("disk full", "RuntimeError: disk full")],
)
def test_a_process_that_loses_its_device_dies_and_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, sent: str | None
) -> None:
    """What it would say ends the whole run; its death is counted, and others go on."""

    def fails(*arguments: object, **options: object) -> None:
        raise RuntimeError(message)

    def ends(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(local, "Worker", fails)
    monkeypatch.setattr(local, "obey_parent_alone", lambda: None)
    monkeypatch.setattr(local.os, "_exit", ends)
    ours, theirs = Pipe(duplex=False)
    arguments = open_storage(tmp_path), 2, 0, False, threading.Event(), "cpu", [0], theirs
    if sent is None:
        with pytest.raises(SystemExit) as ended:
            local._serve_device(*arguments)
        assert ended.value.code == 1
        assert not ours.poll()
    else:
        local._serve_device(*arguments)
        assert ours.recv() == sent


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The runs of ``interrupted.py``, in a process that can be forked."""
    if not hasattr(os, "fork") or not Path("/proc/self/task").exists():
        pytest.skip("needs fork and /proc")
    done = subprocess.run(
        [sys.executable, "-m", "tests.batch.interrupted", str(tmp_path_factory.mktemp("interrupted"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_runs_that_are_killed_at_random_moments_give_the_bytes_of_one_run(interrupted: dict[str, Any]) -> None:
    found = interrupted["killed"]
    assert found["kills"] == KILLS
    assert set(found["digests"]) == {found["whole"]}
    assert found["left"] == []
    assert found["rows"] == interrupted["images"]


@pytest.mark.slow
def test_three_workers_beside_each_other_give_the_bytes_of_one(interrupted: dict[str, Any]) -> None:
    found = interrupted["parts"]
    assert found["codes"] == [0, 0, 0]
    assert found["digest"] == interrupted["killed"]["whole"]
    assert found["manifest"]
    assert found["logs"] == 3


@pytest.mark.slow
def test_an_image_that_kills_its_decoder_costs_its_row(interrupted: dict[str, Any]) -> None:
    here, beside = interrupted["deadly"]["here"], interrupted["deadly"]["beside"]
    # Where the run itself decodes, it dies twice; where other processes do, it lives.
    assert here["codes"] == [-signal.SIGABRT, -signal.SIGABRT, 0]
    assert beside["codes"] == [0]
    for found in (here, beside):
        assert found["errors"] == [None] * 7 + [f"the decoder died, signal {int(signal.SIGABRT)}"]
        assert found["left"] == {}
    assert here["digest"] == beside["digest"]


@pytest.mark.slow
def test_decoders_end_when_the_run_is_killed(interrupted: dict[str, Any]) -> None:
    assert interrupted["orphans"]["children"] >= 1
    assert interrupted["orphans"]["left"] == 0


def test_nothing_but_the_maps_is_needed_to_read_them(storage: Storage) -> None:
    run(storage)
    for name in [*storage.names("plan"), "plan.json", *storage.names("log"), MANIFEST]:
        storage.remove(name)
    assert sum(len(part["map"]) for part in read_maps(storage.address)) == 22
