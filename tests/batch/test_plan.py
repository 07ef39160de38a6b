"""The frozen plan: what it keeps, what of it is read, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fampe_fast.batch import plan as plans
from fampe_fast.batch.model_spec import ModelSpec
from fampe_fast.batch.plan import (
    Plan,
    Row,
    check_rows,
    differences,
    every_row,
    read_back,
    read_plan,
    read_rows,
    write_plan,
)
from fampe_fast.batch.storage import Storage, open_storage
from fampe_fast.errors import FampeWarning

pytest.importorskip("pyarrow")


def a_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "sources": ("/photos",),
        "method": "fampe",
        "model": ModelSpec(source="resnet18", mean=(0.1, 0.2, 0.3), model_args={"pad_type": "same"}),
        "identity": {"model": "resnet18", "fingerprint": "0123456789abcdef"},
        "everything": {"method": "fampe", "config": {"steps": 3, "bounds": [0.0, 1.0]}},
        "device": "cpu",
        "precision": "fp32",
        "backend": "reference",
        "threads": 1,
        "max_pixels": 10**6,
        "max_bytes": 10**6,
        "shape": (1, 8, 8),
        "classes": 10,
        "versions": {"torch": "2.0"},
        "rows_per_shard": 7,
        "rows_per_piece": 10,
    }
    return Plan(**values | changes)


def rows(count: int) -> Iterator[Row]:
    for k in range(count):
        if k % 3:
            yield Row(k, k, f"/photos/{k}.png", target=k % 10)
        else:
            yield Row(k, k, f"../{k}.jpg", "/tars/ä.tar", 2**33 + k, 100 + k)


@pytest.fixture(params=["local", "memory"])
def dest(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    pytest.importorskip("fsspec")
    return open_storage(tmp_path / "out" if request.param == "local" else f"memory://{tmp_path.name}/out")


def test_a_plan_is_read_as_it_was_written(dest: Storage) -> None:
    assert read_plan(dest) is None
    written = write_plan(dest, a_plan(), rows(35))
    assert read_plan(dest) == read_back(dest) == written
    assert (written.images, written.shards, len(written.key)) == (35, 5, 16)
    assert written.model.mean == (0.1, 0.2, 0.3)
    assert list(every_row(dest, written)) == list(rows(35))
    check_rows(dest, written)
    assert sorted(dest.names()) == ["plan.json", *(f"plan/0000{k}.parquet" for k in range(4))]


@pytest.mark.parametrize("per_piece", [1, 6, 7, 8, 35, 1000])
def test_the_rows_do_not_depend_on_how_they_are_cut_into_files(
    tmp_path: Path, per_piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "_ROWS_PER_GROUP", 4)
    dest = open_storage(tmp_path)
    plan = write_plan(dest, a_plan(rows_per_piece=per_piece), rows(35))
    for shard in range(plan.shards):
        expected = list(rows(35))[7 * shard : 7 * shard + 7]
        assert read_rows(dest, plan, shard) == expected
        assert plan.rows_of(shard) == range(7 * shard, min(7 * shard + 7, 35))
    other = write_plan(open_storage(tmp_path / "other"), a_plan(), rows(35))
    assert (other.rows_sha256, other.key) == (plan.rows_sha256, plan.key)


def test_a_plan_of_an_earlier_version_keeps_its_format(tmp_path: Path) -> None:
    dest = open_storage(tmp_path)
    plan = write_plan(dest, a_plan(), rows(8))
    assert plan.format == 2
    content = json.loads(dest.read("plan.json"))
    dest.write("plan.json", json.dumps(content | {"format": 1}).encode())
    old = read_plan(dest)
    assert old == replace(plan, format=1)
    assert differences(old, plan) == []  # so that an unfinished run goes on


def test_a_shard_reads_only_the_pieces_that_hold_it(tmp_path: Path) -> None:
    dest = open_storage(tmp_path)
    plan = write_plan(dest, a_plan(rows_per_piece=14), rows(35))
    for name in ("plan/00000.parquet", "plan/00002.parquet"):
        dest.remove(name)
    assert [row.position for row in read_rows(dest, plan, 2)] == list(range(14, 21))
    with pytest.raises(OSError):
        read_rows(dest, plan, 4)
    with pytest.raises(IndexError, match="no shard 5"):
        read_rows(dest, plan, 5)


def test_other_rows_than_the_plans_are_found(tmp_path: Path) -> None:
    dest = open_storage(tmp_path)
    plan = write_plan(dest, a_plan(), rows(20))
    dest.write("plan/00001.parquet", dest.read("plan/00000.parquet"))
    with pytest.raises(ValueError, match="not the plan's original rows"):
        check_rows(dest, plan)
    dest.write("plan/00000.parquet", b"PAR1 nonsense PAR1")
    plans._group.cache_clear()
    with pytest.raises(ValueError, match="damaged"):
        read_rows(dest, plan, 0)


def test_differences_are_named_and_what_changes_no_byte_is_none() -> None:
    plan = a_plan()
    assert differences(plan, replace(plan, images=7, versions={}, threads=4, rows_sha256="x", key="y")) == []
    # The same weights by another name, the same method from other words.
    assert differences(plan, replace(plan, model=ModelSpec(source="timm/resnet18"), options={"steps": 3})) == []
    assert differences(plan, replace(plan, seed=7)) == ["seed: 0 there, 7 now"]
    other = {"method": "fampe", "config": {"steps": 4, "bounds": [0.0, 1.0]}}
    assert differences(plan, replace(plan, everything=other)) == ["everything.config.steps: 3 there, 4 now"]
    assert differences(plan, replace(plan, identity={"model": "resnet18", "fingerprint": "ff"})) == [
        'model: "0123456789abcdef" there, "ff" now'
    ]
    named = replace(plan, model=replace(plan.model, class_names=("cat", "dog")))
    assert len(differences(plan, named)) == 1
    for change in (
        {"sources": ("/other",)}, {"target": "model"}, {"sample": 3}, {"rows_per_shard": 8}, {"batch_size": 3},
        {"internal_batch_size": 3}, {"method": "rise"}, {"device": "cuda"}, {"precision": "bf16"}, {"overlay": True},
        {"backend": "compiled"}, {"map_dtype": "float32"}, {"max_pixels": 3}, {"max_bytes": 3}, {"shape": (3, 8, 8)},
    ):  # fmt: skip
        (difference,) = differences(plan, replace(plan, **change))
        assert difference.startswith(f"{next(iter(change))}: ")


def test_the_key_is_that_of_what_the_bytes_depend_on(tmp_path: Path) -> None:
    def key(plan: Plan, count: int = 8) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return write_plan(open_storage(folder), plan, rows(count)).key

    plan = a_plan()
    same = replace(plan, sources=("/elsewhere",), versions={}, rows_per_piece=3, sample=8)
    assert key(plan) == key(same)
    others = [
        replace(plan, seed=1),
        replace(plan, threads=2),
        replace(plan, rows_per_shard=4),
        replace(plan, batch_size=4),
    ]
    assert len({key(plan), key(plan, 9), *map(key, others)}) == 6


def test_a_planning_that_was_killed_is_begun_anew(dest: Storage) -> None:
    def killed() -> Iterator[Row]:
        yield from rows(25)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_plan(dest, a_plan(), killed())
    assert list(dest.names()) == []
    write_plan(dest, a_plan(), rows(35))
    dest.remove("plan.json")  # as a kill -9 before the end leaves it
    assert read_plan(dest) is None
    plan = write_plan(dest, a_plan(), rows(8))
    assert sorted(dest.names()) == ["plan.json", "plan/00000.parquet"]
    assert list(every_row(dest, plan)) == list(rows(8))


def test_a_place_that_holds_something_else_is_refused(dest: Storage) -> None:
    dest.write("thesis.txt", b"years of work")
    for call in (read_plan, lambda place: write_plan(place, a_plan(), rows(3))):
        with pytest.raises(ValueError, match=r"has other content \(thesis.txt\)"):
            call(dest)
    dest.remove("thesis.txt")
    dest.write("plan/00000.parquet", b"not ours")
    with pytest.raises(ValueError, match=r"has other content \(plan/00000.parquet\)"):
        read_plan(dest)
    assert dest.read("plan/00000.parquet") == b"not ours"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "not a plan"),
        (b"[]", "'batch plan'"),
        (b'{"fampe_fast": "records"}', "'batch plan'"),
        (b'{"fampe_fast": "batch plan", "format": 99}', "format is 99, and this version reads 1 and 2"),
        (b'{"fampe_fast": "batch plan", "format": 1}', "not a plan"),
    ],
)
def test_a_plan_of_another_kind_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    dest = open_storage(tmp_path)
    dest.write("plan.json", content)
    with pytest.raises(ValueError, match=reason) as found:
        read_plan(dest)
    assert "\n" not in str(found.value)


def test_no_rows_are_no_plan(dest: Storage) -> None:
    with pytest.raises(ValueError, match="no images"):
        write_plan(dest, a_plan(), [])
    assert list(dest.names()) == []


def test_plan_json_is_marked_and_plain(tmp_path: Path) -> None:
    dest = open_storage(tmp_path)
    write_plan(dest, a_plan(), rows(3))
    content = json.loads(dest.read("plan.json"))
    assert next(iter(content.items())) == ("fampe_fast", "batch plan")
    assert content["images"] == 3
    assert content["model"]["source"] == "resnet18"


def test_addresses_show_nothing_secret() -> None:
    web = Row(0, 0, "https://host/a.png?token=secret#secret")
    assert web.address == web.shown_uri == "https://host/a.png"
    inside = Row(0, 0, "a?b.png", "https://host/a.tar?token=secret", 1, 2)
    assert inside.address == "https://host/a.tar::a?b.png"
    assert (inside.shown_uri, inside.shown_container) == ("a?b.png", "https://host/a.tar")
    local = Row(0, 0, "/photos/what?.png")
    assert local.address == "/photos/what?.png"


def test_other_versions_are_warned_of() -> None:
    plans.warn_of_versions(a_plan(), {"torch": "2.0", "numpy": "1.0"})
    with pytest.warns(FampeWarning, match="torch 2.0 there, 3.0 now"):
        plans.warn_of_versions(a_plan(), {"torch": "3.0"})
