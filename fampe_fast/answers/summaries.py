"""Summarise a map in a few numbers: the frequencies, the centre and the spread of its evidence."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

LOW, HIGH = 6.0, 24.0
"""Radii, in cycles over the shorter side, between which a map's energy belongs to the middle band."""


class Summary(NamedTuple):
    """The summaries of a map; NaN for values that it does not have, such as the centre of a map of zeros."""

    energy_low: float
    """Share of the map's spectral energy, DC left out, at radii up to ``LOW``."""
    energy_mid: float
    """The same above ``LOW`` and up to ``HIGH``."""
    energy_high: float
    """Above ``HIGH``."""
    centre_row: float
    """Mean vertical position of the positive evidence, 0 at the top, 1 at the bottom."""
    centre_column: float
    """Mean horizontal position, 0 at the left, 1 at the right."""
    entropy: float
    """Entropy of the positive evidence over the pixels, in nats: 0 for one pixel, log(H W) for a constant map."""


def summarise(attribution: FloatArray) -> Summary:
    """Summarise a map (C, H, W); its channels are summed, with their signs.

    NumPy's transform gives the same bits with any number of threads.
    """
    evidence = attribution.astype(np.float64).sum(0)
    peak = float(np.abs(evidence).max())
    if peak == 0 or not math.isfinite(peak):
        return Summary(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan)
    evidence = evidence / peak  # squares of small values would underflow
    height, width = evidence.shape
    index, weight = _rings(height, width)
    power = (np.abs(np.fft.rfft2(evidence)) ** 2 * weight).ravel()
    rings = np.bincount(index, power, 4)[1:]
    # Rounding errors of a constant map are not energy.
    varies = evidence.max() > evidence.min() and rings.sum() > 0
    shares = rings / rings.sum() if varies else np.full(3, math.nan)
    low, mid, high = shares.tolist()
    return Summary(low, mid, high, *_spread(np.maximum(evidence, 0)))


def _spread(positive: FloatArray) -> tuple[float, float, float]:
    total = positive.sum()
    if total == 0:
        return math.nan, math.nan, math.nan
    share = positive / total
    height, width = share.shape
    row = float(share.sum(1) @ ((np.arange(height) + 0.5) / height))
    column = float(share.sum(0) @ ((np.arange(width) + 0.5) / width))
    held = share[share > 0]
    return row, column, float(-(held * np.log(held)).sum())


@lru_cache(maxsize=8)
def _rings(height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the ring of each coefficient, flat, 0 for DC and 1 to 3, and its multiplicity, (H, W//2 + 1)."""
    from ..frequency.bands import bands_between
    from ..reference.radius import multiplicity

    index = bands_between(height, width, [LOW, HIGH]).index[0]
    weight = multiplicity(width).expand(height, -1)
    return (index + 1).flatten().numpy(), weight.numpy()
