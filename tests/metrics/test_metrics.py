"""Metrics against oracle models with known curves, a naive loop that edits pixels one at a time, and closed forms."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fampe_fast.metrics import (
    PROTOCOLS,
    Estimate,
    GaussianBlur,
    Protocol,
    SolidColour,
    insertion_deletion,
    mean_and_error,
    paired_difference,
    pointing_game,
    relevance_mass,
)
from fampe_fast.reference.pixel_mask import pixel_mask

from ..models_for_tests import asked

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Oracle(nn.Module):
    """p(class 1) = power-th power of the weighted share of light, p(class 0) = the rest; keeps what it was shown."""

    def __init__(self, weights: Tensor, power: float = 1.0) -> None:
        super().__init__()
        self.share = weights / weights.sum()
        self.power = power
        self.batches: list[Tensor] = []
        self.eval()

    def probability(self, images: Tensor) -> Tensor:
        return (images * self.share).sum((1, 2, 3)) ** self.power

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(images.clone())
        p = self.probability(images).clamp(0, 1)
        return torch.stack([1 - p, p], 1).log()


class SmallNet(nn.Module):
    """A classifier without any symmetry, in float64, so that a wrong pixel shows."""

    def __init__(self, channels: int, classes: int = 4) -> None:
        super().__init__()
        torch.manual_seed(channels)
        self.features = nn.Conv2d(channels, 6, 3, padding=1)
        self.head = nn.Linear(6, classes)
        self.register_buffer("scale", torch.linspace(1, 3, 64))
        self.double().eval()

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        place = self.scale[:height, None] * self.scale[:width].flip(0)
        return 20 * self.head((self.features(images).tanh() * place).mean((2, 3)))


def pictures(batch: int, channels: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and maps in float64; the maps are quantised, so that there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand((batch, channels, height, width), generator=generator, dtype=torch.float64)
    maps = torch.randn((batch, channels, height, width), generator=generator, dtype=torch.float64)
    return images, (maps * 4).round() / 4


def trapezoid(curve: list[float]) -> float:
    return sum((a + b) / 2 for a, b in pairwise(curve)) / (len(curve) - 1)


# The naive loop: one image, one step, one pixel (or one value of one channel) at a time, over Python lists.


def naive_order(values: Tensor) -> list[int]:
    flat = values.flatten().tolist()
    return sorted(range(len(flat)), key=lambda index: (-flat[index], index))


@torch.no_grad()
def naive_curve(
    model: nn.Module, start: Tensor, finish: Tensor, orders: list[list[int]], step: int, target: int
) -> list:
    current = start.clone()
    height, width = start.shape[-2:]
    curve = [float(model(current[None]).softmax(1)[0, target])]
    by_element = len(orders[0]) > height * width
    for begin in range(0, len(orders[0]), step):
        for order in orders:
            for index in order[begin : begin + step]:
                channels = index // (height * width) if by_element else slice(None)
                y, x = index % (height * width) // width, index % width
                current[channels, y, x] = finish[channels, y, x]
        curve.append(float(model(current[None]).softmax(1)[0, target]))
    return curve


def published_blur(image: Tensor) -> Tensor:
    """RISE's notebook on the normalised image, and back to pixel space."""
    ndimage = pytest.importorskip("scipy.ndimage")
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    kernel = torch.from_numpy(ndimage.gaussian_filter(impulse, 5))
    mean, std = (torch.tensor(v[: len(image)], dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    normal = ((image - mean) / std)[:, None]
    return torch.nn.functional.conv2d(normal, kernel[None, None], padding=5)[:, 0] * std + mean


def naive_scores(model: nn.Module, image: Tensor, attribution: Tensor, target: int, name: str) -> tuple[list, list]:
    black = torch.zeros_like(image)
    insert_from, delete_to = black, black
    if name == "rise":
        insert_from = published_blur(image)
        delete_to = torch.tensor(MEAN[: len(image)], dtype=torch.float64)[:, None, None].expand_as(image)
    orders = (
        [naive_order(channel) for channel in attribution] if name == "attexplore" else [naive_order(attribution.sum(0))]
    )
    step = image.shape[-1]
    if name == "per_element":
        orders, step = [naive_order(attribution)], step * len(image)
    return (
        naive_curve(model, insert_from, image, orders, step, target),
        naive_curve(model, image, delete_to, orders, step, target),
    )


@pytest.mark.parametrize("size", [(3, 6, 6), (1, 7, 5), (3, 5, 13), (2, 9, 4), (3, 14, 15)], ids=str)
@pytest.mark.parametrize("name", ["rise", "attexplore", "per_pixel", "per_element"])
def test_curves_equal_the_naive_loop(name: str, size: tuple[int, int, int]) -> None:
    images, maps = pictures(3, *size)
    model = SmallNet(size[0])
    targets = [2, 0, 3]
    mean = torch.tensor(MEAN[: size[0]], dtype=torch.float64)
    result = insertion_deletion(model, images, maps, targets, protocol=name, mean=mean, internal_batch_size=7)
    assert result.protocol == dataclasses.replace(PROTOCOLS[name], step=size[2])
    for i, target in enumerate(targets):
        insertion, deletion = naive_scores(model, images[i], maps[i], target, name)
        tolerance = 1e-13
        np.testing.assert_allclose(result.insertion_curves[i], insertion, rtol=0, atol=tolerance)
        np.testing.assert_allclose(result.deletion_curves[i], deletion, rtol=0, atol=tolerance)
        np.testing.assert_allclose(result.insertion[i], trapezoid(insertion), rtol=0, atol=tolerance)
        np.testing.assert_allclose(result.deletion[i], trapezoid(deletion), rtol=0, atol=tolerance)
    torch.testing.assert_close(result.faithfulness, result.insertion - result.deletion)


@pytest.mark.parametrize("step", [1, 4, 10, 35, 100])
def test_any_step_equals_the_naive_loop(step: int) -> None:
    images, maps = pictures(2, 3, 5, 7)
    model = SmallNet(3)
    protocol = dataclasses.replace(PROTOCOLS["attexplore"], step=step)
    result = insertion_deletion(model, images, maps, 1, protocol=protocol)
    assert result.insertion_curves.shape == (2, math.ceil(35 / step) + 1)
    for i in range(2):
        orders = [naive_order(channel) for channel in maps[i]]
        curve = naive_curve(model, images[i], torch.zeros_like(images[i]), orders, step, 1)
        np.testing.assert_allclose(result.deletion_curves[i], curve, rtol=0, atol=1e-13)


def later_public_scores(
    model: nn.Module, image: np.ndarray, attribution: np.ndarray, step: int, insert: bool, target: int = 1
) -> list:
    """As LMBTough/LA evaluates (evaluation.py, eval.py): 3 * step values of one order per round, to or from black."""
    channels, height, width = image.shape
    black = np.zeros_like(image)
    current, finish = (black, image) if insert else (image, black)
    current, finish = current.copy().reshape(-1), finish.reshape(-1)
    order = np.flip(np.argsort(attribution.reshape(-1)))
    rounds = (height * width + step - 1) // step
    scores = []
    for i in range(rounds + 1):
        shown = torch.from_numpy(current.reshape(1, channels, height, width).copy())
        scores.append(float(model(shown).detach().softmax(1)[0, target]))
        places = order[step * i * channels : step * (i + 1) * channels]
        current[places] = finish[places]
    return scores


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("size", "step"), [((3, 8, 8), 8), ((3, 11, 6), 6), ((2, 5, 9), 4), ((1, 7, 7), 100)], ids=str)
def test_the_order_of_all_values_is_that_of_the_later_public_code(
    size: tuple[int, int, int], step: int, layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(5)
    images = torch.rand((2, *size), generator=generator, dtype=torch.float64)
    maps = torch.randn((2, *size), generator=generator, dtype=torch.float64)  # without ties, whose order is open there
    model = SmallNet(size[0]).to(memory_format=layout)
    protocol = dataclasses.replace(PROTOCOLS["per_element"], step=step)
    result = insertion_deletion(model, images, maps, 1, protocol=protocol, internal_batch_size=5)
    for i in range(2):
        for curves, insert in ((result.insertion_curves, True), (result.deletion_curves, False)):
            expected = later_public_scores(model, images[i].numpy(), maps[i].numpy(), step, insert)
            np.testing.assert_allclose(curves[i], expected, rtol=0, atol=1e-13)


# Closed forms.


def test_the_area_of_one_channel_s_evidence_is_known() -> None:
    """The green channel alone counts: first in the order, a third of the steps gives all of p; last, the last third.

    Ranked by pixels the same map orders nothing: its sum over the channels is constant.
    """
    images = torch.ones(1, 3, 12, 4, dtype=torch.float64)
    green = torch.zeros(3, 12, 4, dtype=torch.float64)
    green[1] = 1
    model = Oracle(green)
    best = 2 * green - green[[1, 0, 2]] - green[[0, 2, 1]]  # 2 in the green channel, -1 in the others
    maps = torch.stack([best, -best])
    first, last = (insertion_deletion(model, images, m[None], 1, protocol="per_element") for m in (maps[0], maps[1]))
    third = 1 / 3
    for result, insertion in ((first, 1 - third / 2), (last, third / 2)):
        area = torch.tensor([insertion], dtype=torch.float64)
        torch.testing.assert_close(result.insertion, area, rtol=0, atol=1e-12)
        torch.testing.assert_close(result.deletion, 1 - area, rtol=0, atol=1e-12)
    assert not maps[0].sum(0).any()
    blind = insertion_deletion(model, images, maps[:1], 1, protocol="per_pixel")
    torch.testing.assert_close(blind.insertion, torch.tensor([0.5], dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_map_of_one_order_for_all_channels_scores_alike_by_element_and_by_pixel() -> None:
    images = pictures(2, 3, 7, 9)[0]
    maps = torch.randn(2, 1, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for shown in (maps, maps.expand(-1, 3, -1, -1)):
        element, pixel = (
            insertion_deletion(SmallNet(3), images, shown, 1, protocol=name) for name in ("per_element", "per_pixel")
        )
        torch.testing.assert_close(element.insertion_curves, pixel.insertion_curves, rtol=0, atol=1e-13)
        torch.testing.assert_close(element.deletion_curves, pixel.deletion_curves, rtol=0, atol=1e-13)


def object_weights(height: int, width: int, rows: int) -> Tensor:
    weights = torch.zeros(1, height, width, dtype=torch.float64)
    weights[:, :rows] = 1
    return weights


@pytest.mark.parametrize("name", ["attexplore", "per_pixel", "per_element"])
def test_areas_of_the_perfect_and_the_reversed_ranking(name: str) -> None:
    """The object fills m of K steps: the perfect order scores 1 - m/2K and m/2K, the reversed one m/2K and 1 - m/2K."""
    height, width, rows = 10, 6, 3
    weights = object_weights(height, width, rows)
    images = torch.ones(1, 3, height, width, dtype=torch.float64)
    model = Oracle(weights.expand(3, -1, -1))
    good = weights.expand(1, 3, -1, -1)
    best = insertion_deletion(model, images, good, 1, protocol=name)
    worst = insertion_deletion(model, images, -good, 1, protocol=name)
    small = rows / height / 2
    for result, insertion in ((best, 1 - small), (worst, small)):
        torch.testing.assert_close(result.insertion, torch.tensor([insertion], dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(
            result.deletion, torch.tensor([1 - insertion], dtype=torch.float64), rtol=0, atol=1e-12
        )
    assert best.faithfulness > 0 > worst.faithfulness


@pytest.mark.parametrize(("power", "area"), [(1, lambda k: 1 / 2), (2, lambda k: 1 / 3 + 1 / (6 * k**2))])
def test_area_of_a_power_of_the_share_of_lit_pixels(power: int, area: Callable[[int], float]) -> None:
    """Sum over the trapezoids of (k/K)^2 is 1/3 + 1/(6 K^2), in whatever order the pixels come."""
    images = torch.ones(2, 1, 12, 8, dtype=torch.float64)
    model = Oracle(torch.ones(1, 12, 8, dtype=torch.float64), power)
    maps = pictures(2, 1, 12, 8)[1]
    result = insertion_deletion(model, images, maps, 1, protocol="per_pixel")
    expected = torch.full((2,), area(12), dtype=torch.float64)
    torch.testing.assert_close(result.insertion, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(result.deletion, expected, rtol=0, atol=1e-12)
    other = insertion_deletion(model, images, maps, 0, protocol="per_pixel")
    torch.testing.assert_close(other.insertion, 1 - expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["rise", "attexplore", "per_pixel", "per_element"])
def test_linear_oracle_makes_the_curves_mirror_images(name: str) -> None:
    """Inserted and deleted pixels complement each other: for a linear p the sum stays that of the four end points."""
    images, maps = pictures(3, 3, 7, 9)
    model = Oracle(torch.rand(3, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    substrates = (SolidColour(0.25), SolidColour(0.25))
    protocol = Protocol("grey", PROTOCOLS[name].ranking, *substrates)
    result = insertion_deletion(model, images, maps, 1, protocol=protocol)
    whole = model.probability(images) + model.probability(torch.full_like(images[:1], 0.25))
    both = result.insertion_curves + result.deletion_curves
    torch.testing.assert_close(both, whole[:, None].expand_as(both), rtol=0, atol=1e-12)
    torch.testing.assert_close(result.insertion + result.deletion, whole, rtol=0, atol=1e-12)


def test_insertion_is_deletion_of_the_negated_map_backwards() -> None:
    images = torch.rand(2, 3, 6, 8, dtype=torch.float64)
    maps = torch.randn(2, 3, 6, 8, dtype=torch.float64)  # without ties
    model = SmallNet(3)
    forward = insertion_deletion(model, images, maps, 1, protocol="per_pixel")
    backward = insertion_deletion(model, images, -maps, 1, protocol="per_pixel")
    torch.testing.assert_close(forward.insertion_curves, backward.deletion_curves.flip(1), rtol=0, atol=1e-13)


def test_ties_and_constant_maps_go_by_the_pixel_index() -> None:
    images = torch.ones(4, 1, 3, 4, dtype=torch.float64)
    weights = torch.arange(1, 13, dtype=torch.float64).reshape(1, 3, 4)
    zero = torch.zeros(1, 3, 4, dtype=torch.float64)
    signed = zero.clone()
    signed[:, ::2] = -0.0
    maps = torch.stack([zero, signed, zero + 5, zero - 1e-300])
    curves = insertion_deletion(Oracle(weights), images, maps, 1, protocol="per_pixel").insertion_curves
    by_row = torch.tensor([0, 10, 36, 78], dtype=torch.float64) / 78
    torch.testing.assert_close(curves, by_row.expand(4, 4), rtol=0, atol=1e-12)


def test_only_the_order_of_the_values_counts() -> None:
    images, maps = pictures(3, 1, 8, 9)
    model = SmallNet(1)
    for name in PROTOCOLS:
        plain = insertion_deletion(model, images, maps, 1, protocol=name, mean=0.5)
        for transformed in (maps.exp(), 1e-30 * maps, maps**3 - 7):
            other = insertion_deletion(model, images, transformed, 1, protocol=name, mean=0.5)
            assert torch.equal(plain.insertion_curves, other.insertion_curves)
            assert torch.equal(plain.deletion_curves, other.deletion_curves)


def test_attexplore_ranks_every_channel_on_its_own() -> None:
    images, maps = pictures(2, 3, 8, 9)
    model = SmallNet(3)
    # A different growing function for each channel reorders their sum and no channel.
    stretched = (
        maps * torch.tensor([1.0, 50.0, 0.01], dtype=torch.float64)[:, None, None]
        + torch.tensor([0.0, 3.0, -2.0])[:, None, None]
    )
    plain = insertion_deletion(model, images, maps, 1, protocol="attexplore")
    assert torch.equal(
        plain.insertion_curves, insertion_deletion(model, images, stretched, 1, protocol="attexplore").insertion_curves
    )
    pixel, other = (insertion_deletion(model, images, m, 1, protocol="per_pixel") for m in (maps, stretched))
    assert not torch.equal(pixel.insertion_curves, other.insertion_curves)


@pytest.mark.parametrize("name", ["rise", "attexplore", "per_pixel", "per_element"])
def test_one_channel_of_map_serves_all_channels(name: str) -> None:
    images, maps = pictures(2, 3, 8, 9)
    model = SmallNet(3)
    single = insertion_deletion(model, images, maps[:, :1], 1, protocol=name, mean=MEAN)
    repeated = insertion_deletion(model, images, maps[:, :1].expand(-1, 3, -1, -1), 1, protocol=name, mean=MEAN)
    assert torch.equal(single.insertion_curves, repeated.insertion_curves)
    assert torch.equal(single.deletion_curves, repeated.deletion_curves)


# What the model is shown.


@pytest.mark.parametrize("chunk", [1, 5, 64])
@pytest.mark.parametrize("name", ["rise", "attexplore", "per_pixel", "per_element"])
def test_no_image_is_shown_twice_and_no_batch_is_too_large(name: str, chunk: int) -> None:
    batch, height = 3, 8
    images, maps = pictures(batch, 3, height, 9)
    model = asked(Oracle(torch.rand(3, height, 9, dtype=torch.float64)), images)
    result = insertion_deletion(model, images, maps, 1, protocol=name, mean=MEAN, internal_batch_size=chunk)
    assert max(map(len, model.batches)) <= chunk
    shown = torch.cat(model.batches).flatten(1)
    assert len(shown.unique(dim=0)) == len(shown)
    interior = 2 * batch * (height - 1)
    ends = {"rise": 2 * batch + 1, "per_pixel": batch + 1, "per_element": batch + 1}
    if name == "attexplore":
        assert len(shown) < interior + batch + 1  # three unlike channels have changed every pixel before the last step
    else:
        assert len(shown) == interior + ends[name]
    reference = insertion_deletion(model, images, maps, 1, protocol=name, mean=MEAN, internal_batch_size=1000)
    torch.testing.assert_close(result.insertion_curves, reference.insertion_curves, rtol=0, atol=1e-13)
    torch.testing.assert_close(result.deletion_curves, reference.deletion_curves, rtol=0, atol=1e-13)


def test_steps_makes_the_protocol_coarser() -> None:
    images, maps = pictures(2, 3, 6, 6)
    model = SmallNet(3)
    coarse = insertion_deletion(model, images, maps, 1, protocol="per_pixel", steps=4)
    assert coarse.protocol.step == 9
    assert coarse.insertion_curves.shape == coarse.deletion_curves.shape == (2, 5)
    fine = insertion_deletion(model, images, maps, 1, protocol=dataclasses.replace(PROTOCOLS["per_pixel"], step=3))
    torch.testing.assert_close(coarse.insertion_curves, fine.insertion_curves[:, ::3], rtol=0, atol=1e-13)
    assert insertion_deletion(model, images, maps, 1, protocol="per_pixel", steps=500).protocol.step == 1


def test_one_pixel_and_one_step() -> None:
    images = torch.full((1, 1, 1, 1), 0.75, dtype=torch.float64)
    result = insertion_deletion(Oracle(torch.ones(1, 1, 1)), images, images, 1, protocol="per_pixel")
    torch.testing.assert_close(result.insertion_curves, torch.tensor([[0, 0.75]], dtype=torch.float64))
    torch.testing.assert_close(result.deletion, torch.tensor([0.375], dtype=torch.float64))


def test_an_own_substrate_and_the_end_points() -> None:
    images, maps = pictures(3, 3, 8, 8)
    model = SmallNet(3)
    protocol = Protocol("negative", "pixel", lambda pixels: 1 - pixels, SolidColour((0.1, 0.2, 0.3)))
    result = insertion_deletion(model, images, maps, torch.tensor([1, 2, 3]), protocol=protocol)
    own = {
        "whole": images,
        "negative": 1 - images,
        "colour": torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)[:, None, None].expand_as(images),
    }
    p = {name: model(pixels).softmax(1)[range(3), [1, 2, 3]].detach() for name, pixels in own.items()}
    torch.testing.assert_close(result.insertion_curves[:, [0, -1]], torch.stack([p["negative"], p["whole"]], 1))
    torch.testing.assert_close(result.deletion_curves[:, [0, -1]], torch.stack([p["whole"], p["colour"]], 1))


def test_targets_are_numbers_lists_arrays_or_tensors() -> None:
    from fampe_fast.checks import check_targets

    images = torch.zeros(2, 3, 8, 8)
    for given in (
        [1, 1],
        (1, 1),
        1,
        np.int64(1),
        np.array(1),
        np.array([1, 1]),
        np.array([1, 1], np.uint8),
        torch.tensor(1),
    ):
        assert check_targets(given, images).tolist() == [1, 1]  # type: ignore[arg-type]
    for wrong in (np.array([1.0, 1.0]), np.array([True, False]), 1.0, True, "11", [1, None], np.array(["1", "1"])):
        with pytest.raises(TypeError, match="targets must"):
            check_targets(wrong, images)  # type: ignore[arg-type]
    for wrong in (np.array([1]), [1], np.array([[1, 1]])):
        with pytest.raises(ValueError, match="one entry per image"):
            check_targets(wrong, images)  # type: ignore[arg-type]
    for beyond in ([0, 10**30], [0, -(10**30)], [0, 2**63]):
        with pytest.raises(ValueError, match=rf"target {beyond[1]} \(image 1\) is out of range"):
            check_targets(beyond, images)


def test_the_mean_colour_is_the_models_own_unless_given() -> None:
    images, maps = pictures(2, 3, 8, 8)
    model = SmallNet(3)
    given = insertion_deletion(model, images, maps, 1, mean=MEAN)
    model.register_buffer("mean", torch.tensor(MEAN, dtype=torch.float64).reshape(1, 3, 1, 1))
    own = insertion_deletion(model, images, maps, 1)
    assert torch.equal(given.insertion_curves, own.insertion_curves)
    assert torch.equal(given.deletion_curves, own.deletion_curves)
    other = insertion_deletion(model, images, maps, 1, mean=0.9)
    assert not torch.equal(other.deletion_curves[:, -1], own.deletion_curves[:, -1])


def test_the_images_follow_the_models_precision_and_layout() -> None:
    images, maps = pictures(2, 3, 8, 8)

    class Watch(nn.Module):
        def __init__(self, dtype: torch.dtype, layout: torch.memory_format) -> None:
            super().__init__()
            self.net = nn.Conv2d(3, 2, 3).to(dtype=dtype, memory_format=layout)
            self.wide = nn.Parameter(torch.ones(4, 3, dtype=dtype).T)  # neither contiguous nor channels-last
            self.seen: set[tuple[torch.dtype, bool]] = set()

        def forward(self, pixels: Tensor) -> Tensor:
            self.seen.add((pixels.dtype, pixels.is_contiguous()))
            return self.net(pixels).mean((2, 3))

    for dtype, layout in ((torch.bfloat16, torch.channels_last), (torch.float32, torch.contiguous_format)):
        model = Watch(dtype, layout).eval()
        result = insertion_deletion(model, images.float(), maps, 1, protocol="attexplore")
        assert model.seen == {(dtype, layout == torch.contiguous_format)}
        assert result.insertion.dtype == result.insertion_curves.dtype == torch.float32


def test_results_are_ordinary_tensors_and_inputs_stay_as_they_were() -> None:
    images, maps = pictures(2, 3, 8, 8)
    copies = images.clone(), maps.clone()
    result = insertion_deletion(SmallNet(3), images.requires_grad_(), maps, 1, protocol="per_pixel")
    for tensor in (result.insertion, result.deletion, result.insertion_curves, result.deletion_curves):
        assert not tensor.is_inference()
        assert not tensor.requires_grad
    assert torch.equal(images.detach(), copies[0])
    assert torch.equal(maps, copies[1])


def test_targets_in_every_form_agree() -> None:
    images, maps = pictures(2, 3, 8, 8)
    model = SmallNet(3)
    forms = [2, [2, 2], (2, 2), torch.tensor(2), torch.tensor([2, 2], dtype=torch.int32), np.int64(2)]
    curves = [insertion_deletion(model, images, maps, form, protocol="per_pixel").insertion_curves for form in forms]
    assert all(torch.equal(curves[0], curve) for curve in curves)


def test_no_images_give_empty_results() -> None:
    images = torch.zeros(0, 3, 6, 5)
    for targets in ([], 3, torch.zeros(0, dtype=torch.long)):
        result = insertion_deletion(SmallNet(3), images, images, targets, mean=0.5)
        assert result.insertion.shape == result.deletion.shape == result.faithfulness.shape == (0,)
        assert result.insertion_curves.shape == result.deletion_curves.shape == (0, 7)


def test_progress_goes_to_standard_error_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "100")):  # as on a terminal
        monkeypatch.setenv(name, value)
    images, maps = pictures(1, 3, 8, 8)
    model = SmallNet(3)
    shown = insertion_deletion(model, images, maps, 1, protocol="per_pixel", show_progress=True)
    written = capsys.readouterr()
    assert written.out == ""
    assert "insertion and deletion" in written.err
    assert "100%" in written.err
    quiet = insertion_deletion(model, images, maps, 1, protocol="per_pixel")
    assert torch.equal(shown.insertion, quiet.insertion)
    assert capsys.readouterr() == ("", "")


# Bad input.

IMAGES, MAPS = pictures(2, 3, 8, 8)


def with_value(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed[1, 0, 2, 3] = value
    return changed


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": SmallNet(3).train()}, ValueError, "training mode"),
        ({"model": "resnet50"}, TypeError, "callable, got str"),
        ({"model": nn.Linear(3, 3, device="meta").eval()}, ValueError, "'weight' is on meta and the images are on cpu"),
        ({"images": IMAGES.numpy()}, TypeError, "images must be a torch.Tensor .* got ndarray"),
        ({"images": (IMAGES * 255).to(torch.uint8)}, TypeError, "got torch.uint8"),
        ({"images": IMAGES[0]}, ValueError, r"images must be \(B, C, H, W\).*\(3, 8, 8\)"),
        ({"images": IMAGES[..., :0]}, ValueError, r"at least 1, got shape \(2, 3, 8, 0\)"),
        ({"images": with_value(IMAGES, math.nan)}, ValueError, r"images must be finite.* image\(s\) 1$"),
        ({"images": IMAGES * 2 - 1}, ValueError, r"images must lie in \[0, 1\], got values from -"),
        ({"maps": MAPS.tolist()}, TypeError, "maps must be a torch.Tensor"),
        ({"maps": MAPS.int()}, TypeError, "maps must be floating-point, got torch.int32"),
        ({"maps": MAPS[:1]}, ValueError, r"maps must have the images' shape \(2, 3, 8, 8\) .* got \(1, 3, 8, 8\)"),
        ({"maps": MAPS[:, :2]}, ValueError, r"got \(2, 2, 8, 8\)"),
        ({"maps": with_value(MAPS, math.nan)}, ValueError, r"maps must be finite.* image\(s\) 1$"),
        ({"maps": with_value(MAPS, -math.inf)}, ValueError, r"maps must be finite.* image\(s\) 1$"),
        ({"targets": 4}, ValueError, r"target 4 \(image 0\) is out of range: the model has 4 classes, expected 0 to 3"),
        ({"targets": [0, 9]}, ValueError, r"target 9 \(image 1\)"),
        ({"targets": [0, -1]}, ValueError, r"target -1 \(image 1\) is out of range"),
        ({"targets": [0]}, ValueError, r"one entry per image, \(2,\), got shape \(1,\)"),
        ({"targets": torch.zeros(2, 1, dtype=torch.long)}, ValueError, r"got shape \(2, 1\)"),
        ({"targets": torch.zeros(2)}, TypeError, "targets must hold integers, got a tensor of torch.float32"),
        ({"targets": [0.5, 1.0]}, TypeError, "targets must be an int, or a sequence, array or tensor of ints"),
        ({"targets": "01"}, TypeError, "got '01'"),
        ({"targets": None}, TypeError, "got 'None'"),
        ({"targets": np.zeros(2)}, TypeError, "targets must be an int, or a sequence"),
        (
            {"protocol": "risE"},
            ValueError,
            "unknown protocol 'risE'; known are rise, attexplore, per_pixel, per_element",
        ),
        ({"protocol": 3}, TypeError, "protocol must be a name or a Protocol, got int"),
        ({"protocol": "rise"}, ValueError, "no attribute `mean`: give mean="),
        ({"protocol": "rise", "mean": (0.5, 0.5)}, ValueError, "mean must be one number or 3, one per channel; got 2"),
        ({"protocol": "rise", "mean": 127.5}, ValueError, r"mean must lie in \[0, 1\]"),
        ({"protocol": "rise", "mean": "grey"}, TypeError, "mean must be a number, a sequence of numbers or a tensor"),
        ({"internal_batch_size": 0}, ValueError, "internal_batch_size must be at least 1, got 0"),
        ({"internal_batch_size": 2.0}, TypeError, "internal_batch_size must be a whole number"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    given = {"model": SmallNet(3), "images": IMAGES, "maps": MAPS, "targets": 1, "protocol": "per_pixel"} | change
    with pytest.raises(error, match=message):
        insertion_deletion(given.pop("model"), given.pop("images"), given.pop("maps"), given.pop("targets"), **given)


def test_a_model_that_gives_something_else_than_logits_is_named() -> None:
    cases: list[tuple[Callable[[Tensor], object], type[Exception], str]] = [
        (
            lambda pixels: (pixels, pixels),
            TypeError,
            r"a tensor of logits .* got tuple of Tensor \(1, 3, 8, 8\)",
        ),
        (lambda pixels: pixels.mean((1, 2, 3)), ValueError, r"\(B, classes\); for images \(1, 3, 8, 8\) it is \(1,\)"),
        (lambda pixels: pixels, ValueError, r"it is \(8, 3, 8, 8\)"),
        (lambda pixels: torch.cat([pixels.mean((2, 3))] * 2), ValueError, r"it is \(2, 3\)"),
        (
            lambda pixels: pixels.mean((2, 3)) / (pixels.amax((1, 2, 3)) > 0)[:, None],
            ValueError,
            "NaN for the image of",
        ),
        (lambda pixels: torch.where(pixels == IMAGES[1], math.nan, pixels).mean((2, 3)), ValueError, "NaN for image 1"),
    ]
    for model, error, message in cases:
        with pytest.raises(error, match=message):
            insertion_deletion(model, IMAGES, MAPS, 1, protocol="per_pixel")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Protocol("p", "rows", SolidColour(0), SolidColour(0)), ValueError, "ranking must be one of"),
        (lambda: Protocol("p", "pixel", 0.5, SolidColour(0)), TypeError, "insertion_substrate must be .* got float"),
        (
            lambda: Protocol("p", "pixel", SolidColour(0), SolidColour(0), 0),
            ValueError,
            "step must be at least 1 pixel",
        ),
        (lambda: Protocol("p", "pixel", SolidColour(0), SolidColour(0), 1.5), TypeError, "whole number of pixels"),
        (lambda: SolidColour(128), ValueError, r"\[0, 1\], the units of pixels, got 128"),
        (lambda: SolidColour([0.1]), TypeError, "a number, a tuple of numbers or None"),
        (lambda: GaussianBlur(kernel_size=4), ValueError, "odd and at least 1, got 4"),
        (lambda: GaussianBlur(sigma=0.0), ValueError, "finite and above 0"),
    ],
)
def test_protocols_check_themselves(make: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_substrates_that_do_not_fit_the_images_are_named() -> None:
    for substrate, error, message in (
        (SolidColour((0.1, 0.2)), ValueError, "does not fit images of 3 channel"),
        (lambda pixels: pixels[:, :1], ValueError, r"images' shape \(2, 3, 8, 8\), got \(2, 1, 8, 8\)"),
        (lambda pixels: None, TypeError, "must return a tensor, got NoneType"),
        (lambda pixels: pixels / 0, ValueError, r"substrate must be finite.* 0, 1"),
    ):
        with pytest.raises(error, match=message):
            insertion_deletion(
                SmallNet(3), IMAGES, MAPS, 1, protocol=Protocol("p", "pixel", substrate, SolidColour(0.0))
            )


# Substrates.


@pytest.mark.parametrize(("size", "sigma"), [(11, 5.0), (3, 1.0), (7, 0.4), (1, 2.0), (5, 30.0)])
def test_blur_kernel_is_scipys_gaussian_filter_of_an_impulse(size: int, sigma: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    impulse = np.zeros((size, size))
    impulse[size // 2, size // 2] = 1
    kernel = GaussianBlur(size, sigma).kernel()
    np.testing.assert_allclose(np.outer(kernel, kernel), ndimage.gaussian_filter(impulse, sigma), rtol=0, atol=1e-15)
    assert sum(kernel) == pytest.approx(1, abs=1e-15)


def test_blur_keeps_the_mean_colour_and_pulls_borders_towards_it() -> None:
    mean = torch.tensor(MEAN, dtype=torch.float64)
    flat = mean[:, None, None].expand(1, 3, 9, 30).clone()
    blur = GaussianBlur()
    torch.testing.assert_close(blur(flat, mean), flat, rtol=0, atol=1e-15)
    bright = blur(torch.ones(1, 3, 31, 31, dtype=torch.float64), mean)
    torch.testing.assert_close(bright[:, :, 5:-5, 5:-5], torch.ones(1, 3, 21, 21).double(), rtol=0, atol=1e-14)
    assert (bright[:, :, 0] < 1).all()
    black_border = GaussianBlur(padding=SolidColour(0.0))(torch.ones(1, 1, 5, 5, dtype=torch.float64))
    edge = sum(blur.kernel()[3:8])  # 5 pixels of the window lie on the image, in the middle of it
    assert black_border[0, 0, 2, 2].item() == pytest.approx(edge**2, abs=1e-14)


# The masked batch.


def masked_by_hand(start: Tensor, finish: Tensor, first_step: Tensor, image_index: Tensor, step: Tensor) -> Tensor:
    rows = torch.empty((len(step), *start.shape[1:]), dtype=start.dtype)
    for p, (b, k) in enumerate(zip(image_index.tolist(), step.tolist(), strict=True)):
        for h in range(start.shape[2]):
            for w in range(start.shape[3]):
                rows[p, :, h, w] = (finish if first_step[b, h, w] <= k else start)[b, :, h, w]
    return rows


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (1, 1, 3, 3), (2, 4, 1, 7)], ids=str)
@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "sliced", "expanded"])
def test_pixel_mask_equals_the_loop(shape: tuple[int, ...], kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    start, finish = torch.rand(2, *shape, generator=generator)
    if kind == "channels_last":
        start, finish = (image.contiguous(memory_format=torch.channels_last) for image in (start, finish))
    elif kind == "sliced":
        start, finish = (
            torch.cat([image, image], 3)[..., :: 2 if shape[3] == 1 else 1][..., : shape[3]]
            for image in (start, finish)
        )
    elif kind == "expanded":
        finish = finish[:1, :, :1, :1].expand(shape)
    batch, _, height, width = shape
    first_step = torch.randint(1, 5, (batch, height, width), generator=generator, dtype=torch.int32)
    image_index = torch.randint(0, batch, (11,), generator=generator)
    step = torch.arange(11) % 6
    rows = pixel_mask(start, finish, first_step, image_index, step)
    assert torch.equal(rows, masked_by_hand(start, finish, first_step, image_index, step))
    channels_last = kind == "channels_last" and shape[1] > 1
    assert rows.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_pixel_mask_selects_and_does_not_blend() -> None:
    start, finish = torch.full((1, 2, 3, 3), math.nan), torch.ones(1, 2, 3, 3)
    first_step = torch.ones(1, 3, 3, dtype=torch.int32)
    rows = pixel_mask(start, finish, first_step, torch.tensor([0, 0]), torch.tensor([1, 0]))
    assert (rows[0] == 1).all()
    assert rows[1].isnan().all()


def test_pixel_mask_of_no_rows_is_empty() -> None:
    none = torch.zeros(0, dtype=torch.long)
    image = torch.rand(1, 3, 4, 5)
    assert pixel_mask(image, image, torch.ones(1, 4, 5, dtype=torch.int32), none, none).shape == (0, 3, 4, 5)


# Localisation.


def masks_and_maps() -> tuple[Tensor, Tensor]:
    masks = torch.zeros(3, 6, 8, dtype=torch.bool)
    masks[0, :3] = True
    masks[1, 2, 5] = True
    masks[2] = True
    return masks, pictures(3, 3, 6, 8)[1]


def test_relevance_mass_of_a_uniform_map_is_the_share_of_the_area() -> None:
    masks, maps = masks_and_maps()
    expected = torch.tensor([1 / 2, 1 / 48, 1], dtype=torch.float64)
    torch.testing.assert_close(relevance_mass(torch.ones_like(maps), masks), expected)


@pytest.mark.parametrize("scale", [1.0, 1e-40, 1e36])
def test_relevance_mass_is_the_positive_share_of_the_channel_sum(scale: float) -> None:
    masks, maps = masks_and_maps()
    maps = maps.float() * scale
    got = relevance_mass(maps, masks[:, None])
    for i in range(3):
        light = np.clip(maps[i].double().numpy().sum(0), 0, None)
        assert got[i].item() == pytest.approx(light[masks[i].numpy()].sum() / light.sum(), rel=1e-4)
    inverse = relevance_mass(maps[:2], ~masks[:2])
    torch.testing.assert_close(got[:2] + inverse, torch.ones(2))


def test_relevance_mass_of_maps_inside_outside_and_nowhere() -> None:
    masks, maps = masks_and_maps()
    inside = maps.abs() * masks[:, None] + masks[:, None]
    assert torch.equal(relevance_mass(inside, masks), torch.ones(3).double())
    assert torch.equal(relevance_mass(maps.abs()[:2] * ~masks[:2, None], masks[:2]), torch.zeros(2).double())
    assert torch.equal(relevance_mass(-maps.abs(), masks), torch.zeros(3).double())
    assert torch.equal(relevance_mass(torch.zeros_like(maps), masks), torch.zeros(3).double())


def test_pointing_game_looks_at_the_largest_channel_sum() -> None:
    masks, _ = masks_and_maps()
    maps = torch.zeros(3, 2, 6, 8)
    maps[0, :, 2, 7] = 1  # a sum of 2 inside
    maps[0, 0, 4, 4] = 1.5  # the largest single value, outside
    maps[1, :, 2, 4] = 1  # one pixel beside the object
    maps[2, :, 0, 0] = -1  # the rest, all equal, is the maximum: its first pixel
    assert pointing_game(maps, masks).tolist() == [True, False, True]
    assert pointing_game(maps, torch.ones_like(masks)).tolist() == [True] * 3


def test_pointing_game_takes_the_first_of_equal_maxima() -> None:
    maps = torch.zeros(2, 1, 5, 6)
    maps[:, :, 1, 4] = maps[:, :, 3, 2] = 7
    masks = torch.zeros(2, 5, 6, dtype=torch.bool)
    masks[0, 1, 4] = masks[1, 3, 2] = True
    assert pointing_game(maps, masks).tolist() == [True, False]


@pytest.mark.parametrize(("tolerance", "hit"), [(0, False), (4.99, False), (5, True), (100, True)])
def test_pointing_game_measures_the_tolerance_as_a_distance(tolerance: float, hit: bool) -> None:
    maps, masks = torch.zeros(1, 1, 9, 12), torch.zeros(1, 9, 12, dtype=torch.bool)
    maps[0, 0, 7, 10] = 1
    masks[0, 4, 6] = True  # 3 rows and 4 columns away
    assert pointing_game(maps, masks, tolerance=tolerance).item() is hit


def test_a_constant_map_points_nowhere() -> None:
    masks = torch.ones(2, 4, 4, dtype=torch.bool)
    assert not pointing_game(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]), masks).any()


def test_localisation_of_no_images_is_empty() -> None:
    maps, masks = torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool)
    assert relevance_mass(maps, masks).shape == pointing_game(maps, masks).shape == (0,)


@pytest.mark.parametrize("score", [relevance_mass, pointing_game])
@pytest.mark.parametrize(
    ("maps", "masks", "error", "message"),
    [
        (torch.zeros(2, 3, 4, 4).int(), torch.ones(2, 4, 4).bool(), TypeError, "maps must be a floating-point"),
        (torch.zeros(2, 3, 4, 4), torch.ones(2, 4, 4), TypeError, "masks must be a torch.Tensor of bool.*float32"),
        (torch.zeros(3, 4, 4), torch.ones(2, 4, 4).bool(), ValueError, r"maps must be \(B, C, H, W\).*\(3, 4, 4\)"),
        (torch.zeros(2, 3, 4, 4), torch.ones(2, 4, 5).bool(), ValueError, r"masks must be .* got \(2, 4, 5\)"),
        (torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4).bool(), ValueError, r"got \(2, 3, 4, 4\)"),
        (torch.full((2, 3, 4, 4), math.nan), torch.ones(2, 4, 4).bool(), ValueError, r"maps must be finite.* 0, 1"),
        (
            torch.zeros(2, 3, 4, 4),
            torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]).bool(),
            ValueError,
            "image 1 is empty",
        ),
    ],
)
def test_bad_localisation_input_is_named(
    score, maps: Tensor, masks: Tensor, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        score(maps, masks)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_bad_tolerance_is_named(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance must be finite and at least 0"):
        pointing_game(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2).bool(), tolerance=tolerance)


# Summaries.


def test_mean_and_error_equal_the_statistics_module() -> None:
    values = [0.25, 0.5, 0.125, 0.9, 0.33]
    got = mean_and_error(values)
    assert got.mean == pytest.approx(statistics.fmean(values), abs=1e-15)
    assert got.standard_error == pytest.approx(statistics.stdev(values) / math.sqrt(5), abs=1e-15)
    assert got == mean_and_error(torch.tensor(values, dtype=torch.float64))
    assert str(got) == "0.421 ± 0.134 (n=5)"
    assert mean_and_error(torch.tensor([True, False, True, True])).mean == 0.75


def test_one_value_has_no_error() -> None:
    assert mean_and_error([0.5]) == Estimate(0.5, None, 1)
    assert str(Estimate(0.5, None, 1)) == "0.500 (n=1)"


def test_paired_difference_cancels_what_the_images_share() -> None:
    base = torch.randn(20, dtype=torch.float64)
    shifted = paired_difference(base + 0.25, base)
    assert shifted.mean == pytest.approx(0.25, abs=1e-12)
    assert shifted.standard_error == pytest.approx(0, abs=1e-12)
    other = torch.randn(20, dtype=torch.float64)
    forward, backward = paired_difference(base, other), paired_difference(other, base)
    assert forward.mean == pytest.approx(-backward.mean)
    a, b = base.tolist(), other.tolist()
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assert forward.standard_error == pytest.approx(statistics.stdev(differences) / math.sqrt(20))
    spread = sum(statistics.variance(v) for v in (a, b)) - 2 * statistics.covariance(a, b)
    assert forward.standard_error == pytest.approx(math.sqrt(spread / 20))


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match=r"values must be \(n,\) with n at least 1, got shape \(0,\)"):
        mean_and_error([])
    with pytest.raises(ValueError, match=r"got shape \(2, 2\)"):
        mean_and_error(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="values must be finite, got nan at index 1"):
        mean_and_error([0.5, math.nan])
    with pytest.raises(ValueError, match="b must be finite, got inf at index 0"):
        paired_difference([0.5], [math.inf])
    with pytest.raises(ValueError, match="the same number, got 2 and 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


# A real classifier.


@pytest.mark.shared
@pytest.mark.parametrize("name", ["rise", "attexplore", "per_pixel", "per_element"])
def test_end_points_are_the_classifiers_own_probabilities(name: str, mobilenet, photographs) -> None:
    images, labels = photographs(2)
    maps = images - 0.5
    result = insertion_deletion(mobilenet, images, maps, labels, protocol=name, steps=4)
    blurred = GaussianBlur()(images, mobilenet.mean.flatten())
    fill = torch.full_like(images, 0.5 if name == "rise" else 0.0)
    with torch.no_grad():
        own = {
            key: mobilenet(pixels).softmax(1)[range(2), labels]
            for key, pixels in (("image", images), ("fill", fill), ("blurred", blurred))
        }
    start = own["blurred" if name == "rise" else "fill"]
    for curve, first, last in (
        (result.insertion_curves, start, own["image"]),
        (result.deletion_curves, own["image"], own["fill"]),
    ):
        assert curve.shape == (2, 5)
        torch.testing.assert_close(curve[:, 0], first, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(curve[:, -1], last, rtol=1e-3, atol=1e-5)
    assert (own["image"] > 10 * own["fill"]).all()


@pytest.mark.slow
@pytest.mark.shared
def test_the_order_of_all_values_is_the_later_public_code_s_on_the_real_classifier(mobilenet, photographs) -> None:
    images, labels = photographs(2)
    maps = torch.randn(images.shape, generator=torch.Generator().manual_seed(6))
    step = 224 * 224 // 4
    protocol = dataclasses.replace(PROTOCOLS["per_element"], step=step)
    result = insertion_deletion(mobilenet, images, maps, labels, protocol=protocol)
    for i in range(2):
        for curves, insert in ((result.insertion_curves, True), (result.deletion_curves, False)):
            expected = later_public_scores(mobilenet, images[i].numpy(), maps[i].numpy(), step, insert, int(labels[i]))
            np.testing.assert_allclose(curves[i], expected, rtol=1e-3, atol=1e-5)
    coarse = insertion_deletion(mobilenet, images, maps, labels, protocol="per_element", steps=4)
    assert torch.equal(coarse.insertion_curves, result.insertion_curves)
