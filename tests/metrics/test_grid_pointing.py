"""The grid pointing game against methods whose maps are known, and a composite built another way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fampe_fast import create_method
from fampe_fast.metrics import Partners, grid_pointing

from ..models_for_tests import Smooth, some_images

SIDE = 24


class Method:
    """A map that is a function of the composite and its target; keeps both."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], model: object = None) -> None:
        self.function, self.forward_func = function, model
        self.inputs: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.ids: list[object] = []

    def attribute(self, inputs: Tensor, target: Tensor, *, image_ids: object = None) -> Tensor:
        self.inputs.append(inputs.clone())
        self.targets.append(target.clone())
        self.ids.append(image_ids)
        return self.function(inputs, target)


def flat_images(classes: list[int], side: int = SIDE) -> Tensor:
    """Images of one grey, which is their class's: resizing leaves them as they are."""
    return torch.stack([torch.full((3, side, side), (target + 1) / 64) for target in classes])


def of_the_class(inputs: Tensor, target: Tensor) -> Tensor:
    """A map that is 1 where the class asked for is, and -1 elsewhere."""
    grey = (target + 1) / 64
    return torch.where((inputs - grey[:, None, None, None]).abs() < 1e-4, 1.0, -1.0)


CLASSES = [0, 1, 2, 3, 4, 1, 2, 9]


@pytest.mark.parametrize("cells", ["reduced", "native"])
@pytest.mark.parametrize("grid", [2, 3])
@pytest.mark.parametrize("side", [SIDE, 25])
def test_a_map_that_marks_the_right_object_scores_one_and_of_the_others_nothing(
    cells: str, grid: int, side: int
) -> None:
    classes = [*CLASSES, 10, 11, 12, 13]
    images = flat_images(classes, side)
    method = Method(of_the_class)
    found = grid_pointing(method, images, classes, grid=grid, cells=cells)
    assert found.scores.tolist() == [1] * len(classes)
    others = Method(lambda x, t: -of_the_class(x, t))
    assert grid_pointing(others, images, classes, grid=grid, cells=cells).scores.tolist() == [0] * len(classes)
    assert method.targets[0].tolist() == classes
    size = side if cells == "reduced" else side * grid
    assert method.inputs[0].shape == (len(classes), 3, size, size)


def test_a_map_that_does_not_ask_for_the_class_scores_its_share() -> None:
    images = flat_images(CLASSES)
    even = Method(lambda x, t: torch.ones_like(x))
    assert grid_pointing(even, images, CLASSES).scores.tolist() == [0.25] * len(CLASSES)
    channels = Method(lambda x, t: torch.ones_like(x) * torch.tensor([3.0, -1.0, 1.0])[:, None, None])
    assert grid_pointing(channels, images, CLASSES, cells="native").scores.tolist() == [0.25] * len(CLASSES)
    for value in (0.0, -1.0):  # nothing positive points nowhere
        nothing = Method(lambda x, t, value=value: torch.full_like(x, value))
        assert grid_pointing(nothing, images, CLASSES).scores.tolist() == [0] * len(CLASSES)


def test_half_of_the_map_in_the_right_cell_is_half() -> None:
    def half(inputs: Tensor, target: Tensor) -> Tensor:
        right = of_the_class(inputs, target)[:, :1].clamp(min=0)
        return 3 * right + (1 - right)  # 3 on a quarter of the image, 1 on three quarters

    scores = grid_pointing(Method(half), flat_images(CLASSES), CLASSES).scores
    torch.testing.assert_close(scores, torch.full_like(scores, 0.5))


