"""The centre prior: a Gaussian by its formula, and the same for every image of a size."""

from __future__ import annotations

import math

import pytest
import torch

from fampe_fast.metrics.centre_prior import WIDTH, centre_prior


@pytest.mark.parametrize("size", [(7, 7), (8, 12), (33, 10), (1, 5)])
def test_it_is_a_gaussian_about_the_centre(size: tuple[int, int]) -> None:
    height, width = size
    found = centre_prior(height, width)
    assert found.shape == size
    assert found.dtype == torch.float32
    for row in range(height):
        for column in range(width):
            u, v = (row + 0.5) / height - 0.5, (column + 0.5) / width - 0.5
            assert float(found[row, column]) == pytest.approx(math.exp(-(u * u + v * v) / (2 * WIDTH**2)), rel=1e-6)
    for mirrored in (found.flip(0), found.flip(1)):
        assert torch.equal(mirrored, found)


def test_pixels_of_a_photograph_rank_by_their_distance_from_its_centre() -> None:
    offset = torch.arange(224) - 111.5
    distance = (offset[:, None] ** 2 + offset**2).flatten()
    order = centre_prior(224, 224).flatten().sort(descending=True, stable=True).indices
    assert (distance[order].diff() >= 0).all()


def test_a_size_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="height must be at least 1, got 0"):
        centre_prior(0, 4)
    with pytest.raises(TypeError, match="width must be a whole number"):
        centre_prior(4, 2.5)
