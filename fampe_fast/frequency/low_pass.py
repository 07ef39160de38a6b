"""The low-pass filter of FORGrad (Muzellec et al., "Saliency strikes back", arXiv 2307.09591, section 4)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..checks import check_cutoff
from ..reference.radius import squared_radius

DEFAULT_CUTOFF = 15.0
"""Cycles over the shorter side; what the paper finds for the gradient of a ResNet-50 at 224 pixels is of this order."""


def low_pass(values: Tensor, cutoff: float) -> Tensor:
    """Keep the frequencies of a hard disc, ``r <= cutoff``, DC included; linear, and an orthogonal projection.

    Args:
        values: (..., H, W), real floating-point, of any signs; float16 and bfloat16 are filtered in float32.
        cutoff: radius of the disc in cycles over the shorter side, 0 or more; 0 keeps the mean alone.

    Returns:
        (..., H, W) in the dtype of ``values``; differentiable.

    Raises:
        TypeError: ``values`` is not real and floating-point, or the cut-off is no number.
        ValueError: fewer than two dimensions, an empty side, or a cut-off that is negative, not finite or above 1e15.
    """
    cutoff = check_cutoff("cutoff", cutoff)
    if not isinstance(values, Tensor) or not values.is_floating_point():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"values must be a real floating-point tensor, got {kind}")
    if values.ndim < 2 or 0 in values.shape[-2:]:
        raise ValueError(f"values must be (..., H, W) with H and W at least 1, got shape {tuple(values.shape)}")
    if not values.numel():
        return values.clone()
    height, width = values.shape[-2:]
    wide = values.double() if values.dtype == torch.float64 else values.float()
    spectrum = torch.fft.rfft2(wide) * _disc(height, width, cutoff, values.device)
    filtered: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
    return filtered.to(values.dtype)


@lru_cache(maxsize=16)
def _disc(height: int, width: int, cutoff: float, device: torch.device) -> Tensor:
    # In float64, and with room for its rounding: a radius that is the cut-off itself belongs to the disc.
    with torch.inference_mode(False):  # it is kept for calls outside, too
        inside = squared_radius(height, width, dtype=torch.float64) <= cutoff**2 * (1 + 1e-12)
        return inside.to(device)


def filtered_map(maps: Tensor, cutoff: float = DEFAULT_CUTOFF) -> Tensor:
    """FORGrad's map: the signed mean over channels, low-passed, its absolute value.

    Args:
        maps: (B, C, H, W), attribution maps or gradients with their signs.
        cutoff: radius of the disc in cycles over the shorter side.

    Returns:
        (B, 1, H, W), not negative.

    Raises:
        TypeError, ValueError: as ``low_pass``; also for maps that are not (B, C, H, W).
    """
    if isinstance(maps, Tensor) and maps.ndim != 4:
        raise ValueError(f"maps must be (B, C, H, W), got shape {tuple(maps.shape)}")
    return low_pass(maps.mean(1, keepdim=True), cutoff).abs()
