"""RISE: the authors' formula and masks, on models whose map is known, and nothing drawn twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fampe_fast import create_method
from fampe_fast.engine.request import prepared
from fampe_fast.methods.rise import RISE, RISEConfig
from fampe_fast.metrics.random_words import Stream, random_words

from ..models_for_tests import Smooth, some_images


class LooksAtABlock(nn.Module):
    """The probability of class 0 is how bright a block is: the model gives probabilities, (p, 1 - p)."""

    output = "probabilities"

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        bright = pixels[:, :, self.rows, self.columns].mean((1, 2, 3))
        return torch.stack([bright, 1 - bright], 1)


def masks_of(method: RISE, images: Tensor, count: int) -> Tensor:
    """The masks of the first image."""
    with prepared((method.forward_func,), images, 0, bounds=(0.0, 1.0), gradients=False) as request:
        return method._masks(request, 0, slice(0, count))


def test_what_the_model_looks_at_ranks_first() -> None:
    """In a white image a pixel's value is the block's mean mask times its own: twice as high inside as elsewhere.

    With p = 1/2 the mean of M(block) M(x) / p is E[M^2] / p, at most 1, inside, and E[M] = 1/2 where cells are apart.
    """
    model = LooksAtABlock(slice(9, 12), slice(20, 24))
    image = torch.ones(1, 3, 32, 48)
    (found,) = create_method("rise", model, passes=3000).attribute(image, 0)
    assert torch.equal(found[0], found[2])
    row, column = divmod(int(found[0].argmax()), 48)
    assert 7 <= row <= 13
    assert 17 <= column <= 26
    far = found[0, 24:, 34:]
    torch.testing.assert_close(far, torch.full_like(far, 0.5), atol=0.06, rtol=0)
    assert 0.7 < found[0, 9:12, 20:24].mean() <= 1
    (other,) = create_method("rise", model, passes=3000).attribute(image, 1)
    mean = masks_of(RISE(model), image, 3000).mean(0)
    torch.testing.assert_close(found[0] + other[0], mean / 0.5, rtol=1e-4, atol=0)  # their probabilities sum to 1


@pytest.mark.parametrize(("height", "width", "grid"), [(24, 24, 7), (40, 33, 5), (16, 224, 8), (9, 8, 11), (8, 8, 1)])
def test_masks_are_shifted_enlarged_cells(height: int, width: int, grid: int) -> None:
    """Each mask is a window of its cells as torch enlarges them, at a shift below a cell."""
    images = some_images(1, height=height, width=width)
    masks = masks_of(RISE(lambda pixels: pixels.mean((2, 3)), grid=grid, seed=3), images, 64)
    assert masks.shape == (64, height, width)
    assert 0 <= masks.min() <= masks.max() <= 1
    assert abs(float(masks.mean()) - 0.5) < (0.2 if grid == 1 else 0.06)
    numbers = torch.arange(64)
    words = random_words(Stream.MASKS, 3, torch.zeros_like(numbers), numbers, grid * grid + 2).double() / 2**32
    down, across = -(-height // grid), -(-width // grid)
    shifts = set()
    for mask, (first, second, *cells) in zip(masks, words.tolist(), strict=True):
        kept = (torch.tensor(cells) < 0.5).float().reshape(1, 1, grid, grid)
        size = ((grid + 1) * down, (grid + 1) * across)
        large = F.interpolate(kept, size=size, mode="bilinear", align_corners=False)[0, 0]
        y, x = int(first * down), int(second * across)
        shifts.add((y, x))
        torch.testing.assert_close(mask, large[y : y + height, x : x + width], rtol=0, atol=1e-5)
    assert len(shifts) > min(20, down * across) / 2


def test_the_map_is_the_authors_formula_over_its_masks() -> None:
    """``sum p M / N / p1``, masked pixels black where the model has no mean, and its mean colour where it has one."""
    model, images = Smooth(), some_images(1)
    method = create_method("rise", model, passes=12, grid=4, probability=0.3)
    masks = masks_of(method, images, 12)
    for colour in (None, torch.tensor([0.4, 0.5, 0.6])):
        hidden = torch.zeros(3, 1, 1) if colour is None else colour.reshape(3, 1, 1)
        if colour is not None:
            model.mean = colour
        shown = images * masks[:, None] + hidden * (1 - masks[:, None])
        chances = model(shown).softmax(1)[:, 2]
        expected = (chances[:, None, None] * masks).sum(0) / 12 / 0.3
        torch.testing.assert_close(method.attribute(images, 2)[0, 1], expected.detach(), rtol=1e-5, atol=1e-6)


def test_a_map_depends_on_seed_and_id_and_neither_on_company_nor_on_chunks() -> None:
    model, images = Smooth(), some_images(3)
    method = create_method("rise", model, passes=10)
    maps = method.attribute(images, [0, 1, 2], image_ids=[5, 9, 2])
    assert torch.equal(method.attribute(images[1:2], 1, image_ids=[9]), maps[1:2])
    torch.testing.assert_close(
        method.attribute(images, [0, 1, 2], image_ids=[5, 9, 2], internal_batch_size=3), maps, rtol=1e-6, atol=0
    )
    assert not torch.allclose(method.attribute(images[1:2], 1, image_ids=[8]), maps[1:2], rtol=0.01)
    other = create_method("rise", model, passes=10, seed=1)
    assert not torch.allclose(other.attribute(images, [0, 1, 2], image_ids=[5, 9, 2]), maps, rtol=0.01)
    more = masks_of(create_method("rise", model, passes=90), images, 20)
    assert torch.equal(more[:10], masks_of(method, images, 10))  # a mask keeps its number


def test_forward_passes_alone_are_made_and_as_many_as_said() -> None:
    seen: list[int] = []

    class Blind(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(len(pixels))
            return super().forward(pixels).detach()  # no gradient: none is asked for

    model = Blind()
    method = create_method("rise", model, passes=11)
    method.attribute(some_images(1), 0)
    seen.clear()
    method.attribute(some_images(2), 0, internal_batch_size=4)
    assert method.passes == 11
    assert seen == [4, 4, 3] * 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"passes": 0}, ValueError, "passes must be at least 1"),
        ({"grid": 2.5}, TypeError, "grid must be"),
        ({"probability": 0}, ValueError, r"probability must be in \(0, 1\], got 0"),
        ({"probability": 1.5}, ValueError, r"probability must be in \(0, 1\], got 1.5"),
        ({"seed": "a"}, TypeError, "seed must be"),
        ({"bounds": (1, 0)}, ValueError, "bounds must be"),
        ({"cells": 7}, TypeError, r"method 'rise' has no option\(s\) cells"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_method("rise", Smooth(), **options)


def test_it_describes_itself() -> None:
    method = create_method("rise", Smooth(), passes=5)
    assert isinstance(method, RISE)
    assert method.config == RISEConfig(passes=5)
    assert method.describe()["config"] == {
        "passes": 5, "grid": 7, "probability": 0.5, "seed": 0, "bounds": (0.0, 1.0),
    }  # fmt: skip
