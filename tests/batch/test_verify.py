"""Verifying a run: what is damaged, missing, exchanged or changed is found, and what is right passes."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fampe_fast.answers.comparison import compare
from fampe_fast.answers.result import Result, RowError, RowResult
from fampe_fast.answers.summaries import summarise
from fampe_fast.batch import recompute, verify
from fampe_fast.batch.manifest import MANIFEST, read_manifest, write_manifest
from fampe_fast.batch.plan import plan_of, position_of, read_back, read_rows, write_plan
from fampe_fast.batch.recompute import Recomputer, stored_result
from fampe_fast.batch.shards import decode_shard, encode_shard, shard_name
from fampe_fast.batch.sources import list_rows
from fampe_fast.batch.storage import Storage, open_storage
from fampe_fast.batch.verify import Checked, check_files, check_sample, spans
from fampe_fast.batch.worker import Worker
from fampe_fast.cli import DONE, SOME_FAILED, UNUSABLE, main

from .small_runs import a_classifier, draw, draw_with_errors, planned

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run of eleven images, four of which fail, in three shards."""
    root = tmp_path_factory.mktemp("run")
    storage = planned(root / "out", draw_with_errors(root / "images", 11), a_classifier(), overlay=True)
    worker = Worker(storage, classifier=a_classifier(), processes=0)
    for _ in worker.work(range(3)):
        pass
    worker.close()
    write_manifest(storage, worker.plan)
    return root / "out"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Storage:
    """Copy the run, to be damaged."""
    shutil.copytree(finished, tmp_path / "out")
    return open_storage(tmp_path / "out")


def faults(storage: Storage) -> list[tuple[int | None, str]]:
    return [tuple(fault) for fault in check_files(storage, plan_of(storage)).faults]


def recomputer(storage: Storage) -> Recomputer:
    return Recomputer(storage, plan_of(storage), classifier=a_classifier(), processes=0)


def sampled(storage: Storage, sample: int = 99, seed: int = 0) -> tuple[Checked, dict[int, recompute.Comparison]]:
    plan = plan_of(storage)
    checked, again = check_files(storage, plan), recomputer(storage)
    rows = check_sample(storage, plan, checked, again, sample=sample, seed=seed)
    again.close()
    return checked, {row.image_id: row.comparison for row in rows}


def changed(storage: Storage, shard: int, change: Callable[[list[Result]], None], *, honest: bool = False) -> None:
    """Write a shard anew with other results, and where it is not honest with a manifest and log that agree."""
    plan = read_back(storage)
    content = storage.read(shard_name(shard))
    table = decode_shard(content)
    results = [stored_result(table, k) for k in range(table.num_rows)]
    change(results)
    names = ("chunk", "passes", "versions", "processor")
    metadata = {name: json.loads(table.schema.metadata[name.encode()]) for name in names}
    storage.write(shard_name(shard), encode_shard(plan, shard, read_rows(storage, plan, shard), results, metadata))
    if not honest:
        for name in storage.names("log/"):
            storage.remove(name)
        write_manifest(storage, plan)


# All right ------------------------------------------------------------------------------------------------------------


def test_a_run_that_is_right_is_right_to_the_bit(run: Storage) -> None:
    before = {name: run.read(name) for name in run.names()}
    checked, rows = sampled(run)
    assert (checked.faults, checked.notes) == ([], [])
    assert [(entry.shard, entry.rows, entry.errors) for entry in checked.entries] == [(0, 4, 1), (1, 4, 2), (2, 3, 1)]
    assert sorted(rows) == list(range(11))
    assert {found.outcome for found in rows.values()} == {"same"}
    assert rows[0].correlation == 1.0
    assert rows[0].largest == 0.0
    assert rows[2].correlation is None  # an error that is the same again
    assert {name: run.read(name) for name in run.names()} == before  # nothing is written, no log either


def test_what_is_stored_reads_back_to_the_same_bytes(run: Storage) -> None:
    """The tampering below is by ``changed``, which changes nothing by itself."""
    before = run.read(shard_name(1))
    changed(run, 1, lambda results: None)
    assert run.read(shard_name(1)) == before


