"""The floors: maps that see no model, each as its formula says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fampe_fast import create_method
from fampe_fast.metrics.centre_prior import centre_prior

from ..models_for_tests import Smooth, some_images


def test_the_centre_prior_is_one_map_for_every_image() -> None:
    images = some_images(2, height=16, width=24)
    maps = create_method("centre_prior", Smooth()).attribute(images, [0, 3])
    assert torch.equal(maps, centre_prior(16, 24).expand_as(images))


def test_the_random_map_is_uniform_and_follows_from_seed_and_id() -> None:
    images = some_images(3, height=64, width=64)
    method = create_method("random_map", Smooth())
    maps = method.attribute(images, 0, image_ids=[4, 9, 1])
    assert torch.equal(maps[:, 0], maps[:, 2])
    assert torch.equal(method.attribute(images[1:2], 2, image_ids=[9]), maps[1:2])
    counts, _ = np.histogram(maps[:, 0].numpy(), bins=16, range=(0, 1))
    assert abs(counts / counts.sum() - 1 / 16).max() < 5 * (1 / 16 * 15 / 16 / counts.sum()) ** 0.5
    assert torch.corrcoef(maps[:, 0].flatten(1)).fill_diagonal_(0).abs().max() < 0.06
    other = create_method("random_map", Smooth(), seed=1).attribute(images, 0, image_ids=[4, 9, 1])
    assert abs(float(torch.corrcoef(torch.stack([other[:, 0].flatten(), maps[:, 0].flatten()]))[0, 1])) < 0.04


@pytest.mark.parametrize("name", ["centre_prior", "random_map"])
def test_a_floor_makes_no_pass_for_a_target_that_is_given(name: str) -> None:
    calls: list[int] = []

    class Counting(Smooth):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            calls.append(len(pixels))
            return super().forward(pixels)

    method = create_method(name, Counting())
    method.attribute(some_images(2), 0)  # which asks a model that it does not know for its classes
    calls.clear()
    method.attribute(some_images(2), 0)
    assert (calls, method.passes) == ([], 0)
    with pytest.raises(TypeError, match=rf"method '{name}' has no option\(s\) passes"):
        create_method(name, Smooth(), passes=3)
