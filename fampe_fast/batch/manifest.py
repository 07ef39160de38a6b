"""List the finished shards with their digests, in a file that can be made from the shards at any time."""

from __future__ import annotations

import hashlib
import io
from typing import NamedTuple

from ..files import MARK
from .extras import parquet_modules
from .plan import Plan
from .run_log import logged
from .shards import finished_shards, shard_metadata, shard_name
from .storage import Storage

MANIFEST = "manifest.parquet"
KIND = "batch manifest"


class Entry(NamedTuple):
    """A finished shard."""

    shard: int
    rows: int
    errors: int
    """Rows without a map."""
    transient: int
    """Rows of these whose errors may be temporary."""
    bytes: int
    sha256: str
    """SHA-256 of the file."""


def write_manifest(storage: Storage, plan: Plan) -> list[Entry]:
    """Write the list of all finished shards.

    Digests that processes have logged for these files are used, so that a terabyte of maps is not read again.

    Raises:
        OSError: a shard cannot be read, or the list cannot be written.
        ValueError: a file is not a shard of this plan.
    """
    known = logged_entries(storage, plan)
    entries = [_entry(storage, plan, shard, known.get(shard)) for shard in sorted(finished_shards(storage))]
    store_manifest(storage, plan, entries)
    return entries


def store_manifest(storage: Storage, plan: Plan, entries: list[Entry]) -> None:
    """Write a list of shards.

    Raises:
        OSError: the list cannot be written.
    """
    storage.write(MANIFEST, _encoded(plan, entries))


def logged_entries(storage: Storage, plan: Plan) -> dict[int, Entry]:
    """Read the processes' log entries of each shard, the latest if it was made again."""
    lines = [line for line in logged(storage, "shard") if line.get("plan") == plan.key]
    lines.sort(key=lambda line: float(line["time"]))
    return {int(line["shard"]): Entry(**{name: line[name] for name in Entry._fields}) for line in lines}


def _entry(storage: Storage, plan: Plan, shard: int, known: Entry | None) -> Entry:
    if known is not None and known.bytes == storage.size(shard_name(shard)):
        return known
    described = shard_metadata(storage, shard)
    if described.get("plan") != plan.key:
        raise ValueError(f"{storage}/{shard_name(shard)} belongs to another plan")
    content = storage.read(shard_name(shard))
    rows, errors, transient = (described[name] for name in ("rows", "errors", "transient"))
    return Entry(shard, rows, errors, transient, len(content), hashlib.sha256(content).hexdigest())


def _encoded(plan: Plan, entries: list[Entry]) -> bytes:
    pa, pq = parquet_modules()
    kinds = [pa.int64()] * 5 + [pa.string()]
    schema = pa.schema(list(zip(Entry._fields, kinds, strict=True)), metadata={MARK: KIND, "plan": plan.key})
    buffer = io.BytesIO()
    pq.write_table(
        pa.Table.from_pylist([entry._asdict() for entry in entries], schema=schema), buffer, compression="zstd"
    )
    return buffer.getvalue()


def read_manifest(storage: Storage) -> list[Entry]:
    """Read the list.

    Raises:
        OSError: the list does not exist or cannot be read.
    """
    pa, pq = parquet_modules()
    # Not by read_table: its threads hold a Python file beyond the read, and may abort the process when it exits.
    with pq.ParquetFile(pa.BufferReader(storage.read(MANIFEST))) as file:
        return [Entry(**row) for row in file.read().to_pylist()]
