"""Spectral Integrated Gradients: the authors' path and sum, where the answer is known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fampe_fast import create_method
from fampe_fast.errors import FampeWarning
from fampe_fast.methods.spectral_ig import SpectralIG, SpectralIGConfig

from ..models_for_tests import Smooth, some_images


def straight(model: nn.Module, images: Tensor, target: int, steps: int, black: float = 0.0) -> Tensor:
    """Captum's integrated gradients of the logit, the gradient taken at the beginning of each step."""
    method = pytest.importorskip("captum.attr").IntegratedGradients(model)
    found: Tensor = method.attribute(images, black, target, n_steps=steps, method="riemann_left")
    return found.float()


class Product(nn.Module):
    """The probability of class 0 is the product of two pixels: the model gives probabilities, (p, 1 - p)."""

    output = "probabilities"

    def forward(self, pixels: Tensor) -> Tensor:
        product = pixels[:, 0, 1, 2] * pixels[:, 0, 5, 6]
        return torch.stack([product, 1 - product], 1)


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_the_map_sums_to_what_the_score_has_gained(score: str) -> None:
    model, images = Smooth(), some_images(2)
    outputs = model(images), model(torch.zeros_like(images))
    end, start = (output.softmax(1) if score == "probability" else output for output in outputs)
    gained = (end - start)[:, 3].detach()
    assert (gained.abs() > 0.02).all()
    errors = []
    for passes in (40, 160, 640):
        maps = create_method("spectral_ig", model, passes=passes, score=score).attribute(images, 3)
        errors.append((maps.sum((1, 2, 3)) - gained).abs())
    assert (errors[1] < 0.4 * errors[0]).all()
    assert (errors[2] < 0.4 * errors[1]).all()
    assert (errors[2] < 0.02 * gained.abs()).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_one_component_has_the_map_of_integrated_gradients(channels: int) -> None:
    """It appears on a straight line in the first half of the path, and nothing moves in the second."""
    model, generator = Smooth(channels), torch.Generator().manual_seed(3)
    down, across = torch.rand(2, 2, channels, 24, generator=generator)
    images = down[..., None] * across[..., None, :]
    maps = create_method("spectral_ig", model, passes=24, overlap=0.5, score="logit").attribute(images, 2)
    torch.testing.assert_close(maps, straight(model, images, 2, 12), rtol=1e-4, atol=1e-6)
    other = some_images(2, channels)
    maps = create_method("spectral_ig", model, passes=24, overlap=0.5, score="logit").attribute(other, 2)
    assert not torch.allclose(maps, straight(model, other, 2, 12), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.5, 1.5)])
def test_components_that_appear_together_give_integrated_gradients(bounds: tuple[float, float]) -> None:
    model, images = Smooth(), some_images(2, height=24, width=31)
    method = create_method("spectral_ig", model, passes=9, overlap=1, score="logit", bounds=bounds)
    expected = straight(model, images, 1, 9, bounds[0])
    torch.testing.assert_close(method.attribute(images, 1), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "passes", "share"),
    # In units of the overlap 0.4, the second begins at (1 - ratio) 3 / 2: after the first's end, or a quarter before.
    [(0.25, 20, 0.0), (0.5, 4000, 1 / 32), (1.0, 4000, 1 / 2)],
)
def test_the_second_component_gets_what_it_adds_to_the_first(ratio: float, passes: int, share: float) -> None:
    """Of ``p = a b`` with a the larger, a gets the integral of ``b da``: over the time in which both appear."""
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 1, 2], image[0, 0, 5, 6] = 0.8, 0.8 * ratio
    (found,) = create_method("spectral_ig", Product().eval(), passes=passes).attribute(image, 0)
    product = 0.8 * 0.8 * ratio
    expected = torch.zeros(8, 8)
    expected[1, 2], expected[5, 6] = share * product, (1 - share) * product
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6 if share == 0 else 1e-3 * product)


@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
def test_the_map_is_the_authors_sum_over_their_points(size: tuple[int, int]) -> None:
    """Point by point and component by component, in NumPy; one channel is black."""
    model, (image,) = Smooth(), some_images(1, height=size[0], width=size[1])
    image[1] = 0
    points = []
    for step in range(12):
        point = np.zeros(image.shape)
        for channel in range(3):
            left, sizes, right = np.linalg.svd(image[channel].double().numpy())
            for k, value in enumerate(sizes if sizes[0] else ()):
                start = 0.7 * (1 - value / sizes[0])
                weight = min(max((step / 11 - start) / 0.3, 0), 1)
                point[channel] += weight * value * np.outer(left[:, k], right[k])
        points.append(torch.tensor(point))
    expected = torch.zeros_like(points[0])
    for here, there in pairwise(points):
        pixels = here.float()[None].requires_grad_()
        (gradient,) = torch.autograd.grad(model(pixels).softmax(1)[0, 4], pixels)
        expected += (there - here) * gradient[0]
    torch.testing.assert_close(points[-1].float(), image)
    (found,) = create_method("spectral_ig", model, passes=11, overlap=0.3).attribute(image[None], 4)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-7)
    assert not found[1].any()


