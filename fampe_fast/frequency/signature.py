"""Measure the share of an attribution map's power at each frequency (Muzellec et al., arXiv 2307.09591, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_batch
from ..reference.radius import multiplicity, shell_index


def fourier_signature(maps: Tensor) -> Tensor:
    """Average the amplitude of the maps' spectra over the angle, per radius.

    Args:
        maps: (B, C, H, W), real; the channels' mean is analysed, with its signs.

    Returns:
        (B, min(H, W)//2 + 1), float64: entry k is the mean amplitude over the coefficients with ``ceil(r) = k`` (r in
        cycles over the shorter side), those of the full spectrum, so conjugates count too. Entry 0 is DC.

    Raises:
        TypeError: not a real floating-point tensor.
        ValueError: not (B, C, H, W), or not finite.
    """
    if not bool(check_batch("maps", maps).isfinite().all()):
        raise ValueError("maps hold NaN or infinity; expected finite values")
    batch, _, height, width = maps.shape
    rings = min(height, width) // 2 + 1  # larger rings are cut off by the spectrum's border
    if not batch:
        return maps.new_zeros((0, rings), dtype=torch.float64, device="cpu")
    amplitude = torch.fft.rfft2(maps.cpu().double().mean(1)).abs()
    shells = shell_index(height, width)
    weight = multiplicity(width).expand(height, -1).double()
    largest = int(shells.max()) + 1
    total = amplitude.new_zeros(batch, largest).index_add_(1, shells.flatten(), (amplitude * weight).flatten(1))
    count = weight.new_zeros(largest).index_add_(0, shells.flatten(), weight.flatten())
    signature: Tensor = (total / count)[:, :rings]
    return signature


def power_slope(signature: Tensor) -> Tensor:
    """Fit the exponent of power against frequency: least squares of ``log(amplitude^2)`` over ``log(k)``, k >= 1.

    Natural images have about -2; a steeper slope means less power at high frequencies; white noise has 0.

    Args:
        signature: (B, K), amplitudes from ``fourier_signature``, K at least 3.

    Returns:
        (B,) float64; NaN for a map without power at two radii or more.

    Raises:
        ValueError: not (B, K) with K at least 3, or a negative amplitude.
    """
    if signature.ndim != 2 or signature.shape[1] < 3:
        raise ValueError(f"signature must be (B, K) with K at least 3, got shape {tuple(signature.shape)}")
    if bool((signature < 0).any()):
        raise ValueError("amplitudes must not be negative")
    amplitude = signature[:, 1:].double()
    there = (amplitude > 0).double()
    radius = torch.arange(1, signature.shape[1], dtype=torch.float64, device=signature.device).log()
    power = 2 * amplitude.clamp(min=torch.finfo(torch.float64).tiny).log() * there
    count = there.sum(1, keepdim=True)
    centred = (radius - (there * radius).sum(1, keepdim=True) / count) * there
    slope: Tensor = (centred * power).sum(1) / (centred**2).sum(1)
    return torch.where(count[:, 0] >= 2, slope, torch.full_like(slope, torch.nan))