def test_every_composite_holds_images_of_distinct_classes_and_the_image_in_its_cell() -> None:
    method = Method(of_the_class)
    found = grid_pointing(method, flat_images(CLASSES), CLASSES, image_ids=list(range(40, 48)))
    for k, composite in enumerate(method.inputs[0]):
        corners = composite[0, :: SIDE // 2, :: SIDE // 2].flatten()
        shown = (corners * 64 - 1).round().long().tolist()
        assert len(set(shown)) == 4
        assert shown[found.cells[k]] == CLASSES[k]
        named = [CLASSES[number - 40] for number in found.partners[k].tolist()]
        assert [target for cell, target in enumerate(shown) if cell != found.cells[k]] == named
    assert torch.equal(method.ids[0], torch.arange(40, 48))


def test_reduced_cells_are_the_images_resized_as_pillow_does() -> None:
    image_module = pytest.importorskip("PIL.Image")
    images, method = some_images(4, 3, 32, 48), Method(lambda x, t: x)
    found = grid_pointing(method, images, [0, 1, 2, 3])
    for k in range(4):
        members = found.partners[k].tolist()
        members.insert(int(found.cells[k]), k)
        for cell, member in enumerate(members):
            top, left = 16 * (cell // 2), 24 * (cell % 2)
            part = method.inputs[0][k, :, top : top + 16, left : left + 24]
            for channel in range(3):
                whole = image_module.fromarray(images[member, channel].numpy(), mode="F")
                small = torch.tensor(np.asarray(whole.resize((24, 16), image_module.Resampling.BILINEAR)))
                torch.testing.assert_close(part[channel], small, rtol=0, atol=1e-5)


def test_sides_that_the_grid_does_not_divide_are_cut_into_cells_that_differ_by_a_pixel() -> None:
    classes = list(range(9))
    even = Method(lambda x, t: torch.ones_like(x))
    found = grid_pointing(even, some_images(9, 3, 10, 11), classes, grid=3)
    heights, widths = [3, 3, 4], [3, 4, 4]
    expected = [heights[cell // 3] * widths[cell % 3] / 110 for cell in found.cells.tolist()]
    torch.testing.assert_close(found.scores, torch.tensor(expected, dtype=torch.float64))


def test_scores_depend_on_seed_id_and_partners_and_on_nothing_beside_them() -> None:
    classes = [k % 7 for k in range(20)]
    images, ids = some_images(20), torch.arange(100, 120)
    method = Method(lambda x, t: x.roll(3, -1) ** 2)
    pool = Partners.of(images, classes, ids)
    whole = grid_pointing(method, images, classes, partners=pool, image_ids=ids)
    for k in (0, 7, 19):
        one = grid_pointing(method, images[k : k + 1], classes[k], partners=pool, image_ids=[100 + k])
        assert [v.tolist() for v in one] == [v[k : k + 1].tolist() for v in whole]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    shuffled = Partners.of(images[order], [classes[k] for k in order], ids[order])
    again = grid_pointing(method, images, classes, partners=shuffled, image_ids=ids)
    assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
    default = grid_pointing(method, images, classes, image_ids=ids)
    assert all(torch.equal(a, b) for a, b in zip(default, whole, strict=True))
    other = grid_pointing(method, images, classes, partners=pool, image_ids=ids, seed=1)
    assert not torch.equal(other.partners, whole.partners)
    assert not torch.equal(other.cells, whole.cells)


def test_without_a_partner_the_composites_that_it_was_not_in_stay() -> None:
    classes, ids = list(range(12)), torch.arange(12)
    images, method = some_images(12), Method(lambda x, t: x)
    whole = grid_pointing(method, images, classes, partners=Partners.of(images, classes, ids))
    gone = int(whole.partners[0, 0])
    without = Partners.of(images[ids != gone], ids[ids != gone], ids[ids != gone])
    fewer = grid_pointing(method, images, classes, partners=without)
    had_it = (whole.partners == gone).any(1)
    assert not had_it.all()
    assert torch.equal(fewer.scores[~had_it], whole.scores[~had_it])
    assert torch.equal(fewer.partners[~had_it], whole.partners[~had_it])
    assert not (fewer.partners == gone).any()
    assert torch.equal(fewer.cells, whole.cells)


def test_cells_and_partners_are_drawn_evenly() -> None:
    classes = list(range(400))
    images = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = grid_pointing(Method(lambda x, t: x), images, classes)
    assert (found.cells.bincount(minlength=4) - 100).abs().max() < 4 * (400 * 3 / 16) ** 0.5
    times = found.partners.flatten().bincount(minlength=400).double()
    assert abs(float(times.var()) - 3) < 0.8  # Poisson of mean 3, as of 1200 draws from 400


def test_methods_of_the_package_and_of_captum_play() -> None:
    captum_attr = pytest.importorskip("captum.attr")
    images, classes, model = some_images(5), [0, 1, 2, 3, 4], Smooth()
    ours = grid_pointing(create_method("saliency", model), images, classes, internal_batch_size=2).scores
    theirs = grid_pointing(captum_attr.Saliency(model), images, classes, image_ids=range(5)).scores
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    path = create_method("forgrad_fampe", model, steps=1, samples=2)
    scores = grid_pointing(path, images, classes, image_ids=[5, 9, 2, 3, 8]).scores
    assert ((scores > 0) & (scores < 1)).all()


def test_native_cells_need_a_model_that_takes_them() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * SIDE * SIDE, 5)
            self.eval()

        def forward(self, pixels: Tensor) -> Tensor:
            return self.head(pixels.flatten(1))

    images, classes = some_images(5), [0, 1, 2, 3, 4]
    method = Method(lambda x, t: torch.ones_like(x), Fixed())
    for some in (images, images[:0]):
        with pytest.raises(
            ValueError, match="makes composites of 48 x 48, which Fixed does not take; it takes 24 x 24"
        ):
            grid_pointing(method, some, classes[: len(some)], cells="native")
    assert not method.inputs
    assert grid_pointing(method, images, classes).scores.tolist() == [0.25] * 5
    free = Method(lambda x, t: torch.ones_like(x), Smooth())
    assert grid_pointing(free, images, classes, cells="native").scores.tolist() == [0.25] * 5


def test_no_images_give_no_scores() -> None:
    found = grid_pointing(Method(lambda x, t: x), torch.zeros(0, 3, 8, 8), [])
    assert [tuple(part.shape) for part in found] == [(0,), (0,), (0, 3)]


IMAGES = some_images(4)
TOO_FEW = r"an image needs 3 partners of different other classes, but for class 0 there are images of 2 others"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": lambda x: x}, TypeError, "method must have a method 'attribute', got function"),
        ({"method": Method(lambda x, t: x[:, :, 1:])}, ValueError, r"return maps of 24 x 24, got shape \(4, 3, 23"),
        ({"method": Method(lambda x, t: x.mean((1, 2)))}, ValueError, r"return maps of 24 x 24, got shape \(4, 24"),
        ({"method": Method(lambda x, t: x / 0)}, ValueError, "the method's maps must be finite"),
        ({"images": IMAGES * 2}, ValueError, r"images must lie in \[0, 1\]"),
        ({"images": IMAGES[:, :, :2], "grid": 3, "partners": Partners.of(some_images(9), list(range(9)))},
         ValueError, "a grid of 3 x 3 is finer than images of 2 x 24"),
        ({"targets": [0, 1, 2]}, ValueError, "one entry per image"),
        ({"targets": [0, 1, 2, 2]}, ValueError, TOO_FEW),
        ({"targets": 0}, ValueError, "for class 0 there are images of 0 others"),
        ({"images": IMAGES[:0], "targets": [], "partners": Partners.of(IMAGES, [0, 1, 2, 2])}, ValueError, TOO_FEW),
        ({"partners": IMAGES}, TypeError, "partners must be Partners or None, got Tensor"),
        ({"partners": Partners.of(some_images(4, height=30), [4, 5, 6, 7])}, ValueError,
         r"the images' shape \(3, 24, 24\), the one with id \d has \(3, 30, 24\)"),
        ({"grid": 1}, ValueError, "grid must be at least 2"),
        ({"grid": 2.5}, TypeError, "grid must be a whole number"),
        ({"cells": "large"}, ValueError, "cells must be one of reduced, native; got 'large'"),
        ({"seed": True}, TypeError, "seed must be a whole number"),
        ({"image_ids": [1, 2, 3]}, ValueError, r"one entry per image, \(4,\)"),
        ({"internal_batch_size": 0}, ValueError, "internal_batch_size must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"method": Method(lambda x, t: x), "images": IMAGES, "targets": [0, 1, 2, 3]} | change
    with pytest.raises(error, match=message):
        grid_pointing(**arguments)
