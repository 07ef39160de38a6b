"""How much memory a launch's threads touch, in sectors of 32 bytes: what a GPU fetches at least for one access."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SECTOR = 32
WARP = 32
_ADDRESS_BITS = 43  # of a sector's number: addresses have 48


@dataclass
class Traffic:
    """Of one kernel in one direction.

    Attributes:
        moved: bytes of the sectors that each access of a warp touches, added up; what all lanes read alike is left out.
        sectors: numbers of the sectors that the accesses touched.
    """

    moved: int = 0
    sectors: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def footprint(self) -> int:
        """Bytes of all sectors, each counted once: what must be moved at least."""
        return SECTOR * len(_distinct(np.concatenate(self.sectors))) if self.sectors else 0


Counts = defaultdict[tuple[str, str], Traffic]
_active: list[Counts] = []


@contextmanager
def counting() -> Iterator[Counts]:
    """Count by (kernel, "ld" or "st") what the launches in this context touch."""
    counts: Counts = defaultdict(Traffic)
    _active.append(counts)
    try:
        yield counts
    finally:
        _active.remove(counts)


def note(kernel: str, kind: str, addresses: NDArray[np.int64], stamps: NDArray[np.int64]) -> None:
    """An access: one address for each thread, none of which reaches beyond its sector."""
    if not _active:
        return
    warp = (stamps - 1) // WARP
    first = np.r_[True, warp[1:] != warp[:-1]]  # threads come in order
    warp = np.cumsum(first) - 1
    if kind == "ld":
        leader = np.maximum.accumulate(np.where(first, np.arange(len(warp)), 0))
        alike = addresses == addresses[leader]
        differs = np.zeros(int(warp.max()) + 1, bool)
        differs[warp[~alike]] = True
        warp, addresses = warp[differs[warp]], addresses[differs[warp]]
    touched = _distinct((warp << _ADDRESS_BITS) | (addresses // SECTOR))
    for counts in _active:
        counts[kernel, kind].moved += SECTOR * len(touched)
        counts[kernel, kind].sectors.append(_distinct(touched & ((1 << _ADDRESS_BITS) - 1)))


def _distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort, and drop repetitions: ``np.unique`` hashes, which takes several times as long for what is nearly sorted."""
    found = np.sort(values, kind="stable")
    return found[np.r_[True, found[1:] != found[:-1]]] if len(found) else found
