"""Draw white noise and band multipliers on a half spectrum, with the symmetry of a real image's transform."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .philox import Words, philox4x32, split_seed, to_uniform
from .radius import multiplicity


class HermitianGrid(NamedTuple):
    """Symmetry of each coefficient; K = H * (W//2+1), flattened row by row."""

    coefficient: Tensor
    """(K,) int64: the coefficient whose words are used; of a conjugate pair in one column, the one with u <= H/2."""
    scale_re: Tensor
    """(K,): standard deviation of the real part, times sqrt(3) because a U(-1, 1) has variance 1/3."""
    scale_im: Tensor
    """(K,): the same for the imaginary part; negative where the value is conjugated, 0 where it must be real."""


def hermitian_grid(
    height: int, width: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> HermitianGrid:
    """Build the grid of an (H, W) image's half spectrum.

    ``rfft2`` of real white noise of unit variance has variance HW/2 in each part, and HW in the only part of those
    coefficients that are their own conjugates (u in {0, H/2}, v in {0, W/2}).
    """
    rows = torch.arange(height, device=device)[:, None]
    columns = torch.arange(width // 2 + 1, device=device)
    edge = multiplicity(width, device) == 1
    mirrored = edge & (2 * rows > height)
    own_conjugate = edge & ((rows == 0) | (2 * rows == height))
    index = torch.where(mirrored, height - rows, rows) * (width // 2 + 1) + columns
    scale = math.sqrt(1.5 * height * width)
    scales = torch.full(own_conjugate.shape, scale, dtype=dtype, device=device)
    scale_re = scales.masked_fill(own_conjugate, scale * math.sqrt(2))
    scale_im = scales.masked_fill(mirrored, -scale).masked_fill(own_conjugate, 0.0)
    return HermitianGrid(index.flatten(), scale_re.flatten(), scale_im.flatten())


class SpectralDraw(NamedTuple):
    """Numbers of one Philox call per coefficient; every field is (P, C, K)."""

    noise_re: Tensor
    """Real part of the transform of white noise of unit variance."""
    noise_im: Tensor
    """Its imaginary part."""
    low: Tensor
    """Multiplier of the low band, U(-1, 1)."""
    high: Tensor
    """Multiplier of the high band, U(-1, 1)."""


def spectral_words(
    index: Tensor, image_ids: Tensor, samples: Tensor, seed: Tensor, step: Tensor, channels: int
) -> Words:
    """Draw four Philox words per coefficient: counter (index, channel + C*sample, step, image id), key the seed.

    Args:
        index: (K,) int64 in [0, 2^32), coefficient numbers.
        image_ids: (P,) int64 in [0, 2^32), whose image the row shows.
        samples: (P,) int64 in [0, 2^32/C), the row's sample number.
        seed: () int64.
        step: () int64 in [0, 2^32), the step on the path.
        channels: C.

    Returns:
        Four int64 tensors (P, C, K), values in [0, 2^32).
    """
    channel = torch.arange(channels, device=index.device)[:, None]
    counter = (index, channel + channels * samples[:, None, None], step, image_ids[:, None, None])
    return philox4x32(counter, split_seed(seed))


def spectral_draw(
    grid: HermitianGrid, image_ids: Tensor, samples: Tensor, seed: Tensor, step: Tensor, channels: int
) -> SpectralDraw:
    """Draw white noise in the spectrum, and the two bands' multipliers (arguments as in ``spectral_words``).

    Per coefficient the noise is uniform; over the pixels it is a sum of thousands of terms, and Gaussian.
    """
    words = spectral_words(grid.coefficient, image_ids, samples, seed, step, channels)
    real, imaginary, low, high = (to_uniform(word, grid.scale_re.dtype) for word in words)
    return SpectralDraw(real * grid.scale_re, imaginary * grid.scale_im, low, high)
