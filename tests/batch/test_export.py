"""Exports of a run: what is in them is what is stored, nothing else is touched, and an interrupted one goes on."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fampe_fast.batch import export
from fampe_fast.batch.export import EXPORT, STORE, Export, Exported, Format
from fampe_fast.batch.plan import read_back
from fampe_fast.batch.reading import read_maps
from fampe_fast.batch.shards import shard_name
from fampe_fast.batch.storage import Storage, open_storage
from fampe_fast.batch.worker import Worker
from fampe_fast.cli import SOME_FAILED, UNUSABLE, main
from fampe_fast.files import FIGURE, mark_of

from .small_runs import a_classifier, draw_with_errors, planned

pytest.importorskip("pyarrow")

WITH_MAPS = [0, 1, 3, 4, 7, 8, 10]  # of eleven, in shards of four


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "overlay"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return made(tmp_path_factory.mktemp("run"), overlay=request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return made(tmp_path_factory.mktemp("plain"))


def made(root: Path, **changes: Any) -> Storage:
    storage = planned(root / "out", draw_with_errors(root / "images", 11), a_classifier(), **changes)
    worker = Worker(storage, classifier=a_classifier(), processes=0)
    for _ in worker.work(range(3)):
        pass
    worker.close()
    return storage


def exported(storage: Storage, out: Path | str, to: Format, **options: Any) -> Exported:
    place = open_storage(out)
    return Export(
        storage, read_back(storage), place, to, **({"classifier": a_classifier(), "processes": 0} | options)
    ).run()


def stored(storage: Storage) -> dict[str, np.ndarray]:
    parts = list(read_maps(storage.address))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_archives_hold_what_is_stored(run: Storage, tmp_path: Path) -> None:
    assert exported(run, tmp_path / "out", "npz") == (7, 0, 4, 0, 0)
    rows = stored(run)
    paths = sorted((tmp_path / "out").glob("*/*.npz"))
    assert [int(path.stem) for path in paths] == WITH_MAPS
    assert [path.parent.name for path in paths] == ["000000"] * 3 + ["000001"] * 2 + ["000002"] * 2
    for path in paths:
        with np.load(path) as found:
            k = int(found["image_id"])
            assert found["map"].dtype == np.float32
            np.testing.assert_array_equal(found["map"], rows["map"][k])
            for name in ("target", "predicted", "probability", "cutoff", "uri"):
                assert found[name] == rows[name][k], name
            assert found["class_name"] == rows["class"][k]
            settings = json.loads(str(found["settings"]))
            assert settings["fingerprint"] == read_back(run).identity["fingerprint"]
    # The keys that explain's archives have, too, but for the image and the seconds.
    with np.load(paths[0]) as found:
        assert {"map", "image_id", "target", "predicted", "probability", "cutoff", "settings"} < set(found.files)


def test_pictures_are_the_stored_ones_or_drawn_alike(run: Storage, tmp_path: Path) -> None:
    assert exported(run, tmp_path / "out", "png") == (7, 0, 4, 0, 0)
    paths = sorted((tmp_path / "out").glob("*/*.png"))
    assert [int(path.stem) for path in paths] == WITH_MAPS
    overlays = stored(run)["overlay"]
    for path in paths:
        assert mark_of(path).kind == FIGURE
        kept = overlays[int(path.stem)]
        if kept is not None:
            assert path.read_bytes() == kept
        else:
            with Image.open(path) as picture:
                assert picture.size == (24, 24)
    assert (overlays[0] is None) == (not read_back(run).overlay)


def test_a_drawn_picture_is_the_one_that_would_have_been_stored(tmp_path: Path) -> None:
    with_overlay = made(tmp_path / "a", overlay=True, map_dtype="float32")
    without = made(tmp_path / "b", map_dtype="float32")
    for storage, name in ((with_overlay, "one"), (without, "other")):
        exported(storage, tmp_path / name, "png")
    one, other = (sorted((tmp_path / name).glob("*/*.png")) for name in ("one", "other"))
    assert len(one) == len(other) == 7
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other]


def test_an_image_that_is_gone_has_no_picture(tmp_path: Path) -> None:
    storage = made(tmp_path)
    (tmp_path / "images" / "003.png").unlink()
    for _ in range(2):  # and what was found is known the next time
        found = exported(storage, tmp_path / "pictures", "png")
        assert (found.maps + found.earlier, found.errors, found.undrawn) == (6, 4, 1)


@pytest.mark.parametrize("ids", [None, [10, 3, 2]])
def test_a_zarr_store_holds_what_is_stored(plain: Storage, tmp_path: Path, ids: list[int] | None) -> None:
    zarr = pytest.importorskip("zarr")
    places = list(range(11)) if ids is None else sorted(ids)
    errors = len(set(places) - set(WITH_MAPS))
    assert exported(plain, tmp_path / "out", "zarr", ids=ids) == (len(places) - errors, 0, errors, 0, 0)
    store = zarr.open_group(str(tmp_path / "out" / STORE), mode="r")
    rows = stored(plain)
    assert store["maps"].metadata.zarr_format == 3
    assert store["maps"].dtype == np.float32
    np.testing.assert_array_equal(store["maps"][:], rows["map"][places])
    for name in ("image_id", "target", "predicted", "probability", "cutoff"):
        np.testing.assert_array_equal(store[name][:], rows[name][places])
    assert list(store["uri"][:]) == list(rows["uri"][places])
    assert [text or None for text in store["class_name"][:]] == list(rows["class"][places])
    assert [text or None for text in store["error"][:]] == list(rows["error"][places])
    assert store.attrs["fingerprint"] == read_back(plain).identity["fingerprint"]


def test_zarr_says_what_to_install(plain: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(ImportError, match=r"pip install 'fampe_fast\[zarr\]'"):
        exported(plain, tmp_path / "out", "zarr")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"ids": [7, 0, 7]}, [0, 7]),
        ({"limit": 5}, [0, 1, 3, 4]),
        ({"ids": [8, 1, 3], "limit": 2}, [1, 3]),
    ],
)
def test_some_rows_alone(plain: Storage, tmp_path: Path, choice: dict[str, Any], expected: list[int]) -> None:
    exported(plain, tmp_path / "out", "npz", **choice)
    assert [int(path.stem) for path in sorted((tmp_path / "out").glob("*/*.npz"))] == expected


def test_into_an_object_store(plain: Storage) -> None:
    pytest.importorskip("fsspec")
    exported(plain, "memory://exports/a", "npz", limit=2)
    out = open_storage("memory://exports/a")
    assert [name for name in out.names() if name.endswith(".npz")] == [f"000000/000000000{k}.npz" for k in (0, 1)]
    with np.load(io.BytesIO(out.read("000000/0000000001.npz"))) as found:
        np.testing.assert_array_equal(found["map"], stored(plain)["map"][1])


# Going on -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["npz", "png", "zarr"])
def test_an_interrupted_export_goes_on(
    plain: Storage, tmp_path: Path, to: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    if to == "zarr":
        pytest.importorskip("zarr")
    exported(plain, tmp_path / "whole", to)
    whole = files(tmp_path / "whole")
    write, allowed = Storage.write, 0

    def some(self: Storage, name: str, content: bytes) -> None:
        nonlocal allowed
        if allowed == 0:
            raise OSError(28, "No space left on device")
        allowed -= 1
        write(self, name, content)

    tries = 0
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", some)
        while True:
            tries += 1
            allowed = 4 if to != "zarr" else 1
            try:
                found = exported(plain, tmp_path / "parts", to)
                break
            except OSError:
                assert tries < 20
    assert tries > 2
    assert found.maps + found.earlier == 7
    assert found.errors == 4
    assert files(tmp_path / "parts") == whole
    # Done is done: nothing is written again, nor read.
    monkeypatch.setattr(export, "decode_shard", None)
    assert exported(plain, tmp_path / "parts", to) == (0, 7, 4, 0, 0)


def test_a_shard_that_comes_later_is_exported_later(tmp_path: Path) -> None:
    storage = made(tmp_path)
    content = storage.read(shard_name(1))
    storage.remove(shard_name(1))
    assert exported(storage, tmp_path / "parts", "npz") == (5, 0, 2, 0, 1)
    storage.write(shard_name(1), content)
    assert exported(storage, tmp_path / "parts", "npz") == (2, 5, 4, 0, 0)
    assert exported(storage, tmp_path / "whole", "npz") == (7, 0, 4, 0, 0)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


# The user's own files -------------------------------------------------------------------------------------------------


def test_nothing_else_is_overwritten(plain: Storage, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"has other content \(notes.txt\)"):
        exported(plain, tmp_path / "mine", "npz")
    (tmp_path / "mine" / EXPORT).write_text('{"to": "npz"}')
    with pytest.raises(ValueError, match="was not written by fampe_fast"):
        exported(plain, tmp_path / "mine", "npz")
    assert sorted(files(tmp_path / "mine")) == [EXPORT, "notes.txt"]
    with pytest.raises(ValueError, match="has other content"):
        exported(plain, plain.address, "npz")  # into the run itself
    exported(plain, tmp_path / "out", "npz", limit=2)
    for change in ({"limit": 3}, {"ids": [1]}):
        with pytest.raises(ValueError, match=f"holds another export .*{next(iter(change))}"):
            exported(plain, tmp_path / "out", "npz", **({"limit": 2} | change))
    with pytest.raises(ValueError, match="to: npz there, png now"):
        exported(plain, tmp_path / "out", "png", limit=2)


def test_another_model_draws_no_pictures(plain: Storage, tmp_path: Path) -> None:
    other = a_classifier()
    next(other.model.parameters()).data.mul_(1.5)
    with pytest.raises(ValueError, match="the model is not the planned one"):
        exported(plain, tmp_path / "out", "png", classifier=other)


def test_the_command(plain: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["export", plain.address, "--out", str(tmp_path / "out")]
    for said in ("7 maps written to", "0 maps written to"):
        assert main([*words, "--to", "npz"]) == SOME_FAILED
        text = capsys.readouterr().err
        assert said in text
        assert "4 images have no map" in text
    assert "7 were there" in text
    assert main([*words, "--to", "npz", "--ids", "3"]) == UNUSABLE
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert main(["export", str(tmp_path / "nowhere"), "--to", "npz", "--out", str(tmp_path / "x")]) == UNUSABLE
    assert "nothing is planned" in capsys.readouterr().err
    assert main(["export", plain.address, "--to", "npz", "--ids", "99", "--out", str(tmp_path / "x")]) == UNUSABLE
    assert "has the id 99" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
