"""The two-scale map: what it ranks where, against its formula written differently."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from fampe_fast.frequency import two_scale_map
from fampe_fast.frequency.two_scale import smoothing_matrix


def test_it_is_the_root_of_the_squares_of_map_and_blur() -> None:
    """Far from the borders the low-pass is scipy's Gaussian of ``side / (2 pi cutoff)`` pixels."""
    maps = torch.rand(2, 3, 96, 120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = two_scale_map(maps, 6.0)
    assert got.shape == (2, 1, 96, 120)
    for k in range(2):
        fine = maps[k].sum(0).numpy()
        blurred = gaussian_filter(fine, 96 / (2 * math.pi * 6), truncate=8)
        expected = np.hypot(fine, blurred)
        inner = (slice(16, -16), slice(16, -16))
        np.testing.assert_allclose(got[k, 0].numpy()[inner], expected[inner], rtol=1e-6)


def test_the_low_pass_is_the_mask_of_the_same_cutoff() -> None:
    """A wave of r cycles keeps the share ``exp(-r^2 / (2 cutoff^2))`` of its amplitude, the package's mask L."""
    size, cycles, cutoff = 128, 5, 8.0
    smooth = smoothing_matrix(size, size / (2 * math.pi * cutoff), torch.device("cpu"), torch.float64)
    wave = torch.cos(2 * math.pi * cycles * torch.arange(size, dtype=torch.float64) / size)
    inner = slice(24, -24)
    torch.testing.assert_close((smooth @ wave)[inner], wave[inner] * math.exp(-(cycles**2) / (2 * cutoff**2)))
    torch.testing.assert_close(smooth.sum(1), torch.ones(size, dtype=torch.float64))


def test_peaks_come_first_and_then_their_neighbourhood() -> None:
    maps = torch.full((1, 1, 64, 64), 0.1)
    maps[0, 0, 20:30, 20:30] = 1.0  # an object's area...
    maps[0, 0, 24, 24] = 30.0  # ... with a peak
    maps[0, 0, 50, 50] = 1.0  # a lone pixel as strong as the area
    ranked = two_scale_map(maps)[0, 0]
    assert ranked.argmax() == 24 * 64 + 24
    assert ranked[22, 27] > ranked[50, 50] > ranked[10, 60]


def test_units_and_signs_are_kept() -> None:
    maps = torch.randn(2, 3, 20, 17, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for unit in (1e-30, 1e30):
        scaled = (maps * unit).float()
        torch.testing.assert_close(two_scale_map(scaled).double(), two_scale_map(scaled.double()), rtol=1e-5, atol=0)
    torch.testing.assert_close(two_scale_map(-maps), -two_scale_map(maps))
    torch.testing.assert_close(two_scale_map(maps.flip(-1)), two_scale_map(maps).flip(-1))


def test_maps_of_zeros_and_of_one_value() -> None:
    assert torch.equal(two_scale_map(torch.zeros(2, 3, 8, 9)), torch.zeros(2, 1, 8, 9))
    torch.testing.assert_close(two_scale_map(torch.full((1, 2, 8, 9), 0.3)), torch.full((1, 1, 8, 9), 0.6 * 2**0.5))
    assert two_scale_map(torch.zeros(0, 3, 8, 8)).shape == (0, 1, 8, 8)
    assert two_scale_map(torch.rand(1, 1, 8, 8).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1, 2],), TypeError, "floating-point tensor, got list"),
        ((torch.ones(1, 1, 8, 8, dtype=torch.long),), TypeError, "torch.int64"),
        ((torch.ones(8, 8),), ValueError, r"\(B, C, H, W\)"),
        ((torch.ones(1, 1, 8, 8), 0), ValueError, "greater than 0"),
        ((torch.ones(1, 1, 8, 8), -1), ValueError, "not negative"),
        ((torch.ones(1, 1, 8, 8), "6"), TypeError, "must be a number"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        two_scale_map(*arguments)


def test_the_real_maps_keep_their_evidence(mobilenet, photographs) -> None:
    """On photographs the ranking agrees with the attribution it is made of, and is smoother than it."""
    from fampe_fast import FAMPE

    images, labels = photographs(2)
    maps, details = FAMPE(mobilenet, steps=2, samples=2).attribute(images, labels, return_details=True)
    for shown, raw in zip(maps.sum(1), details.attribution.sum(1), strict=True):
        order = torch.corrcoef(torch.stack([_ranks(shown), _ranks(raw)]))[0, 1]
        assert 0.3 < order < 1
        assert _roughness(_ranks(shown).view_as(raw)) < 0.7 * _roughness(_ranks(raw).view_as(raw))


def _ranks(values: Tensor) -> Tensor:
    return values.flatten().argsort().argsort().double()


def _roughness(field: Tensor) -> float:
    return float((field[:, 1:] - field[:, :-1]).abs().mean() / field.std())
