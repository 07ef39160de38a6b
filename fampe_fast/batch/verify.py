"""Check that a run's shards exist, are complete and as planned, and compute a sample of their rows again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from .manifest import MANIFEST, Entry, logged_entries, read_manifest, store_manifest
from .plan import Plan, Row, check_rows, every_row, read_rows
from .recompute import Recomputed, Recomputer
from .shards import checked_metadata, decode_shard, finished_shards, schema_of, shard_name
from .sources import SeenIds
from .storage import Storage

if TYPE_CHECKING:
    import pyarrow as pa


class Fault(NamedTuple):
    """An error found by a check."""

    shard: int | None
    """Number of the shard; None if it concerns no shard."""
    reason: str


@dataclass
class Checked:
    """The result of checking a run's files.

    Attributes:
        entries: the correct shards, as entries of a manifest.
        faults: the errors.
        notes: remarks that are not errors.
    """

    entries: list[Entry] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_files(storage: Storage, plan: Plan, on_shard: Callable[[], None] = lambda: None) -> Checked:
    """Read every shard once, compare it with the plan and the manifest, and make a missing manifest.

    Args:
        storage: the run's storage.
        plan: the run's plan.
        on_shard: called after each shard.

    Raises:
        ValueError: nothing is explained yet.
        OSError: the plan cannot be read.
    """
    there = finished_shards(storage)
    if not there:
        raise ValueError(f"none of the {plan.shards} shards is in {storage} yet: the run has not begun")
    checked = Checked()
    try:
        check_rows(storage, plan)
    except ValueError as error:
        checked.faults.append(Fault(None, str(error)))
    seen = SeenIds()
    twice = [row.image_id for row in every_row(storage, plan) if not seen.add(row.image_id)]
    if twice:
        checked.faults.append(Fault(None, f"the plan has the image id {twice[0]} more than once"))
    missing = sorted(set(range(plan.shards)) - there)
    if missing:
        checked.faults.append(
            Fault(missing[0], f"{len(missing)} of {plan.shards} shards are not there: {spans(missing)}")
        )
    foreign = sorted(there - set(range(plan.shards)))
    if foreign:
        checked.faults.append(Fault(foreign[0], f"there are shards that the plan does not have: {spans(foreign)}"))
    listed, remake = _listed(storage, checked)
    logged = logged_entries(storage, plan)
    for shard in sorted(there - set(foreign)):
        remake |= _check_shard(storage, plan, shard, listed.get(shard), logged.get(shard), checked)
        on_shard()
    if remake and not checked.faults:
        store_manifest(storage, plan, checked.entries)
        checked.notes.append(f"{MANIFEST} was missing or old, and is made anew")
    return checked


def _listed(storage: Storage, checked: Checked) -> tuple[dict[int, Entry], bool]:
    """Read the manifest, and tell whether there is none."""
    if not storage.exists(MANIFEST):
        return {}, True
    try:
        return {entry.shard: entry for entry in read_manifest(storage)}, False
    except (OSError, ValueError, TypeError) as error:
        checked.faults.append(Fault(None, f"{MANIFEST} cannot be read ({error}): remove it, and it is made anew"))
        return {}, False


def _check_shard(
    storage: Storage, plan: Plan, shard: int, listed: Entry | None, logged: Entry | None, checked: Checked
) -> bool:
    """Check one shard, and tell whether it is newer than the manifest."""
    faults: list[Fault] = []
    try:
        content = storage.read(shard_name(shard))
    except OSError as error:
        checked.faults.append(Fault(shard, f"cannot be read: {error.strerror or error}"))
        return False
    digest = hashlib.sha256(content).hexdigest()
    old = listed is not None and listed.sha256 != digest
    again = logged is not None and logged.sha256 == digest
    if old and not again:
        assert listed is not None
        faults.append(Fault(shard, f"its SHA-256 is {digest[:16]}..., and {listed.sha256[:16]}... in {MANIFEST}"))
    elif listed is None and logged is not None and not again:
        faults.append(Fault(shard, f"its SHA-256 is {digest[:16]}..., and {logged.sha256[:16]}... in the log"))
    try:
        table = decode_shard(content)
        described = checked_metadata(table.schema.metadata)
        rows = read_rows(storage, plan, shard)
        faults += [Fault(shard, reason) for reason in _wrong(plan, shard, described, table, rows)]
        if not faults:
            errors, transient = described["errors"], described["transient"]
            checked.entries.append(Entry(shard, len(rows), errors, transient, len(content), digest))
        if described.get("chunk") != plan.internal_batch_size:
            checked.notes.append(
                f"shard {shard} was made in chunks of {described.get('chunk')} instead of {plan.internal_batch_size} "
                "for lack of memory: its last bits differ"
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        faults.append(Fault(shard, f"is not a whole file of maps: {' '.join(str(error).split())}"))
    checked.faults += faults
    return old and not faults


def _wrong(plan: Plan, shard: int, described: dict[str, Any], table: pa.Table, rows: Sequence[Row]) -> Iterator[str]:
    """Describe a shard's differences from the plan."""
    if described.get("plan") != plan.key:
        yield "belongs to another plan"
    if described.get("shard") != shard:
        yield f"is shard {described.get('shard')} by its own words"
    if described.get("shape") != list(plan.shape):
        yield f"has maps of {described.get('shape')} instead of {list(plan.shape)}"
    expected = schema_of(plan)
    if not table.schema.equals(expected):
        names = [name for name in expected.names if name not in table.schema.names]
        yield f"has other columns than it should{f', without {names[0]!r}' if names else ''}"
        return
    if table.num_rows != len(rows):
        yield f"has {table.num_rows} rows instead of {len(rows)}"
        return
    planned: dict[str, list[Any]] = {
        "image_id": [row.image_id for row in rows],
        "uri": [row.shown_uri for row in rows],
        "container": [row.shown_container for row in rows],
    }
    for name, values in planned.items():
        found = table[name].to_pylist()
        wrong = [k for k, pair in enumerate(zip(found, values, strict=True)) if pair[0] != pair[1]]
        if wrong:
            first, more = wrong[0], "" if len(wrong) == 1 else f" (the first of {len(wrong)} such rows)"
            yield f"row {first} has the {name} {found[first]!r} instead of {values[first]!r}{more}"
    errors = [error is not None for error in table["error"].to_pylist()]
    kinds = table["error_kind"].to_pylist()
    if any(errors[k] != (kind in ("permanent", "transient")) for k, kind in enumerate(kinds)):
        yield "has errors of no kind"
    for name in ("map", "map_scale", "target", "probability"):
        if table[name].is_null().to_pylist() != errors:
            yield f"has rows with neither an error nor a {name}, or with both"
    targets = table["target"].to_pylist()
    asked = [k for k, row in enumerate(rows) if row.target is not None and not errors[k] and targets[k] != row.target]
    if asked:
        yield f"row {asked[0]} explains the class {targets[asked[0]]} instead of {rows[asked[0]].target}"
    counted = {"rows": len(rows), "errors": sum(errors), "transient": kinds.count("transient")}
    for name, count in counted.items():
        if described.get(name) != count:
            yield f"has {count} {name}, and {described.get(name)} by its own words"


