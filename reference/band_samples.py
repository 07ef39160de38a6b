"""Draw samples: perturb spectra, and transform them back to pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from .band_mix import band_mix


def band_samples(
    spectrum: Tensor,
    cutoff: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
    width: int,
    shared_multiplier: bool = False,
    shape: str = "gaussian",
) -> Tensor:
    """Compute ``irfft2(band_mix(...), norm="forward")``: the inverse transform without its factor 1/HW.

    The mix is linear in the first five weights: divided by HW, they give the perturbed images themselves.

    Args:
        spectrum: X, (B, C, H, W//2+1), complex64 or complex128, unscaled ``rfft2`` of real images.
        cutoff: as all that follow, of ``band_mix``.
        weights: (B, 6).
        image_ids: (B,) int64.
        image_index: (P,) int64.
        samples: (P,) int64.
        seed: () int64.
        step: () int64.
        width: W of the images.
        shared_multiplier: use xiL for both bands.
        shape: of L.

    Returns:
        (P, C, H, W), contiguous, float32, or float64 of a complex128 spectrum.

    Raises:
        ValueError: an unknown shape.
    """
    mixed = band_mix(
        spectrum,
        cutoff,
        weights,
        image_ids,
        image_index,
        samples,
        seed,
        step,
        width,
        shared_multiplier,
        shape,
    )
    return to_pixels(mixed, width)


def to_pixels(mixed: Tensor, width: int) -> Tensor:
    """Transform half spectra (P, C, H, W//2+1) to (P, C, H, W), without a factor."""
    size = (mixed.shape[-2], width)
    if not mixed.numel():  # which MKL refuses
        return mixed.new_empty((*mixed.shape[:-2], *size), dtype=mixed.dtype.to_real())
    images: Tensor = torch.fft.irfft2(mixed, s=size, norm="forward")
    return images
