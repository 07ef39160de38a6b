"""Read the maps of a batch run, shard by shard, as NumPy arrays or torch tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .plan import plan_of
from .shards import decode_shard, finished_shards, shard_name
from .storage import Storage, open_storage

if TYPE_CHECKING:
    import pyarrow as pa


def read_maps(
    dest: str | os.PathLike[str],
    *,
    columns: Sequence[str] | None = None,
    shards: Sequence[int] | None = None,
    as_torch: bool = False,
    errors: bool = True,
) -> Iterator[dict[str, Any]]:
    """Read the maps of a batch run, a shard at a time.

    Args:
        dest: folder or URL of the run.
        columns: the columns to read; None for all. Other columns are not read: without ``map`` a shard takes almost no
            time.
        shards: the finished shards to read; None for all, in order.
        as_torch: return tensors for columns of numbers.
        errors: include rows without a map.

    Yields:
        For each shard its columns, by name. ``map`` is float32 (rows, C, H, W), the attribution itself: the stored
        numbers times ``map_scale``. In rows without a map, it and all other fractions are NaN, whole numbers are -1,
        and texts are None.

    Raises:
        TypeError: ``columns`` or ``shards`` is a single name or number.
        ValueError: nothing is planned in the place, a column that does not exist, or a file that is not a shard.
        OSError: a shard that does not exist or cannot be read.
        ImportError: pyarrow, or a package for the URL, is not installed, or pyarrow is older than 26 and an earlier
            version of this package wrote the maps.
    """
    if isinstance(columns, str):
        raise TypeError(f"columns must be a sequence of names, got {columns!r}")
    if isinstance(shards, int):
        raise TypeError(f"shards must be a sequence of numbers, got {shards!r}")
    storage = open_storage(dest)
    found = sorted(finished_shards(storage)) if shards is None else shards
    if not found:
        plan_of(storage)
    return _each(storage, found, columns, as_torch, errors)


def _each(
    storage: Storage, shards: Sequence[int], columns: Sequence[str] | None, as_torch: bool, errors: bool
) -> Iterator[dict[str, Any]]:
    for shard in shards:
        wanted = None if columns is None else {*columns, "error"}
        if wanted is not None and "map" in wanted:
            wanted.add("map_scale")
        try:
            with storage.open(shard_name(shard)) as file:
                table = decode_shard(file, None if wanted is None else sorted(wanted))
        except ValueError as error:
            raise ValueError(f"{storage}/{shard_name(shard)}: {error}") from error
        if not errors:
            table = table.filter(table["error"].is_null())
        found = {name: _array(table, name) for name in (table.column_names if columns is None else columns)}
        if as_torch:
            import torch

            found = {name: torch.from_numpy(value) if value.dtype != object else value for name, value in found.items()}
        yield found


def _array(table: pa.Table, name: str) -> Any:
    import pyarrow as pa

    column = table[name].combine_chunks()
    if name == "map":
        return _attributions(table)
    if pa.types.is_floating(column.type):
        return column.fill_null(float("nan")).to_numpy(zero_copy_only=False).copy()
    if pa.types.is_integer(column.type):
        # torch cannot compute with unsigned 32-bit numbers.
        return column.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False).copy()
    return np.array([*column.to_pylist(), None], dtype=object)[:-1]


def _attributions(table: pa.Table) -> Any:
    """Compute the maps times their scale, (rows, C, H, W) float32."""
    column: Any = table["map"].combine_chunks()
    shape = shape_of(table)
    maps = np.full((len(column), *shape), np.nan, np.float32)
    there = ~np.asarray(column.is_null())
    values = column.flatten().to_numpy(zero_copy_only=False)  # without those of nulls
    scale = np.asarray(table["map_scale"].combine_chunks().fill_null(1.0))[there]
    maps[there] = values.reshape(-1, *shape).astype(np.float32) * scale[:, None, None, None]
    return maps


def shape_of(table: pa.Table) -> tuple[int, int, int]:
    """Read the shape (C, H, W) of a shard's maps."""
    channels, height, width = json.loads(table.schema.metadata[b"shape"])
    return channels, height, width
