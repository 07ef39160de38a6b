"""Simulate spectra as AttEXplore does, on the discrete cosine transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .philox import to_uniform
from .spectral_noise import spectral_words


def dct_matrix(size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Compute the orthonormal DCT-II as a matrix, (size, size): ``D @ x`` transforms, ``D.T @ X`` goes back."""
    points = torch.arange(size, device=device, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * (points + 0.5) * points[:, None]) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(dtype)


def dct_mix(
    spectrum: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
) -> Tensor:
    """Compute ``Y = (D + sigma*N) * (1 + rho*xi)`` for P rows, N white noise of unit variance, xi ~ U(-1, 1).

    The transform is orthonormal, so white noise added to the pixels is white noise added here, and D is computed once
    per step. Long, Zhang et al., "Frequency domain model augmentation for adversarial attack", arXiv 2207.05382, eq. 8.

    Args:
        spectrum: D, (B, C, H, W), orthonormal DCT-II of the current images, float32 or float64.
        weights: (B, 2), rho and sigma.
        image_ids: (B,) int64 in [0, 2^32).
        image_index: (P,) int64 in [0, B): the image of each row.
        samples: (P,) int64, the sample number of each row.
        seed: () int64.
        step: () int64.

    Returns:
        Y, (P, C, H, W), in the dtype of ``spectrum``.
    """
    rows = dct_mix_rows(
        spectrum.flatten(2)[image_index],
        weights.to(spectrum.dtype)[image_index],
        torch.arange(spectrum.shape[-2] * spectrum.shape[-1], device=spectrum.device),
        image_ids[image_index],
        samples,
        seed,
        step,
    )
    return rows.view(len(samples), *spectrum.shape[1:])


def dct_mix_rows(
    spectrum: Tensor, weights: Tensor, index: Tensor, image_ids: Tensor, samples: Tensor, seed: Tensor, step: Tensor
) -> Tensor:
    """Mix rows: ``spectrum`` (P, C, K), ``weights`` (P, 2), ``index`` (K,) the coefficient numbers; (P, C, K)."""
    words = spectral_words(index, image_ids, samples, seed, step, spectrum.shape[1])
    noise, xi = to_uniform(words[0], spectrum.dtype), to_uniform(words[2], spectrum.dtype)
    rho, sigma = (column[:, None, None] for column in weights.unbind(1))
    return (spectrum + sigma * math.sqrt(3) * noise) * (1 + rho * xi)
