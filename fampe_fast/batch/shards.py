"""Encode the rows of a shard as one Parquet file, whose bytes depend only on the plan, and decode it.

The map is a plain list of numbers, which pandas, polars, DuckDB, Hugging Face's data sets and pyarrow can read; some of
them do not know Arrow's tensor type, others not the byte-stream split of half precision numbers, and pyarrow before 26
cannot read a null among fixed-size lists.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..answers.result import Result, RowError, RowResult
from ..answers.summaries import Summary
from ..files import MARK, json_text
from .extras import parquet_modules
from .plan import Plan, Row
from .storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa

KIND = "maps"
FOLDER = "maps"
ROWS_PER_GROUP = 32  # the smallest unit that a reader of one map must decode
MOST_NUMBERS = 2**31 - 1
"""The most numbers that pyarrow reads from the lists of one column of a file."""

_NAME = re.compile(FOLDER + r"/\d{3,}/(\d{6,})\.parquet")
_SHARDS_PER_FOLDER = 1000


def shard_name(shard: int) -> str:
    """Name the file of a shard, in folders with a limited number of files each."""
    return f"{FOLDER}/{shard // _SHARDS_PER_FOLDER:03d}/{shard:06d}.parquet"


def finished_shards(storage: Storage) -> set[int]:
    """List the shards whose files exist."""
    return {int(found[1]) for name in storage.names(FOLDER) if (found := _NAME.fullmatch(name))}


def schema_of(plan: Plan) -> pa.Schema:
    """Return the columns of a shard; all but the first three are null in a row with an error."""
    pa, _ = parquet_modules()
    number = pa.float16() if plan.map_dtype == "float16" else pa.float32()
    return pa.schema(
        [
            pa.field("image_id", pa.uint32(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("container", pa.string()),
            pa.field("target", pa.int32()),
            pa.field("class", pa.string()),
            pa.field("probability", pa.float32()),
            pa.field("predicted", pa.int32()),
            pa.field("cutoff", pa.float32()),
            pa.field("passes", pa.int32()),
            pa.field("error", pa.string()),
            pa.field("error_kind", pa.string()),
            pa.field("channels", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("width", pa.int32()),
            *(pa.field(name, pa.float32()) for name in Summary._fields),
            pa.field("map_scale", pa.float32()),
            pa.field("map", pa.list_(number, math.prod(plan.shape) if plan.format == 1 else -1)),
            pa.field("overlay", pa.binary()),
        ]
    )


def encode_shard(
    plan: Plan, shard: int, rows: Sequence[Row], results: Sequence[Result], metadata: Mapping[str, Any]
) -> bytes:
    """Encode a shard's rows; equal arguments give equal bytes.

    Args:
        plan: plan of the shard.
        shard: number of the shard.
        rows: all of its rows, in order.
        results: result of each row.
        metadata: further metadata of the file, in plain values without times, hosts or places.

    Raises:
        ValueError: not one result per row, or a map of another shape or dtype than the plan's.
        ImportError: pyarrow is too old for a plan of format 1.
    """
    pa, pq = parquet_modules()
    if len(rows) != len(plan.rows_of(shard)) or len(results) != len(rows):
        raise ValueError(
            f"shard {shard} has {len(plan.rows_of(shard))} rows, got {len(rows)} and {len(results)} results"
        )
    found = [result if isinstance(result, RowResult) else None for result in results]
    errors = [result if isinstance(result, RowError) else None for result in results]

    def each(name: str) -> list[Any]:
        return [None if one is None else getattr(one, name) for one in found]

    def there(value: Any) -> list[Any]:
        return [None if one is None else value for one in found]

    channels, height, width = plan.shape
    summaries = [None if one is None else one.summary for one in found]
    schema = schema_of(plan)
    columns: dict[str, Any] = {
        "image_id": [row.image_id for row in rows],
        "uri": [row.shown_uri for row in rows],
        "container": [row.shown_container for row in rows],
        "target": each("target"),
        "class": each("class_name"),
        "probability": each("probability"),
        "predicted": each("predicted"),
        "cutoff": each("cutoff"),
        "passes": there(metadata.get("passes")),
        "error": [None if error is None else error.reason for error in errors],
        "error_kind": [None if error is None else error.kind for error in errors],
        "channels": there(channels),
        "height": there(height),
        "width": there(width),
        **{
            name: [None if one is None else _or_none(getattr(one, name)) for one in summaries]
            for name in Summary._fields
        },
        "map_scale": each("scale"),
        "overlay": each("overlay"),
    }
    arrays = [
        _maps(plan, found, field.type) if field.name == "map" else pa.array(columns[field.name], field.type)
        for field in schema
    ]
    counts = {"rows": len(rows), "errors": len(rows) - sum(one is not None for one in found)}
    counts |= {"transient": sum(error is not None and error.kind == "transient" for error in errors)}
    described = {"plan": plan.key, "shard": shard, **counts, "shape": plan.shape, **metadata}
    table = pa.Table.from_arrays(
        arrays, schema=schema.with_metadata({MARK: KIND, **{key: json_text(value) for key, value in described.items()}})
    )
    buffer = io.BytesIO()
    words = ["container", "class", "error", "error_kind"]  # in other columns a dictionary would be a second copy
    with _advice_on_format_1():
        pq.write_table(
            table,
            buffer,
            row_group_size=ROWS_PER_GROUP,
            compression="zstd",
            compression_level=1,
            use_dictionary=words,
            write_statistics=["image_id", "target", "class", "probability", "predicted", *words[2:]],
        )
    return buffer.getvalue()


def _maps(plan: Plan, found: Sequence[RowResult | None], kind: Any) -> Any:
    pa, _ = parquet_modules()
    dtype = np.dtype(plan.map_dtype)
    for one in found:
        if one is not None and (one.map.shape != plan.shape or one.map.dtype != dtype):
            raise ValueError(f"expected a map {plan.shape} of {dtype}, got {one.map.shape} of {one.map.dtype}")
    return pa.array([None if one is None else one.map.ravel() for one in found], kind)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def decode_shard(shard: bytes | BinaryIO, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a shard's rows, or some of their columns, from its bytes or its open file.

    Raises:
        ValueError: the bytes are not a shard, there is no such column, or a map has not as many numbers as its shape.
        ImportError: pyarrow is too old for a shard of format 1.
    """
    pa, pq = parquet_modules()
    try:
        with (
            pq.ParquetFile(pa.BufferReader(shard) if isinstance(shard, bytes) else shard) as file,
            _advice_on_format_1(),
        ):
            described = checked_metadata(file.schema_arrow.metadata)
            for name in columns or ():
                if name not in file.schema_arrow.names:
                    raise ValueError(f"there is no column {name!r}; there are {', '.join(file.schema_arrow.names)}")
            table = file.read(columns=None if columns is None else list(columns))
    except pa.ArrowException as error:
        raise ValueError(f"not a whole file of maps: {error}") from error
    if "map" in table.column_names:
        import pyarrow.compute as pc

        expected = math.prod(described["shape"])
        counts = pc.list_value_length(table["map"]).drop_null().unique().to_pylist()
        if wrong := [count for count in counts if count != expected]:
            raise ValueError(f"there is a map of {wrong[0]} numbers instead of {expected}")
    return table