def check_sample(
    storage: Storage,
    plan: Plan,
    checked: Checked,
    recomputer: Recomputer,
    *,
    sample: int,
    seed: int = 0,
    on_row: Callable[[Recomputed], None] = lambda row: None,
) -> list[Recomputed]:
    """Compute random rows of the correct shards again.

    Args:
        storage: the run's storage.
        plan: the run's plan.
        checked: result of checking its files.
        recomputer: the run's recomputer.
        sample: number of rows, at most all.
        seed: seed of the sample.
        on_row: called for each row.

    Raises:
        RuntimeError: the device fails.
    """
    shards = [entry.shard for entry in checked.entries]
    sizes = [len(plan.rows_of(shard)) for shard in shards]
    drawn = sorted(random.Random(seed).sample(range(sum(sizes)), min(sample, sum(sizes))))
    found: list[Recomputed] = []
    before = 0
    for shard, size in zip(shards, sizes, strict=True):
        places = [place - before for place in drawn if before <= place < before + size]
        before += size
        if places:
            start = plan.rows_of(shard).start
            for row in recomputer.rows(shard, [start + place for place in places]):
                found.append(row)
                on_row(row)
    return found


def spans(numbers: Sequence[int]) -> str:
    """Write sorted whole numbers as ranges, "0-3, 7", at most eight of them."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    words = [f"{first}" if first == last else f"{first}-{last}" for first, last in found[:8]]
    return ", ".join(words) + (", ..." if len(found) > 8 else "")
