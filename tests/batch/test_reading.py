"""Reading maps back: with this package, and with the libraries that people have."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

import fampe_fast
from fampe_fast.batch.reading import read_maps
from fampe_fast.batch.shards import encode_shard, shard_name
from fampe_fast.batch.storage import Storage, open_storage
from fampe_fast.batch.worker import Worker

from .small_runs import a_classifier, draw, planned
from .test_shards import ROWS, SHAPE, attributions, results, shape_plan

pytest.importorskip("pyarrow")


@pytest.fixture(params=["float16", "float32"])
def written(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Storage, str]:
    storage = open_storage(tmp_path)
    plan = shape_plan(images=10, map_dtype=request.param)
    for shard in (0, 1):
        rows = [row._replace(image_id=row.image_id + 100 * shard) for row in ROWS]
        storage.write(shard_name(shard), encode_shard(plan, shard, rows, results(request.param), {"passes": 3}))
    return storage, request.param


def test_maps_come_back_as_attributions(written: tuple[Storage, str]) -> None:
    storage, dtype = written
    parts = list(read_maps(storage.address))
    assert [part["image_id"].tolist() for part in parts] == [[40, 41, 42, 43, 44], [140, 141, 142, 143, 144]]
    for part in parts:
        assert part["map"].shape == (5, *SHAPE)
        assert part["map"].dtype == np.float32
        for k, attribution in enumerate(attributions()):
            if k == 3:
                assert np.isnan(part["map"][k]).all()
            elif dtype == "float32":
                np.testing.assert_array_equal(part["map"][k], attribution)
            else:
                np.testing.assert_allclose(
                    part["map"][k], attribution, rtol=2.0**-11, atol=float(np.abs(attribution).max()) * 2.0**-24
                )
        assert part["target"].tolist() == [0, 1, 2, -1, 4]
        assert part["class"].tolist() == ["class 0", "class 1", "class 2", None, "class 4"]
        assert np.isnan(part["cutoff"]).tolist() == [True, False, False, True, False]
        assert part["overlay"].tolist() == [b"png", b"png", b"png", None, b"png"]


def test_a_wrong_place_or_argument_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for place in (tmp_path / "nowhere", tmp_path / "other"):
        with pytest.raises(ValueError, match="^nothing is planned in .*: expected the folder or URL of a batch run"):
            read_maps(place)
    planned(tmp_path / "run", draw(tmp_path / "images", 2), a_classifier())
    assert list(read_maps(tmp_path / "run")) == []
    with pytest.raises(TypeError, match="columns must be a sequence of names, got 'map'"):
        read_maps(tmp_path / "run", columns="map")
    with pytest.raises(TypeError, match="shards must be a sequence of numbers, got 2"):
        read_maps(tmp_path / "run", shards=2)  # type: ignore[arg-type]


def test_columns_shards_and_rows_can_be_chosen(written: tuple[Storage, str]) -> None:
    storage, _ = written
    (part,) = read_maps(storage.address, columns=["probability", "map"], shards=[1], errors=False)
    assert list(part) == ["probability", "map"]
    assert part["map"].shape == (4, *SHAPE)
    assert not np.isnan(part["map"]).any()
    with pytest.raises(ValueError, match=r"there is no column 'maps'; there are image_id, uri, .*map.*overlay"):
        list(read_maps(storage.address, columns=["maps"]))


def test_numbers_come_as_tensors_that_own_their_memory(written: tuple[Storage, str]) -> None:
    storage, _ = written
    part = next(read_maps(storage.address, as_torch=True))
    assert isinstance(part["map"], torch.Tensor)
    assert part["image_id"].dtype == torch.int64
    part["map"] += 1
    part["probability"] += 1
    assert part["uri"][1] == "/photos/1.png"


def test_a_damaged_shard_is_named(written: tuple[Storage, str]) -> None:
    storage, _ = written
    storage.write(shard_name(1), storage.read(shard_name(1))[:-100])
    with pytest.raises(ValueError, match=r"maps/000/000001.parquet: not a whole file of maps"):
        list(read_maps(storage.address))


def test_it_is_a_public_name() -> None:
    assert fampe_fast.read_maps is read_maps


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb", "pyarrow.parquet", "datasets"])
def test_others_read_the_map_as_numbers(written: tuple[Storage, str], library: str, tmp_path: Path) -> None:
    storage, _ = written
    module = pytest.importorskip(library)
    file = str(tmp_path / shard_name(0))
    if library == "pandas":
        frame = module.read_parquet(file)
        maps, scales, errors = list(frame["map"]), list(frame["map_scale"]), list(frame["error"])
    elif library == "polars":
        frame = module.read_parquet(file)
        maps, scales, errors = frame["map"].to_list(), frame["map_scale"].to_list(), frame["error"].to_list()
    elif library == "duckdb":
        rows = module.sql(f"SELECT map, map_scale, error FROM '{file}'").fetchall()
        maps, scales, errors = map(list, zip(*rows, strict=True))
    elif library == "pyarrow.parquet":
        table = module.read_table(file)
        maps, scales, errors = (table[name].to_pylist() for name in ("map", "map_scale", "error"))
    else:
        found = module.Dataset.from_parquet(file, cache_dir=str(tmp_path / "cache"))
        maps, scales, errors = found["map"], found["map_scale"], found["error"]
    assert list(errors)[3] == "the file is empty (0 bytes)"
    for k, part in enumerate(next(read_maps(storage.address))["map"]):
        if k == 3:
            assert maps[k] is None
            continue
        values = np.asarray(maps[k], np.float64)
        assert values.shape == (int(np.prod(SHAPE)),)
        np.testing.assert_array_equal((values * scales[k]).astype(np.float32), part.ravel())


@pytest.mark.parametrize("library", ["pandas", "polars", "duckdb", "pyarrow.dataset"])
def test_others_read_a_whole_run_with_a_bad_image(tmp_path: Path, library: str) -> None:
    module = pytest.importorskip(library)
    images = draw(tmp_path / "images", 6)
    (images / "002.png").write_bytes(b"")
    storage = planned(tmp_path / "out", images, a_classifier())  # two shards, of which one has only good images
    worker = Worker(storage, classifier=a_classifier(), processes=0)
    assert [report.errors for report in worker.work(range(2))] == [1, 0]
    worker.close()
    folder = str(tmp_path / "out" / "maps")
    if library == "pandas":
        frame = module.read_parquet(folder).sort_values("image_id")
        maps, scales, errors = list(frame["map"]), list(frame["map_scale"]), list(frame["error"].notna())
    elif library == "polars":
        frame = module.read_parquet(f"{folder}/**/*.parquet").sort("image_id")
        maps, scales, errors = (
            frame["map"].to_list(),
            frame["map_scale"].to_list(),
            frame["error"].is_not_null().to_list(),
        )
    elif library == "duckdb":
        asked = f"SELECT map, map_scale, error IS NOT NULL FROM '{folder}/**/*.parquet' ORDER BY image_id"
        maps, scales, errors = map(list, zip(*module.sql(asked).fetchall(), strict=True))
    else:
        table = module.dataset(folder).to_table().sort_by("image_id")
        maps, scales = table["map"].to_pylist(), table["map_scale"].to_pylist()
        errors = table["error"].is_valid().to_pylist()
    expected = np.concatenate([part["map"] for part in read_maps(storage.address)])
    assert expected.shape == (6, 1, 24, 24)
    assert np.isnan(expected).all((1, 2, 3)).tolist() == errors == [k == 2 for k in range(6)]
    assert maps[2] is None
    for k in (0, 1, 3, 4, 5):
        values = np.asarray(maps[k], np.float64) * scales[k]
        np.testing.assert_array_equal(values.astype(np.float32), expected[k].ravel())


def test_without_pyarrow_it_says_what_to_install(written: tuple[Storage, str], monkeypatch: pytest.MonkeyPatch) -> None:
    storage, _ = written
    monkeypatch.setitem(importlib.sys.modules, "pyarrow", None)  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match=r"pip install 'fampe_fast\[batch\]'"):
        next(read_maps(storage.address))
