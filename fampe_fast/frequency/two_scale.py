"""Combine a map's peaks and its low band in one ranking: first the peaks, then the areas around them."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .. import ops
from ..checks import check_batch, check_gaussian_cutoff


def two_scale_map(maps: Tensor, cutoff: float = 6.0) -> Tensor:
    """Compute ``sign(q) sqrt|q|``, ``q = F|F| + S|S|``: F the sum over the channels, S its Gaussian low-pass.

    A pixel's own evidence is precise but noisy, its neighbourhood's is robust but blurred; in the root of the summed
    squares the larger of the two dominates. Peaks rank first, which deletion rewards, and then the areas around them,
    which insertion rewards. Negative evidence keeps its sign. The formula was chosen on one half of the photographs and
    confirmed on the other (``docs/results/path.md``).

    Args:
        maps: (B, C, H, W), floating-point, finite; summed over the channels, signs kept.
        cutoff: cut-off of the low-pass ``exp(-r^2 / (2 cutoff^2))``, in cycles over the shorter side, greater than 0;
            in pixels a Gaussian with standard deviation ``min(H, W) / (2 pi cutoff)``, whose weights sum to 1 at the
            borders too.

    Returns:
        (B, 1, H, W) in the maps' unit, float32, or float64 for float64 maps; zero for a map of zeros.

    Raises:
        TypeError: maps that are not floating-point, a cut-off that is not a number.
        ValueError: maps that are not (B, C, H, W), a cut-off that is not in [1e-15, 1e15].
    """
    evidence = _summed(maps)
    peak = evidence.abs().amax((1, 2, 3), keepdim=True)
    fine = evidence / torch.where(peak > 0, peak, torch.ones_like(peak))  # squares would underflow or overflow
    coarse = _blurred(fine, cutoff)
    squares = fine * fine.abs() + coarse * coarse.abs()
    return peak * squares.sign() * squares.abs().sqrt()


def blurred_map(maps: Tensor, cutoff: float = 6.0) -> Tensor:
    """Compute only ``S`` of ``two_scale_map``: the sum over the channels, blurred by its Gaussian.

    Args:
        maps: as for ``two_scale_map``.
        cutoff: as for ``two_scale_map``.

    Returns:
        (B, 1, H, W) in the maps' unit, float32, or float64 for float64 maps.

    Raises:
        TypeError, ValueError: as ``two_scale_map``.
    """
    return _blurred(_summed(maps), cutoff)


def _summed(maps: Tensor) -> Tensor:
    maps = check_batch("maps", maps)
    return maps.to(torch.promote_types(maps.dtype, torch.float32)).sum(1, keepdim=True)


def _blurred(evidence: Tensor, cutoff: float) -> Tensor:
    cutoff = check_gaussian_cutoff("cutoff", cutoff, "greater than 0, not negative or zero")
    height, width = evidence.shape[-2:]
    deviation = min(height, width) / (2 * math.pi * cutoff)
    down, across = (smoothing_matrix(size, deviation, evidence.device, evidence.dtype) for size in (height, width))
    return ops.separable_transform(evidence, down, across)


@lru_cache(maxsize=16)
def smoothing_matrix(size: int, deviation: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Compute Gaussian weights between the pixels of a side, (size, size); every row sums to 1."""
    with torch.inference_mode(False):  # cached for later calls outside this context, too
        places = torch.arange(size, dtype=torch.float64, device="cpu")
        weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * deviation**2))
        return (weights / weights.sum(1, keepdim=True)).to(device, dtype)