@contextlib.contextmanager
def _advice_on_format_1() -> Iterator[None]:
    pa, _ = parquet_modules()
    try:
        yield
    except pa.ArrowException as error:
        if "lists to be of size" in str(error) or "non-zero length null" in str(error):
            raise ImportError(
                f"an earlier version of {MARK} planned maps as fixed-size lists, which pyarrow {pa.__version__} cannot "
                "store or read where an image failed: install pyarrow 26 or newer, which needs Python 3.11"
            ) from error
        raise


def shard_metadata(storage: Storage, shard: int) -> dict[str, Any]:
    """Read the metadata of a shard's file, from its end only.

    Raises:
        OSError: it is not there or cannot be read.
        ValueError: it is no shard.
    """
    pa, pq = parquet_modules()
    try:
        with storage.open(shard_name(shard)) as file:
            found = pq.read_schema(file).metadata
    except pa.ArrowException as error:
        raise ValueError(f"{storage}/{shard_name(shard)} is not a whole file of maps: {error}") from error
    return checked_metadata(found)


def checked_metadata(found: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Read a shard's metadata from its schema.

    Raises:
        ValueError: it is no shard.
    """
    if (found or {}).get(MARK.encode()) != KIND.encode():
        raise ValueError(f"not a file of maps that {MARK} wrote")
    assert found is not None
    return {
        key.decode(): json.loads(value) for key, value in found.items() if key not in (MARK.encode(), b"ARROW:schema")
    }
