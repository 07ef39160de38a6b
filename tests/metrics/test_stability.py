"""Stability against methods whose maps are known, distances taken in numpy, and symmetries."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fampe_fast import FAMPE
from fampe_fast.methods import METHODS, create_method
from fampe_fast.metrics import stability

from ..models_for_tests import Smooth, TwoClassLinear, some_images, suited
from ..runtime.test_contexts import options_of

DISTANCES = ("l1", "l2", "squared_l2", "spearman")


class Method:
    """A map that is a function of the image; keeps what it was asked, and takes no image ids, as Captum's methods."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.inputs: list[Tensor] = []
        self.maps: list[Tensor] = []
        self.targets: list[Tensor] = []

    def attribute(self, inputs: Tensor, target: object = None) -> Tensor:
        self.inputs.append(inputs.clone())
        self.targets.append(target)
        self.maps.append(self.function(inputs))
        return self.maps[-1]

    def noise(self) -> Tensor:
        """(samples, B, C, H, W): what was added to the images."""
        return torch.stack(self.inputs[1:]) - self.inputs[0]


class ByIdentity:
    """A stochastic method: its map is noise named by the image's id, plus, times ``weight``, the image."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.ids: list[list[int]] = []

    def attribute(self, inputs: Tensor, target: object = None, *, image_ids: Tensor | None = None) -> Tensor:
        ids = list(range(len(inputs))) if image_ids is None else image_ids.tolist()
        self.ids.append(ids)
        generators = [torch.Generator().manual_seed(number) for number in ids]
        noise = torch.stack([torch.randn(inputs.shape[1:], generator=generator) for generator in generators])
        return noise + self.weight * inputs


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("reduce", ["mean", "max"])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_map_that_never_changes_is_perfectly_stable(distance: str, reduce: str, normalise: bool) -> None:
    images = some_images(2)
    options = {"distance": distance, "reduce": reduce, "normalise": normalise, "samples": 3, "radius": 0.3}
    pattern = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(0))
    for function in (lambda x: pattern.expand_as(x), torch.zeros_like, lambda x: torch.full_like(x, 0.1)):
        assert stability(Method(function), images, 0, **options).scores.tolist() == [0, 0]


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_gradient_of_a_linear_logit_does_not_move(distance: str) -> None:
    pytest.importorskip("captum")
    images = some_images(2)
    weight = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(1))
    method = create_method("saliency", TwoClassLinear(weight), absolute=False)
    result = stability(method, images, 0, distance=distance, radius=0.2, samples=3, reduce="max")
    assert result.scores.tolist() == [0, 0]


def test_input_times_gradient_of_a_linear_model_moves_by_the_weighted_noise() -> None:
    images = some_images(2)
    weight = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(1))
    method = Method(lambda x: x * weight)
    result = stability(method, images, 0, radius=0.1, samples=5, reduce="max")
    moved = (method.noise().double() * weight).flatten(2).norm(dim=2)
    own = (images.double() * weight).flatten(1).norm(dim=1)
    torch.testing.assert_close(result.distances, (moved / own).T.float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(result.scores, (moved / own).amax(0).float(), rtol=1e-5, atol=0)


def test_the_expected_distances_of_the_image_itself() -> None:
    """Uniform noise in [-r, r]: |d| has mean r/2, d squared r^2/3."""
    images = some_images(3, 3, 24, 24)
    count, radius = images[0].numel(), 0.1
    for distance, expected, spread in (("l1", radius / 2, 3**-0.5), ("squared_l2", radius**2 / 3, 0.8**0.5 * 1.001)):
        options = {"distance": distance, "normalise": False, "samples": 20, "radius": radius}
        scores = stability(Method(lambda x: x), images, 0, **options).scores / count
        assert ((scores / expected - 1).abs() < 5 * spread / math.sqrt(20 * count)).all()


def test_noise_is_uniform_within_the_radius_independent_and_of_both_signs() -> None:
    images, method = torch.full((2, 3, 24, 24), 0.5, dtype=torch.float64), Method(lambda x: x)
    stability(method, images, 0, radius=0.25, samples=8)
    noise = method.noise() / 0.25
    assert noise.abs().max() < 1
    assert noise.abs().max() > 0.99
    stats = pytest.importorskip("scipy.stats")
    assert stats.kstest(noise.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4
    rows = noise.flatten(2).flatten(0, 1)
    correlation = torch.corrcoef(rows).fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(rows.shape[1])


def test_copies_are_clamped_to_the_range_of_pixels() -> None:
    images, method = torch.cat([torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)]), Method(lambda x: x + 1)
    stability(method, images, 0, radius=0.25, samples=4)
    black, white = method.noise().unbind(1)
    for noise in (black, -white):
        assert noise.min() == 0
        assert 0.35 < (noise == 0).float().mean() < 0.65
        assert 0.2 < noise.max() < 0.25


def naive_distance(still: np.ndarray, moved: np.ndarray, distance: str, normalise: bool) -> float:
    if distance == "spearman":
        stats = pytest.importorskip("scipy.stats")
        return 1 - stats.spearmanr(still.ravel(), moved.ravel())[0]
    order = 1 if distance == "l1" else 2
    power = 2 if distance == "squared_l2" else 1
    found = np.linalg.norm((moved - still).ravel(), order) ** power
    return found / np.linalg.norm(still.ravel(), order) ** power if normalise else found


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_scores_equal_the_naive_loop(distance: str, normalise: bool, scale: float) -> None:
    images = some_images(3, 3, 9, 13)
    method = Method(lambda x: (x * 40).round() * scale * (x.mean((1, 2, 3), keepdim=True) - 0.5))
    options = {"distance": distance, "normalise": normalise, "samples": 4, "radius": 0.05}
    mean, largest = (stability(method, images.double(), [0, 1, 0], reduce=r, **options) for r in ("mean", "max"))
    maps = [found.numpy() for found in method.maps[:5]]
    expected = [[naive_distance(maps[0][k], moved[k], distance, normalise) for moved in maps[1:]] for k in range(3)]
    np.testing.assert_allclose(mean.distances, expected, rtol=1e-12, atol=1e-14 * scale**2)
    np.testing.assert_allclose(mean.scores, np.mean(expected, 1), rtol=1e-12)
    np.testing.assert_allclose(largest.scores, np.max(expected, 1), rtol=1e-12)
    assert torch.equal(mean.distances, largest.distances)
    assert all(torch.equal(target, torch.tensor([0, 1, 0])) for target in method.targets)
    assert (mean.radius, mean.reduce, mean.distance, mean.normalise) == (0.05, "mean", distance, normalise)


def test_spearman_sees_the_order_alone() -> None:
    pattern = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(3))
    images = some_images(2, 3, 12, 12)
    stretched = Method(lambda x: (pattern * (1 + 10 * x.mean((1, 2, 3), keepdim=True))).exp())
    assert stability(stretched, images, 0, distance="spearman").scores.tolist() == [0, 0]
    assert (stability(stretched, images, 0, distance="l2").scores > 0).all()
    calls = iter([1.0, -1.0, -2.0])
    reversed_ = Method(lambda x: next(calls) * pattern.expand_as(x))
    assert stability(reversed_, images, 0, distance="spearman", samples=2).scores.tolist() == [2, 2]
    calls = iter([1.0, 0.0, 0.0])
    gone = Method(lambda x: next(calls) * pattern.expand_as(x))
    assert stability(gone, images, 0, distance="spearman", samples=2).scores.tolist() == [1, 1]


def test_a_stochastic_method_meets_its_own_noise_again() -> None:
    images = some_images(3)
    still = ByIdentity(0)
    assert stability(still, images, 0, samples=2).scores.tolist() == [0, 0, 0]
    assert stability(still, images, 0, samples=2, image_ids=[7, 3, 5]).scores.tolist() == [0, 0, 0]
    assert still.ids == [[0, 1, 2]] * 3 + [[7, 3, 5]] * 3


def test_fampe_is_compared_with_itself_and_not_with_other_noise() -> None:
    """The noise of FAMPE's own samples moves its map more than a small change of the image does."""
    images, model = some_images(2), Smooth()
    method = FAMPE(model, steps=2, samples=3, sigma=64 / 255)
    little = stability(method, images, 1, radius=1e-4, samples=2, image_ids=[4, 9], reduce="max").scores
    maps = method.attribute(images, target=1, image_ids=[4, 9])
    others = method.attribute(images, target=1, image_ids=[5, 8])
    by_chance = (maps - others).flatten(1).norm(dim=1) / maps.flatten(1).norm(dim=1)
    assert (little < 0.1 * by_chance).all()
    assert (little > 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_package_is_taken(name: str) -> None:
    pytest.importorskip("captum")
    method = create_method(name, suited(name), **options_of(name))
    scores = stability(method, some_images(2), 1, samples=2, image_ids=[3, 1], internal_batch_size=2).scores
    assert scores.isfinite().all()
    blind = name.endswith(("centre_prior", "random_map"))
    assert bool((scores == 0).all()) if blind else bool((scores > 0).all())


def test_captums_own_methods_are_taken_with_image_ids_given() -> None:
    captum_attr = pytest.importorskip("captum.attr")
    model, images = Smooth(), some_images(3)
    ours, theirs = create_method("saliency", model), captum_attr.Saliency(model)
    found = [stability(method, images, [1, 2, 0], samples=3, image_ids=[5, 0, 9]) for method in (ours, theirs)]
    torch.testing.assert_close(found[0].distances, found[1].distances, rtol=1e-4, atol=1e-7)
    assert (found[0].scores > 0).all()


def test_scores_depend_on_seed_and_id_and_not_on_the_batch() -> None:
    images, method = some_images(4), ByIdentity(1.0)
    whole = stability(method, images, 0, samples=3).distances
    for k in range(4):
        assert torch.equal(stability(method, images[k : k + 1], 0, samples=3, image_ids=[k]).distances[0], whole[k])
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(stability(method, images[order], 0, samples=3, image_ids=order).distances, whole[order])
    assert torch.equal(stability(method, images, 0, samples=5).distances[:, :3], whole)
    assert not torch.isclose(stability(method, images, 0, samples=3, seed=1).distances, whole).any()


def test_the_caller_is_left_alone_and_the_cost_is_one_attribution_more_than_samples() -> None:
    images, method = some_images(2).requires_grad_(), Method(lambda x: 3 * x)
    state, before = torch.get_rng_state(), images.detach().clone()
    result = stability(method, images, 0, samples=4)
    assert len(method.inputs) == 5
    assert torch.equal(method.inputs[0], before)
    assert torch.equal(images, before)
    assert images.grad is None
    assert not result.scores.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_maps_of_any_shape_are_compared() -> None:
    scores = stability(Method(lambda x: x.mean((1, 2))), some_images(2), 0).scores  # (B, W)
    assert (scores > 0).all()


def test_no_images_give_no_scores() -> None:
    result = stability(Method(lambda x: x), torch.zeros(0, 3, 8, 8), 0, samples=3, reduce="max")
    assert result.scores.shape == (0,)
    assert result.distances.shape == (0, 3)


IMAGES = some_images(2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": lambda x: x}, TypeError, "method must have a method 'attribute', got function"),
        ({"method": Method(lambda x: None)}, TypeError, "maps as a floating-point tensor, got NoneType"),
        ({"method": Method(lambda x: x.long())}, TypeError, "maps as a floating-point tensor, got torch.int64"),
        ({"method": Method(lambda x: x[:1])}, ValueError, "one map per image, 2, got shape"),
        ({"method": Method(lambda x: x / 0)}, ValueError, r"the method's maps must be finite.*image\(s\) 0, 1"),
        ({"images": IMAGES * 2}, ValueError, r"images must lie in \[0, 1\]"),
        ({"images": IMAGES.byte()}, TypeError, "images must be floating-point"),
        ({"targets": [0]}, ValueError, "one entry per image"),
        ({"targets": None}, TypeError, "targets must be an int"),
        ({"radius": 0.0}, ValueError, "radius must be finite and above 0, in pixel units, got 0.0"),
        ({"radius": math.inf}, ValueError, "radius must be finite and above 0"),
        ({"radius": "small"}, TypeError, "radius must be a number, got 'small'"),
        ({"samples": 0}, ValueError, "samples must be at least 1"),
        ({"reduce": "median"}, ValueError, r"reduce must be one of \['mean', 'max'\], got 'median'"),
        ({"distance": "cosine"}, ValueError, "distance must be one of .* got 'cosine'"),
        ({"seed": True}, TypeError, "seed must be a whole number"),
        ({"image_ids": [1, 2, 3]}, ValueError, r"one entry per image, \(2,\), got shape \(3,\)"),
        ({"internal_batch_size": 0}, ValueError, "internal_batch_size must be at least 1"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"method": Method(lambda x: x), "images": IMAGES, "targets": 0} | change
    with pytest.raises(error, match=message):
        stability(**arguments)


def test_maps_that_change_their_shape_are_named() -> None:
    sizes = iter([8, 9])
    with pytest.raises(ValueError, match=r"keep their shape \(2, 3, 8, 24\), got \(2, 3, 9, 24\)"):
        stability(Method(lambda x: x[:, :, : next(sizes)]), IMAGES, 0, samples=1)
