"""Compare the stored result of an image with a newly computed one."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from .result import Result, RowError, RowResult, attribution_of
from .summaries import FloatArray, Summary

CORRELATION = 0.99
"""Least Pearson correlation at which a map of another machine or version counts as alike."""
LARGEST = 0.1
"""Largest difference of such a map, as a share of the map's largest magnitude."""
PROBABILITY = 0.01
"""Largest difference of the probability."""

Outcome = Literal["same", "alike", "different", "no map", "unread"]


class Comparison(NamedTuple):
    """A stored result and the newly computed one."""

    outcome: Outcome
    """``same``: bitwise. ``alike``: within the changes by another machine or version. ``no map``: there is none for
    a reason that may pass. ``unread``: the image cannot be read now."""
    reason: str
    """The difference, or the reason why they were not compared; empty if they are the same."""
    correlation: float | None = None
    """Pearson correlation of the maps; None without two maps or for a constant one."""
    largest: float | None = None
    """Largest difference of the maps, as a share of the stored one's largest magnitude."""

    @property
    def right(self) -> bool:
        """Whether the stored result is confirmed, or cannot be refuted."""
        return self.outcome in ("same", "alike", "no map")


def compare(stored: Result, found: Result, *, exact: bool) -> Comparison:
    """Compare the stored result of a row with a newly computed one.

    Args:
        stored: the result read from the shard.
        found: the worker's new result.
        exact: whether equal bits are expected, so that anything else is different.
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
        reason += " (only last bits: computed on another processor, or changed by hand)"
    return Comparison("different", reason, correlation, largest)


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
    """List the columns besides the map whose stored values would differ."""
    names = {"target": "target", "class_name": "class", "predicted": "predicted", "overlay": "overlay"}
    changed = [column for name, column in names.items() if getattr(stored, name) != getattr(found, name)]
    numbers = {"probability": "probability", "cutoff": "cutoff", "scale": "map_scale"}
    pairs = [(column, getattr(stored, name), getattr(found, name)) for name, column in numbers.items()]
    pairs += [(name, getattr(stored.summary, name), getattr(found.summary, name)) for name in Summary._fields]
    return changed + [name for name, one, other in pairs if _bits(one) != _bits(other)]


def _bits(value: float | None) -> bytes | None:
    return None if value is None or math.isnan(value) else np.float32(value).tobytes()
