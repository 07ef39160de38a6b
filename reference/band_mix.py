"""Perturb one spectrum per image into many sample spectra."""

from __future__ import annotations

import torch
from torch import Tensor

from .radial_mask import radial_mask
from .spectral_noise import HermitianGrid, hermitian_grid, spectral_draw

# Columns of `weights`.
WEIGHTS = ("g0", "a_low", "b_low", "a_high", "b_high", "sigma")


def band_mix(
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
    """Compute ``Y = (X + sigma*N) * (g0 + L*(aL + bL*xiL) + Hi*(aH + bH*xiH))`` for P rows, (image, sample) pairs.

    Args:
        spectrum: X, (B, C, H, W//2+1), complex64 or complex128, unscaled ``rfft2`` of the current images.
        cutoff: (B,), cut-off of the mask L in cycles over the shorter side, 1e-15 to 1e15.
        weights: (B, 6), the five numbers of the mode and sigma, in the order of ``WEIGHTS``.
        image_ids: (B,) int64 in [0, 2^32): the images' names in the random stream.
        image_index: (P,) int64 in [0, B): the image of each row.
        samples: (P,) int64 in [0, 2^32/C): the sample number of each row.
        seed: () int64.
        step: () int64 in [0, 2^32).
        width: W of the images.
        shared_multiplier: use xiL for both bands (mode ``allpass``).
        shape: of L, as of ``radial_mask``.

    Returns:
        Y, (P, C, H, W//2+1), in the dtype of ``spectrum``; its ``irfft2`` is the perturbed images.

    Raises:
        ValueError: an unknown shape.
    """
    height = spectrum.shape[-2]
    parts = torch.view_as_real(spectrum.resolve_conj()).flatten(2, 3)  # (B, C, K, 2)
    low, _ = radial_mask(cutoff.to(parts.dtype), height, width, shape)
    real, imaginary = mix_rows(
        parts[image_index],
        low.flatten(1)[image_index],
        weights.to(parts.dtype)[image_index],
        hermitian_grid(height, width, spectrum.device, parts.dtype),
        image_ids[image_index],
        samples,
        seed,
        step,
        shared_multiplier,
    )
    return torch.complex(real, imaginary).view(len(samples), spectrum.shape[1], height, width // 2 + 1)


def mix_rows(
    parts: Tensor,
    low: Tensor,
    weights: Tensor,
    grid: HermitianGrid,
    image_ids: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
    shared_multiplier: bool,
) -> tuple[Tensor, Tensor]:
    """Mix with everything gathered per row and the K = H * (W//2+1) coefficients flattened.

    Args:
        parts: (P, C, K, 2), real and imaginary parts of X.
        low: (P, K), the mask L.
        weights: (P, 6).
        grid: of the image size.
        image_ids: (P,) int64.
        samples: (P,) int64.
        seed: () int64.
        step: () int64.
        shared_multiplier: use xiL for both bands.

    Returns:
        Real and imaginary part of Y, each (P, C, K): apart, as interleaved stores keep a compiler from vectorising.
    """
    draw = spectral_draw(grid, image_ids, samples, seed, step, parts.shape[1])
    g0, a_low, b_low, a_high, b_high, sigma = (column[:, None, None] for column in weights.unbind(1))
    low = low[:, None]
    xi_high = draw.low if shared_multiplier else draw.high
    gain = g0 + low * (a_low + b_low * draw.low) + (1 - low) * (a_high + b_high * xi_high)
    return (parts[..., 0] + sigma * draw.noise_re) * gain, (parts[..., 1] + sigma * draw.noise_im) * gain
