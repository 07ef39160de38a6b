"""Compute rows of finished shards again, and say how the new results differ from what is stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from ..models.classifier import Classifier
from ..ops.backends import choice
from .plan import Plan, read_rows
from .planning import versions_now
from .reading import shape_of
from .shards import Result, RowError, RowResult, decode_shard, shard_metadata, shard_name
from .storage import Storage
from .summaries import FloatArray, Summary
from .worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa

CORRELATION = 0.99
"""The least Pearson correlation at which a map of another machine or version counts as the same evidence."""
LARGEST = 0.1
"""The largest difference that is allowed to it, as a share of the map's largest magnitude."""
PROBABILITY = 0.01
"""That of the probability."""

Outcome = Literal["same", "alike", "different", "no map", "unread"]


class Comparison(NamedTuple):
    """A stored result beside the one that was computed now."""

    outcome: Outcome
    """``same``: to the bit. ``alike``: within what another machine or version may change. ``no map``: there is none for
    a reason that may pass. ``unread``: the image cannot be read now."""
    reason: str
    """What is different, or why it was not compared; empty where it is the same."""
    correlation: float | None = None
    """Pearson's, of the maps; None without two maps or for an even one."""
    largest: float | None = None
    """The largest difference of the maps, as a share of the stored one's largest magnitude."""

    @property
    def right(self) -> bool:
        """Whether nothing speaks against what is stored."""
        return self.outcome in ("same", "alike", "no map")


class Recomputed(NamedTuple):
    """A row that was computed again."""

    position: int
    shard: int
    image_id: int
    address: str
    stored: Result
    found: Result
    comparison: Comparison


class Recomputer:
    """Computes stored rows again: with a worker's own method, in the batch and at the chunk that they were made in."""

    def __init__(
        self,
        storage: Storage,
        plan: Plan,
        *,
        device: str | None = None,
        classifier: Classifier | None = None,
        processes: int | None = None,
        trust_model: bool = False,
    ) -> None:
        """Load the plan's model.

        Args:
            storage: where the shards are.
            plan: theirs.
            device: of any kind; None for the plan's kind.
            classifier: the plan's model, where it is loaded already.
            processes: 0 decodes in this process, which an image may then kill.
            trust_model: load also a model that is a program.

        Raises:
            ValueError: another model or method than the plan's.
            ImportError: a package that the plan needs is not installed.
        """
        self._storage, self._plan = storage, plan
        self._device = torch.device(device or plan.device)
        backend = plan.backend
        if self._device.type != plan.device:
            backend = choice(self._device)[0]
        self._differences = [
            f"{name} {then} then, {now} now"
            for name, then, now in (("device", plan.device, self._device.type), ("backend", plan.backend, backend))
            if then != now
        ]
        here = replace(plan, device=self._device.type, backend=backend)
        self._worker = Worker(
            storage,
            device=str(self._device),
            classifier=classifier,
            processes=processes,
            trust_model=trust_model,
            plan=here,
        )

    def close(self) -> None:
        """End the process that decodes."""
        self._worker.close()

    def differences(self, described: dict[str, Any]) -> list[str]:
        """List what differs from the making of a shard, for which equal bits cannot be expected.

        Args:
            described: the shard's metadata.
        """
        then, now = described.get("versions") or {}, versions_now()
        return self._differences + [
            f"{name} {then.get(name)} then, {now.get(name)} now"
            for name in dict.fromkeys((*then, *now))
            if then.get(name) != now.get(name)
        ]

    def differences_of(self, shards: Sequence[int]) -> list[str]:
        """List likewise what differs from the making of any of some shards."""
        found = (self.differences(shard_metadata(self._storage, shard)) for shard in shards)
        return list(dict.fromkeys(reason for one in found for reason in one))

    def rows(self, shard: int, positions: Sequence[int]) -> list[Recomputed]:
        """Compute some rows of a shard again.

        Args:
            shard: its number.
            positions: of the rows, in the plan.

        Raises:
            OSError, ValueError: the shard cannot be read.
            RuntimeError: the device fails.
        """
        rows = read_rows(self._storage, self._plan, shard)
        described = shard_metadata(self._storage, shard)
        with self._storage.open(shard_name(shard)) as file:
            table = decode_shard(file)
        exact = not self.differences(described)
        first, size = rows[0].position, self._plan.batch_size
        made: dict[int, list[Result]] = {}
        compared = []
        for position in positions:
            batch, place = divmod(position - first, size)
            if batch not in made:
                made[batch] = self._worker.batch(rows[batch * size : (batch + 1) * size], int(described["chunk"]))
            row, stored, found = rows[position - first], stored_result(table, position - first), made[batch][place]
            comparison = compare(stored, found, exact=exact)
            compared.append(Recomputed(position, shard, row.image_id, row.address, stored, found, comparison))
        return compared