ORDER = torch.randperm(24, generator=torch.Generator().manual_seed(1))
CHANGES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "mirrored": (lambda x: x.flip(3), lambda x: x.flip(3)),
    "transposed": (lambda x: x.mT, lambda x: x.mT),
    "rows in another order": (lambda x: x[:, :, ORDER], lambda x: x[:, :, ORDER.argsort()]),
    "channels in another order": (lambda x: x[:, [2, 0, 1]], lambda x: x[:, [1, 2, 0]]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_of_changed_images_has_changed_maps(name: str) -> None:
    """No pixel's neighbours and no channel's company decide when it appears."""
    change, undo = CHANGES[name]
    model, images = Smooth(), some_images(2)

    class Undoing(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            return model(undo(pixels))

    maps = create_method("spectral_ig", model, passes=8).attribute(images, 2)
    changed = create_method("spectral_ig", Undoing(), passes=8).attribute(change(images), 2)
    torch.testing.assert_close(changed, change(maps), rtol=1e-3, atol=1e-7)


def test_a_map_depends_neither_on_company_nor_on_chunks() -> None:
    model, images = Smooth(), some_images(3)
    method = create_method("spectral_ig", model, passes=10)
    maps = method.attribute(images, [0, 1, 2])
    assert torch.equal(method.attribute(images[1:2], 1), maps[1:2])
    for size in (1, 3, 64):
        pieces = method.attribute(images, [0, 1, 2], internal_batch_size=size)
        torch.testing.assert_close(pieces, maps, rtol=1e-4, atol=1e-7)


def test_passes_are_as_many_as_said_and_leave_the_model_alone() -> None:
    seen: list[int] = []

    class Counting(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(len(pixels))
            return super().forward(pixels)

    model = Counting()
    method = create_method("spectral_ig", model, passes=11)
    method.attribute(some_images(1), 0)
    seen.clear()
    method.attribute(some_images(2), 0, internal_batch_size=4)
    assert method.passes == 11
    assert seen == [4, 4, 3] * 2
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_an_image_like_the_start_has_an_empty_map() -> None:
    maps = create_method("spectral_ig", Smooth(), passes=3).attribute(torch.zeros(1, 3, 24, 24), 1)
    assert torch.equal(maps, torch.zeros_like(maps))


def test_magnitudes_are_an_option() -> None:
    model, images = Smooth(), some_images(2)
    signed = create_method("spectral_ig", model, passes=5)
    maps = signed.attribute(images, [0, 1])
    assert (maps < 0).any()
    absolute = create_method("spectral_ig", model, passes=5, absolute=True)
    assert torch.equal(absolute.attribute(images, [0, 1]), maps.abs())
    assert (signed.absolute, absolute.absolute) == (False, True)


def test_a_gradient_that_is_not_finite_comes_with_a_warning() -> None:
    class Broken(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels) + (0 * pixels.mean((1, 2, 3))).sqrt()[:, None]

    with pytest.warns(FampeWarning, match=r"map of image\(s\) \[9\] holds NaN or infinity"):
        create_method("spectral_ig", Broken(), passes=2).attribute(some_images(1), 1, image_ids=[9])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"passes": 0}, ValueError, "passes must be at least 1"),
        ({"passes": 2.5}, TypeError, "passes must be"),
        ({"overlap": 0}, ValueError, r"overlap must be in \(0, 1\], got 0"),
        ({"overlap": 1.5}, ValueError, r"overlap must be in \(0, 1\], got 1.5"),
        ({"score": "loss"}, ValueError, "score must be one of probability, logit; got 'loss'"),
        ({"absolute": "yes"}, TypeError, "absolute must be True, False or None, got 'yes'"),
        ({"bounds": (1, 0)}, ValueError, "bounds must be"),
        ({"baseline": 0}, TypeError, r"method 'spectral_ig' has no option\(s\) baseline"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_method("spectral_ig", Smooth(), **options)


def test_it_describes_itself() -> None:
    method = create_method("spectral_ig", Smooth(), passes=5)
    assert isinstance(method, SpectralIG)
    assert method.config == SpectralIGConfig(passes=5)
    assert method.describe()["config"] == {
        "passes": 5, "overlap": 0.4, "score": "probability", "bounds": (0.0, 1.0), "absolute": False,
    }  # fmt: skip