def test_a_sample_is_drawn_by_its_seed(run: Storage) -> None:
    drawn = [sorted(sampled(run, 4, seed)[1]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == len(drawn[2]) == 4


def test_a_manifest_that_is_missing_is_made_from_the_files(run: Storage) -> None:
    listed = read_manifest(run)
    for log in (True, False):
        run.remove(MANIFEST)
        if not log:
            for name in run.names("log/"):
                run.remove(name)
        checked = check_files(run, plan_of(run))
        assert checked.faults == []
        assert checked.notes == [f"{MANIFEST} was missing or old, and is made anew"]
        assert read_manifest(run) == listed


def test_a_shard_that_was_made_again_since_is_no_fault(run: Storage) -> None:
    """The manifest of a run that was interrupted while it tried again is older than a shard, which the log knows."""
    listed = read_manifest(run)
    changed(run, 0, lambda results: results.__setitem__(0, RowError("the store was away", "transient")), honest=True)
    assert [shard for shard, _ in faults(run)] == [0]
    worker = Worker(run, classifier=a_classifier(), processes=0)
    worker(0)
    worker.close()
    write_manifest(run, read_back(run))
    assert read_manifest(run) == listed
    # Now the manifest of the transient error, and the shard that was made again.
    changed(run, 0, lambda results: results.__setitem__(0, RowError("the store was away", "transient")))
    worker = Worker(run, classifier=a_classifier(), processes=0)
    worker(0)
    worker.close()
    checked = check_files(run, plan_of(run))
    assert checked.faults == []
    assert read_manifest(run) == listed


# What is wrong --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [10, 0.3, 0.6, 0.9, -1])
def test_a_flipped_byte_is_found(run: Storage, place: float) -> None:
    path = Path(run.address) / shard_name(1)
    content = bytearray(path.read_bytes())
    content[int(place * len(content)) if isinstance(place, float) else place] ^= 1
    path.write_bytes(content)
    found = faults(run)
    assert {shard for shard, _ in found} == {1}
    assert re.match(r"its SHA-256 is \w{16}\.\.\., and \w{16}\.\.\. in manifest", found[0][1])


def test_a_flipped_byte_is_found_without_a_manifest(run: Storage) -> None:
    path = Path(run.address) / shard_name(1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    run.remove(MANIFEST)
    found = faults(run)
    assert found[0][0] == 1
    assert found[0][1].endswith("in the log")
    assert not run.exists(MANIFEST)  # none is made of what is wrong


def test_a_shard_that_was_cut_off_is_found(run: Storage) -> None:
    path = Path(run.address) / shard_name(2)
    path.write_bytes(path.read_bytes()[:-100])
    run.remove(MANIFEST)
    for name in run.names("log/"):
        run.remove(name)
    assert [shard for shard, _ in faults(run)] == [2]
    assert faults(run)[0][1].startswith("is not a whole file of maps: ")


def test_missing_shards_are_named(run: Storage) -> None:
    run.remove(shard_name(1))
    assert faults(run) == [(1, "1 of 3 shards are not there: 1")]
    _, rows = sampled(run)
    assert len(rows) == 7  # what is there is compared all the same
    for shard in (0, 2):
        run.remove(shard_name(shard))
    with pytest.raises(ValueError, match="none of the 3 shards"):
        faults(run)


def test_two_shards_that_were_exchanged_are_found(run: Storage) -> None:
    one, other = run.read(shard_name(0)), run.read(shard_name(1))
    run.write(shard_name(0), other)
    run.write(shard_name(1), one)
    for kept in (True, False):
        if not kept:  # their own content tells without any digest
            run.remove(MANIFEST)
            for name in run.names("log/"):
                run.remove(name)
        found = faults(run)
        assert (0, "is shard 1 by its own words") in found
        assert (1, "is shard 0 by its own words") in found
        assert (0, "row 0 has the image_id 4 instead of 0 (the first of 4 such rows)") in found


def test_a_changed_map_is_found_though_every_digest_agrees(run: Storage) -> None:
    def change(results: list[Result]) -> None:
        kept = results[1]
        assert isinstance(kept, RowResult)
        values = kept.map.copy()
        values[0, 3, 3] *= 1.001  # a single number by two of its last bits
        assert values.tobytes() != kept.map.tobytes()
        results[1] = kept._replace(map=values)

    changed(run, 0, change)
    assert faults(run) == []
    _, rows = sampled(run)
    different = {image_id: found for image_id, found in rows.items() if not found.right}
    assert list(different) == [1]
    assert different[1].reason.startswith("other values: map (only last bits")
    assert different[1].correlation > 0.999999
    assert 0 < different[1].largest < 0.002


@pytest.mark.parametrize(
    ("name", "value", "column"),
    [
        ("probability", 0.5, "probability"),
        ("target", 0, "target"),
        ("class_name", "a cat", "class"),
        ("cutoff", 1.5, "cutoff"),
        ("scale", 2.0**40, "map_scale"),
        ("overlay", b"", "overlay"),
    ],
)
def test_every_other_value_is_compared_too(run: Storage, name: str, value: Any, column: str) -> None:
    def change(results: list[Result]) -> None:
        assert isinstance(results[0], RowResult)
        assert getattr(results[0], name) != value
        results[0] = results[0]._replace(**{name: value})

    changed(run, 0, change)
    comparison = sampled(run)[1][0]
    assert comparison.outcome == "different"
    assert f"other values: {column}" in comparison.reason


def test_an_error_that_is_none_any_more_is_different(run: Storage) -> None:
    changed(run, 0, lambda results: results.__setitem__(0, RowError("the image is truncated", "permanent")))
    comparison = sampled(run)[1][0]
    assert comparison.outcome == "different"
    assert comparison.reason == "it has no map (the image is truncated), and gets one now"
    changed(run, 0, lambda results: results.__setitem__(0, RowError("the store was away", "transient")))
    assert sampled(run)[1][0].outcome == "no map"


def test_rows_that_contradict_themselves_are_found(run: Storage) -> None:
    table = decode_shard(run.read(shard_name(0)))

    def written(table: Any) -> list[str]:
        import pyarrow.parquet as pq

        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        run.write(shard_name(0), buffer.getvalue())
        for name in [MANIFEST, *run.names("log/")]:
            run.remove(name)
        return [reason for _, reason in faults(run)]

    def replaced(name: str, values: list[Any]) -> Any:
        place = table.schema.get_field_index(name)
        return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))

    assert written(table) == []
    assert written(replaced("map", [None] * 4)) == ["has rows with neither an error nor a map, or with both"]
    assert written(replaced("error_kind", [None] * 4))[0] == "has errors of no kind"
    uris = table["uri"].to_pylist()
    assert written(replaced("uri", [*uris[:3], "x.png"])) == [f"row 3 has the uri 'x.png' instead of {uris[3]!r}"]
    assert written(table.slice(0, 3)) == ["has 3 rows instead of 4"]
    assert written(table.drop_columns(["cutoff"])) == ["has other columns than it should, without 'cutoff'"]


def test_maps_of_another_size_or_shape_are_found(run: Storage) -> None:
    import pyarrow.parquet as pq

    table = decode_shard(run.read(shard_name(0)))

    def written(table: Any) -> list[str]:
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        run.write(shard_name(0), buffer.getvalue())
        for name in [MANIFEST, *run.names("log/")]:
            run.remove(name)
        return [reason for _, reason in faults(run)]

    place = table.schema.get_field_index("map")
    halves = pa.array([values and values[:288] for values in table["map"].to_pylist()], table.schema.field("map").type)
    assert written(table.set_column(place, table.schema.field("map"), halves)) == [
        "is not a whole file of maps: there is a map of 288 numbers instead of 576"
    ]
    said = {**table.schema.metadata, b"shape": b"[1, 12, 48]"}
    assert written(table.replace_schema_metadata(said)) == ["has maps of [1, 12, 48] instead of [1, 24, 24]"]


def test_a_run_of_an_earlier_version_goes_on_and_is_right(tmp_path: Path) -> None:
    storage = planned(tmp_path / "out", draw(tmp_path / "images", 6), a_classifier(), format=1)
    worker = Worker(storage, classifier=a_classifier(), processes=0)
    assert len(list(worker.work(range(2)))) == 2
    whole = storage.read(shard_name(1))
    assert decode_shard(whole).schema.field("map").type == pa.list_(pa.float16(), 24 * 24)
    storage.remove(shard_name(1))
    assert len(list(worker.work([1]))) == 1
    worker.close()
    assert storage.read(shard_name(1)) == whole
    checked, rows = sampled(storage)
    assert checked.faults == []
    assert {found.outcome for found in rows.values()} == {"same"}


def test_rows_of_the_plan_that_were_changed_are_found(run: Storage, tmp_path: Path) -> None:
    other = planned(tmp_path / "other", draw_with_errors(tmp_path / "photos", 11), a_classifier())
    run.write("plan/00000.parquet", other.read("plan/00000.parquet"))
    assert (None, f"the rows in {run}/plan are not the plan's original rows") in faults(run)


# Another machine ------------------------------------------------------------------------------------------------------


def test_elsewhere_maps_are_compared_by_their_evidence(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(results: list[Result]) -> None:
        for k, factor in ((0, 1.001), (1, -1.0)):
            kept = results[k]
            assert isinstance(kept, RowResult)
            results[k] = kept._replace(map=(kept.map * factor).astype(np.float16))

    changed(run, 0, change)
    now = {**recompute.versions_now(), "torch": "99.0"}
    monkeypatch.setattr(recompute, "versions_now", lambda: now)
    again = recomputer(run)
    assert again.differences_of([0, 1]) == [f"torch {torch.__version__.partition('+')[0]} then, 99.0 now"]
    rows = [found.comparison for found in again.rows(0, [0, 1, 2, 3])]
    assert [found.outcome for found in rows] == ["alike", "different", "same", "same"]
    assert rows[0].correlation > 0.99999
    assert rows[1].correlation < -0.99


@pytest.mark.parametrize("elsewhere", ["Another CPU 3000", None])
def test_another_processor_allows_other_last_bits(
    run: Storage, monkeypatch: pytest.MonkeyPatch, elsewhere: str | None
) -> None:
    def change(results: list[Result]) -> None:
        kept = results[0]
        assert isinstance(kept, RowResult)
        results[0] = kept._replace(map=(kept.map * 1.001).astype(np.float16))

    changed(run, 0, change)
    if elsewhere:
        monkeypatch.setattr(recompute, "processor_of", lambda device: elsewhere)
    again = recomputer(run)
    (reasons, (row,)) = again.differences_of([0]), again.rows(0, [0])
    assert [reason.partition(" ")[0] for reason in reasons] == (["processor"] if elsewhere else [])
    assert row.comparison.outcome == ("alike" if elsewhere else "different")


def test_a_map_with_nan_is_compared_to_the_bit_alone() -> None:
    values = np.full((1, 4, 4), np.nan, np.float32)
    one = RowResult(1, "one", 0.5, 1, None, 1.0, values, summarise(values))
    assert compare(one, one, exact=True).outcome == "same"
    other = one._replace(map=np.zeros((1, 4, 4), np.float32))
    assert compare(one, other, exact=False).outcome == "different"


def test_a_batch_keeps_its_size(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is computed in its whole batch, in the chunk that the shard was made in."""
    seen: list[tuple[list[int], int]] = []
    batch = Worker.batch

    def noted(self: Worker, rows: Any, chunk: int) -> Any:
        seen.append(([row.position for row in rows], chunk))
        return batch(self, rows, chunk)

    monkeypatch.setattr(Worker, "batch", noted)
    again = recomputer(run)
    again.rows(2, [9])
    again.rows(1, [5, 7])
    assert seen == [([8, 9, 10], 4), ([4, 5, 6, 7], 4)]


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the command the model of the small run, which no name stands for."""
    monkeypatch.setattr("fampe_fast.batch.model_spec.ModelSpec.load", lambda *_, **__: a_classifier())
    init = Recomputer.__init__
    monkeypatch.setattr(Recomputer, "__init__", lambda self, *a, **k: init(self, *a, **(k | {"processes": 0})))


@pytest.mark.usefixtures("command")
def test_the_command_says_that_all_is_right(run: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", run.address, "--json", str(tmp_path / "report.json"), "--sample", "99"]) == DONE
    said = " ".join(capsys.readouterr().out.split())
    assert "3 of 3 shards are right, 11 images planned, 4 of them without a map; computed again: 11 same: all" in said
    assert "the maps must be bitwise equal" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["fampe_fast"] == "verify report"
    assert report["right"] is True
    assert len(report["rows"]) == 11
    assert report["rows"][0]["outcome"] == "same"
    assert main(["verify", run.address, "--sample", "0"]) == DONE
    assert "none computed again: all right" in capsys.readouterr().out


@pytest.mark.usefixtures("command")
def test_the_command_says_what_is_wrong(run: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.remove(shard_name(2))
    changed(run, 0, lambda results: results.reverse())
    assert main(["verify", run.address, "--json", str(tmp_path / "report.json")]) == SOME_FAILED
    said = " ".join(capsys.readouterr().out.split())
    assert "wrong shard 2: 1 of 3 shards are not there: 2" in said
    assert "different" in said
    assert "something is not right" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["right"] is False
    assert report["faults"] == [{"shard": 2, "reason": "1 of 3 shards are not there: 2"}]
    (tmp_path / "mine.json").write_text("{}")
    assert main(["verify", run.address, "--json", str(tmp_path / "mine.json")]) == UNUSABLE
    assert (tmp_path / "mine.json").read_text() == "{}"


@pytest.mark.usefixtures("command")
def test_one_map_is_audited_by_its_id_and_by_its_record(
    run: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "record.json"
    assert main(["verify", run.address, "--image-id", "7", "--json", str(file)]) == DONE
    said = " ".join(capsys.readouterr().out.split())
    assert "image 7" in said
    assert "same; correlation 1.000000, largest difference 0.00e+00 of the peak" in said
    record = json.loads(file.read_text())
    assert record["fampe_fast"] == "audit record"
    assert record["image_id"] == 7
    assert record["model_fingerprint"] == read_back(run).identity["fingerprint"]
    assert record["map_sha256"] == record["computed_again"]["map_sha256"]
    assert main(["verify", run.address, "--record", str(file)]) == DONE
    capsys.readouterr()
    # A record that says something else than the run.
    for name, value in (("probability", 0.123), ("seed", 7), ("map_sha256", "0" * 64)):
        file.write_text(json.dumps({**record, name: value}))
        assert main(["verify", run.address, "--record", str(file)]) == SOME_FAILED
        said = " ".join(capsys.readouterr().out.split())
        assert f"wrong {name}: {json.dumps(value)[:50]}" in said
    # A run that was changed after the record was taken.
    file.write_text(json.dumps(record))
    changed(run, 1, lambda results: results.__setitem__(3, results[0]))
    assert main(["verify", run.address, "--record", str(file)]) == SOME_FAILED
    said = " ".join(capsys.readouterr().out.split())
    assert "wrong map_sha256" in said
    assert "different: other values" in said


@pytest.mark.usefixtures("command")
def test_what_cannot_be_verified_costs_one_line(
    run: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: str) -> str:
        assert main(["verify", *words]) == UNUSABLE
        found = capsys.readouterr()
        (line,) = found.err.splitlines()
        return line

    assert "nothing is planned in" in refused(str(tmp_path / "nowhere"))
    assert "has the id 11" in refused(run.address, "--image-id", "11")
    run.remove(shard_name(2))
    assert "image 9 is in shard 2, which is not finished yet" in refused(run.address, "--image-id", "9")
    (tmp_path / "x.json").write_text('{"fampe_fast": "figure", "image_id": 1}')
    assert "is not an audit record" in refused(run.address, "--record", str(tmp_path / "x.json"))
    (tmp_path / "x.json").write_text('{"fampe_fast": "audit record", "image_id": 1, "model_fingerprint": "0"}')
    assert "the record is of another model" in refused(run.address, "--record", str(tmp_path / "x.json"))

    def other(*_: object, **__: object) -> object:
        torch.manual_seed(1)
        found = a_classifier()
        with torch.no_grad():
            next(found.model.parameters()).mul_(1.5)
        return found

    monkeypatch.setattr("fampe_fast.batch.model_spec.ModelSpec.load", other)
    line = refused(run.address)
    assert "the model is not the planned one" in line
    assert read_back(run).identity["fingerprint"] in line


def test_positions_are_found_over_the_pieces_of_a_plan(tmp_path: Path) -> None:
    plan = read_back(planned(tmp_path / "one", draw(tmp_path / "images", 1), a_classifier()))
    table = tmp_path / "table.csv"
    ids = [40, 7, 4294967294, 0, 12]
    table.write_text("uri,image_id\n" + "".join(f"images/000.png,{image_id}\n" for image_id in ids))
    dest = open_storage(tmp_path / "two")
    plan = write_plan(dest, replace(plan, rows_per_piece=2), list_rows([str(table)]))
    assert [position_of(dest, plan, image_id) for image_id in ids] == [0, 1, 2, 3, 4]
    for wrong in (1, -1, 2**32):
        with pytest.raises(ValueError, match="has the id"):
            position_of(dest, plan, wrong)


def test_a_chunk_that_does_not_fit_here_is_no_difference(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    from . import small_runs

    again = recomputer(run)
    monkeypatch.setattr(small_runs, "most_images", 0)
    with pytest.raises(torch.OutOfMemoryError):  # which ends the command with the code of what cannot be done
        again.rows(0, [0])


def test_spans() -> None:
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert spans(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, ..."
    assert verify.spans([]) == ""


def test_a_run_of_a_gpu_is_compared_on_a_cpu(run: Storage) -> None:
    plan = replace(plan_of(run), device="cuda", backend="triton")
    again = Recomputer(run, plan, device="cpu", classifier=a_classifier(), processes=0)
    assert again.differences_of([0]) == [
        "device cuda then, cpu now",
        f"backend triton then, {plan_of(run).backend} now",
    ]
    assert [found.comparison.outcome for found in again.rows(0, [0, 1, 2, 3])] == ["same"] * 4


def test_no_thread_of_arrow_holds_a_python_file(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """``read_table`` has its threads do so: 3 of 10 processes that read a list of 20,000 shards aborted at exit."""
    monkeypatch.setattr(pq, "read_table", lambda *arguments, **options: pytest.fail("threads read a file"))
    assert [entry.shard for entry in read_manifest(run)] == [0, 1, 2]
    assert check_files(run, plan_of(run)).faults == []