def stored_result(table: pa.Table, place: int) -> Result:
    """Read a row of a shard as what it was made from."""
    row = table.slice(place, 1)
    values = row.drop_columns(["map"]).to_pylist()[0]
    if values["error"] is not None:
        return RowError(values["error"], values["error_kind"])
    numbers = row["map"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(shape_of(table))
    return RowResult(
        values["target"],
        values["class"],
        values["probability"],
        values["predicted"],
        values["cutoff"],
        values["map_scale"],
        numbers,
        Summary(*(math.nan if values[name] is None else values[name] for name in Summary._fields)),
        values["overlay"],
    )


def compare(stored: Result, found: Result, *, exact: bool) -> Comparison:
    """Compare what is stored of a row with what was computed of it now.

    Args:
        stored: as read from the shard.
        found: as the worker makes it.
        exact: whether equal bits are expected, and anything else is different.
    """
    if isinstance(stored, RowError) and stored.kind == "transient":
        return Comparison("no map", f"{stored.reason} (batch --retry-errors tries again)")
    if isinstance(found, RowError) and found.kind == "transient":
        return Comparison("unread", found.reason)
    if isinstance(stored, RowError) and isinstance(found, RowError):
        if stored == found:
            return Comparison("same", "")
        reason = f"the error was {stored.reason!r}, and is {found.reason!r} now"
        return Comparison("different" if exact else "alike", reason)
    if isinstance(stored, RowError):
        return Comparison("different", f"it has no map ({stored.reason}), and gets one now")
    if isinstance(found, RowError):
        return Comparison("different", f"it has a map, and gets none now: {found.reason}")
    correlation, largest = _distance(attribution_of(stored), attribution_of(found))
    others = _other_values(stored, found)
    same = not others and stored.map.tobytes() == found.map.tobytes()
    if same:
        return Comparison("same", "", correlation, largest)
    alike = correlation is not None and largest is not None and correlation >= CORRELATION and largest <= LARGEST
    alike = alike and abs(stored.probability - found.probability) <= PROBABILITY and stored.target == found.target
    if not exact and alike:
        return Comparison("alike", "", correlation, largest)
    changed = ["map"] if stored.map.tobytes() != found.map.tobytes() else []
    reason = f"other values: {', '.join(changed + others)}"
    if exact and alike:
        reason += " (other last bits, as another model of processor or GPU gives them, or values changed by hand)"
    return Comparison("different", reason, correlation, largest)


def attribution_of(result: RowResult) -> FloatArray:
    """Take a map itself, (C, H, W) float32: what is stored times its power of two."""
    scaled: FloatArray = result.map.astype(np.float32) * np.float32(result.scale)
    return scaled


def _distance(stored: FloatArray, found: FloatArray) -> tuple[float | None, float | None]:
    one, other = (array.astype(np.float64).ravel() for array in (stored, found))
    if one.tobytes() == other.tobytes():
        return 1.0, 0.0
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return None, None
    peak = float(np.abs(one).max()) or 1.0
    spread = float(one.std() * other.std())
    covariance = float(((one - one.mean()) * (other - other.mean())).mean())
    return covariance / spread if spread else None, float(np.abs(one - other).max()) / peak


def _other_values(stored: RowResult, found: RowResult) -> list[str]:
    """Name the columns besides the map that differ, as they would be stored."""
    names = {"target": "target", "class_name": "class", "predicted": "predicted", "overlay": "overlay"}
    changed = [column for name, column in names.items() if getattr(stored, name) != getattr(found, name)]
    numbers = {"probability": "probability", "cutoff": "cutoff", "scale": "map_scale"}
    pairs = [(column, getattr(stored, name), getattr(found, name)) for name, column in numbers.items()]
    pairs += [(name, getattr(stored.summary, name), getattr(found.summary, name)) for name in Summary._fields]
    return changed + [name for name, one, other in pairs if _bits(one) != _bits(other)]


def _bits(value: float | None) -> bytes | None:
    return None if value is None or math.isnan(value) else np.float32(value).tobytes()
