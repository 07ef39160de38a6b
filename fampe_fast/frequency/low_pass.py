"""Apply FORGrad's low-pass filter.

Muzellec, Fel, Boutin, Andéol, VanRullen and Serre, "Saliency strikes back: how filtering out high frequencies improves
white-box explanations", ICML 2024, arXiv 2307.09591, section 4; their public code is deel-ai/xplique,
``xplique/commons/forgrad.py``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..checks import check_cutoff, check_flag, check_floating
from ..reference.radius import squared_radius

DEFAULT_CUTOFF = 15.0
"""Cycles over the shorter side; the public code's default, for images of 224 pixels."""


def low_pass(values: Tensor, cutoff: float) -> Tensor:
    """Keep the frequencies of a hard disc, ``r <= cutoff``, DC included; linear, and an orthogonal projection.

    Args:
        values: (..., H, W), real floating-point, of any signs; float16 and bfloat16 are filtered in float32.
        cutoff: radius of the disc in cycles over the shorter side, 0 or more; 0 keeps only the mean.

    Returns:
        (..., H, W) in the dtype of ``values``; differentiable.

    Raises:
        TypeError: ``values`` is not real and floating-point, or the cut-off is not a number.
        ValueError: fewer than two dimensions, an empty side, or a cut-off that is negative, not finite or above 1e15.
    """
    cutoff = check_cutoff("cutoff", cutoff)
    check_floating("values", values)
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
    # In float64, with a tolerance for its rounding: a radius equal to the cut-off is in the disc.
    with torch.inference_mode(False):  # cached for later calls outside this context, too
        inside = squared_radius(height, width, dtype=torch.float64) <= cutoff**2 * (1 + 1e-12)
        return inside.to(device)


def filtered_map(maps: Tensor, cutoff: float = DEFAULT_CUTOFF, *, signed: bool = False) -> Tensor:
    """Filter maps as FORGrad does: the mean over channels, its absolute value, the low-pass, and its absolute value.

    This equals the authors' public code, up to rounding, for square images of an even size. For an odd size that code
    centres its disc beside DC and resizes a map that is one pixel too narrow, and it refuses other sizes; here the disc
    is ``r <= cutoff`` about DC for every size.

    ``signed=True`` is another filter, without the first absolute value, so that values with alternating signs cancel.
    The paper's figure 1 can be read this way, but the public code does not do so.

    Args:
        maps: (B, C, H, W), attribution maps or gradients. With either filter the mean over channels is of signed
            values, so that channels of opposite sign cancel; magnitudes (``saliency``'s default) give another map.
        cutoff: radius of the disc in cycles over the shorter side, 0 or more.
        signed: low-pass the mean over channels with its signs.

    Returns:
        (B, 1, H, W), not negative.

    Raises:
        TypeError, ValueError: as ``low_pass``; also maps that are not (B, C, H, W), or ``signed`` that is not a bool.
    """
    check_floating("maps", maps)
    if maps.ndim != 4 or not maps.shape[1]:
        raise ValueError(f"maps must be (B, C, H, W) with C at least 1, got shape {tuple(maps.shape)}")
    mean = maps.mean(1, keepdim=True)
    return low_pass(mean if check_flag("signed", signed) else mean.abs(), cutoff).abs()
