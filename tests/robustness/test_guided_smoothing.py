"""Smoothing along an image, against its equation, and smooth attacks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fampe_fast.engine.config import PathConfig
from fampe_fast.frequency.bands import bands_between
from fampe_fast.robustness import BandLimitedAttack
from fampe_fast.robustness.guided_smoothing import GuidedSmoothing

from ..models_for_tests import Smooth, TwoClassLinear, some_images

PLAIN = {"samples": 1, "smoothing": False, "input_diversity": False}


def by_equation(image: Tensor, values: Tensor, share: float) -> Tensor:
    """The smoothing of one image's channels by a dense linear system, pixel by pixel."""
    _, height, width = image.shape
    places = [(row, column) for row in range(height) for column in range(width)]
    weights = torch.zeros(len(places), len(places), dtype=torch.float64)
    for a, (row, column) in enumerate(places):
        for b, (other, across) in enumerate(places):
            if a != b and abs(row - other) <= 1 and abs(column - across) <= 1:
                distance = (image[:, row, column] - image[:, other, across]).double().square().sum()
                weights[a, b] = math.exp(-float(distance) / (2 * 0.05**2))
    degree = weights.sum(1)
    system = torch.eye(len(places), dtype=torch.float64) - share * weights / (degree[:, None] * degree).sqrt()
    right = torch.cat([torch.ones(1, len(places), dtype=torch.float64), values.double().flatten(1)])
    solved = torch.linalg.solve(system, right.T).T
    return (solved[1:] / solved[:1]).view_as(values)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 0.997])
def test_it_solves_the_paper_s_equation(share: float) -> None:
    images = 0.5 + 0.2 * (some_images(2, height=9, width=8) - 0.5)
    values = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))
    found = GuidedSmoothing(images, share)(values)
    for k in range(2):
        expected = by_equation(images[k], values[k], share)
        torch.testing.assert_close(found[k].double(), expected, rtol=0, atol=1e-4)
        alone = GuidedSmoothing(images[k : k + 1], share)(values[k : k + 1])
        torch.testing.assert_close(alone[0], found[k], rtol=0, atol=1e-6)


def test_a_constant_stays_and_nothing_grows() -> None:
    smooth = GuidedSmoothing(some_images(), 0.95)
    torch.testing.assert_close(smooth(torch.full((2, 3, 24, 24), 0.3)), torch.full((2, 3, 24, 24), 0.3))
    values = torch.randn(2, 3, 24, 24).sign()
    assert float(smooth(values).abs().max()) <= 1 + 1e-4


def test_it_spreads_over_a_flat_area_and_not_over_an_edge() -> None:
    """Two flat halves: a single pixel's push fills its own half, and does not cross."""
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1
    values = torch.zeros(1, 3, 16, 16)
    values[:, :, 8, 5] = 1
    found = GuidedSmoothing(image, 0.95)(values)[0, 0]
    assert float(found[:, 8:].abs().max()) < 1e-6
    assert (found[6:11, 3:8] > 1e-3).all()
    assert float(found.sum()) == pytest.approx(1, abs=0.2)


def test_a_smooth_attack_is_smoother_where_the_image_is_flat_and_still_raises_the_loss() -> None:
    model = TwoClassLinear(0.05 * torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(0)))
    images = torch.full((2, 3, 24, 24), 0.5)
    config = PathConfig(steps=4, eps=0.1, **PLAIN)
    rough, smooth = (BandLimitedAttack(model, config=config, smoothness=value)(images, 0) for value in (0.0, 0.95))
    rings = bands_between(24, 24, [6.0], include_dc=True)
    high = [(e := rings.energy(found.images - images))[:, 1] / e.sum(1) for found in (rough, smooth)]
    assert (high[1] < 0.3 * high[0]).all()
    for found in (rough, smooth):
        assert float((found.images - images).abs().max()) <= 0.1 + 1e-6
        assert (model(found.images)[:, 0] < model(images)[:, 0]).all()


@pytest.mark.parametrize("band", ["low", "middle", "high", "all"])
def test_a_smooth_attack_stays_in_band_ball_and_bounds(band: str) -> None:
    images = (some_images(2, height=20, width=27) * 3 - 1).clamp(0, 1)
    config = PathConfig(steps=3, eps=16 / 255, **PLAIN)
    found = BandLimitedAttack(Smooth(), band, 4.0, config, upper_cutoff=8.0, smoothness=0.9)(images, [0, 1])
    assert float(found.images.min()) >= 0
    assert float(found.images.max()) <= 1
    assert float((found.images.double() - images.double()).abs().max()) <= config.eps + 2**-25
    assert (found.band_share > 0.97).all()


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan, "0.5"])
def test_bad_smoothness_is_named(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match="smoothness must be"):
        BandLimitedAttack(Smooth(), smoothness=value)


def test_an_empty_band_is_named() -> None:
    with pytest.raises(ValueError, match="high band is empty for 24 x 24 pixels"):
        BandLimitedAttack(Smooth(), "high", 17.0)(some_images())
