"""Shards: what they hold, to the bit, and who reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fampe_fast.answers.result import Result, RowError, RowResult, scaled_map
from fampe_fast.answers.summaries import summarise
from fampe_fast.batch.plan import Plan, Row
from fampe_fast.batch.shards import (
    decode_shard,
    encode_shard,
    finished_shards,
    shard_metadata,
    shard_name,
)
from fampe_fast.batch.storage import open_storage

from .test_plan import a_plan

pa = pytest.importorskip("pyarrow")

SHAPE = (2, 6, 7)
ROWS = [Row(k, 40 + k, f"/photos/{k}.png", None if k else "/tars/a.tar", 1, 2, 3) for k in range(5)]


def shape_plan(**changes: Any) -> Plan:
    return a_plan(**{"shape": SHAPE, "images": 5, "rows_per_shard": 5, "key": "00ff", **changes})


def attributions() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(SHAPE).astype(np.float32) * 10.0**power for power in (-9, -3, 0, 3, 9)]


def results(dtype: str = "float16") -> list[Result]:
    found: list[Result] = []
    for k, attribution in enumerate(attributions()):
        stored, scale = scaled_map(attribution, dtype)
        found.append(
            RowResult(k, f"class {k}", 0.5, k, 1.5 if k else None, scale, stored, summarise(attribution), b"png")
        )
    found[3] = RowError("the file is empty (0 bytes)", "permanent")
    return found


def test_single_precision_is_stored_as_it_is() -> None:
    plan = shape_plan(map_dtype="float32")
    table = decode_shard(encode_shard(plan, 0, ROWS, results("float32"), {}))
    for k, attribution in enumerate(attributions()):
        assert table["map_scale"][k].as_py() == (None if k == 3 else 1.0)
        if k != 3:
            np.testing.assert_array_equal(np.array(table["map"][k].as_py(), np.float32), attribution.ravel())


def test_a_shard_holds_every_row_and_says_what_it_is(tmp_path: Path) -> None:
    content = encode_shard(shape_plan(), 0, ROWS, results(), {"chunk": 2, "passes": 10})
    table = decode_shard(content)
    assert table["image_id"].to_pylist() == [40, 41, 42, 43, 44]
    assert table["error"].to_pylist() == [None] * 3 + ["the file is empty (0 bytes)", None]
    assert table["error_kind"].to_pylist() == [None] * 3 + ["permanent", None]
    for name in set(table.column_names) - {"image_id", "uri", "container", "error", "error_kind"}:
        assert table[name].to_pylist()[3] is None, name
    assert table["cutoff"].to_pylist() == [None, 1.5, 1.5, None, 1.5]
    assert (table["channels"][0].as_py(), table["height"][0].as_py(), table["width"][0].as_py()) == SHAPE
    assert table["passes"][0].as_py() == 10
    storage = open_storage(tmp_path)
    storage.write(shard_name(0), content)
    said = {"plan": "00ff", "shard": 0, "rows": 5, "errors": 1, "transient": 0, "chunk": 2, "passes": 10}
    assert shard_metadata(storage, 0) == said | {"shape": list(SHAPE)}


def test_equal_rows_give_equal_bytes_without_a_trace_of_time_or_place() -> None:
    first = encode_shard(shape_plan(), 0, ROWS, results(), {"chunk": 2})
    assert encode_shard(shape_plan(), 0, ROWS, results(), {"chunk": 2}) == first
    assert encode_shard(shape_plan(), 0, ROWS, results(), {"chunk": 1}) != first


def test_reading_a_column_of_words_does_not_read_the_maps() -> None:
    table = decode_shard(encode_shard(shape_plan(), 0, ROWS, results(), {}), ["class", "error"])
    assert table.column_names == ["class", "error"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_maps_are_lists_of_equal_length_whose_numbers_are_read_without_a_copy(dtype: str) -> None:
    table = decode_shard(encode_shard(shape_plan(map_dtype=dtype), 0, ROWS, results(dtype), {}))
    assert table.schema.field("map").type == pa.list_(pa.type_for_alias(dtype))
    maps = table["map"].chunk(0)
    assert maps.is_null().to_pylist() == [False, False, False, True, False]
    values = maps.flatten().to_numpy(zero_copy_only=True).reshape(-1, *SHAPE)
    assert np.shares_memory(values, maps.values.to_numpy(zero_copy_only=True))
    expected = [result.map for result in results(dtype) if isinstance(result, RowResult)]
    np.testing.assert_array_equal(values, np.stack(expected))


def test_a_shard_without_any_map_is_read(tmp_path: Path) -> None:
    failed = [RowError("the file is empty (0 bytes)", "permanent")] * 5
    table = decode_shard(encode_shard(shape_plan(), 0, ROWS, failed, {}))
    assert table["map"].to_pylist() == [None] * 5
    assert table.schema.field("map").type == pa.list_(pa.float16())


def test_maps_of_an_earlier_version_are_read_or_refused_in_a_sentence() -> None:
    old = shape_plan(format=1)
    whole = results()
    whole[3] = whole[4]
    table = decode_shard(encode_shard(old, 0, ROWS, whole, {}))
    assert table.schema.field("map").type == pa.list_(pa.float16(), 2 * 6 * 7)
    assert table["map"].to_pylist() == decode_shard(encode_shard(shape_plan(), 0, ROWS, whole, {}))["map"].to_pylist()
    if int(pa.__version__.partition(".")[0]) >= 26:
        maps = decode_shard(encode_shard(old, 0, ROWS, results(), {}))["map"]
        assert maps.to_pylist() == decode_shard(encode_shard(shape_plan(), 0, ROWS, results(), {}))["map"].to_pylist()
    else:
        with pytest.raises(ImportError, match=rf"which pyarrow {pa.__version__} cannot .* install pyarrow 26 or newer"):
            decode_shard(encode_shard(old, 0, ROWS, results(), {}))


def test_a_map_with_too_few_numbers_is_refused() -> None:
    import io

    table = decode_shard(encode_shard(shape_plan(), 0, ROWS, results(), {}))
    place = table.schema.get_field_index("map")
    short = pa.array([values and values[:-1] for values in table["map"].to_pylist()], pa.list_(pa.float16()))
    content = io.BytesIO()
    pa.parquet.write_table(table.set_column(place, table.schema.field(place), short), content)
    with pytest.raises(ValueError, match="there is a map of 83 numbers instead of 84"):
        decode_shard(content.getvalue())
    assert decode_shard(content.getvalue(), ["error"]).num_rows == 5


def test_maps_and_rows_that_are_not_the_plans_are_refused() -> None:
    plan = shape_plan()
    with pytest.raises(ValueError, match=r"shard 0 has 5 rows, got 4 and 5 results"):
        encode_shard(plan, 0, ROWS[:4], results(), {})
    with pytest.raises(ValueError, match=r"expected a map \(2, 6, 7\) of float16, got \(2, 6, 7\) of float32"):
        encode_shard(plan, 0, ROWS, results("float32"), {})


def test_what_is_no_shard_is_refused() -> None:
    content = encode_shard(shape_plan(), 0, ROWS, results(), {})
    with pytest.raises(ValueError, match="not a whole file of maps"):
        decode_shard(content[:-10])
    import io

    other = io.BytesIO()
    pa.parquet.write_table(pa.table({"a": [1]}), other)
    with pytest.raises(ValueError, match="not a file of maps that fampe_fast wrote"):
        decode_shard(other.getvalue())


def test_shards_are_found_by_their_names(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    assert finished_shards(storage) == set()
    for shard in (0, 7, 1000, 1_234_567):
        storage.write(shard_name(shard), b"x")
    storage.write("maps/000/notes.txt", b"x")
    assert shard_name(1000) == "maps/001/001000.parquet"
    assert finished_shards(storage) == {0, 7, 1000, 1_234_567}
