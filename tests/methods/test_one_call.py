"""One call, one behaviour: what FAMPE takes and says, every method, attack and Occluded Frequency takes and says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fampe_fast import FAMPE, AttEXplore, FrequencyAttribution, OccludedFrequency, create_method
from fampe_fast.errors import FampeWarning
from fampe_fast.methods import METHODS, CaptumMethod, FORGrad
from fampe_fast.methods.base import describe, passes_of
from fampe_fast.methods.registry import options_of as known_options
from fampe_fast.robustness import BandLimitedAttack

from ..models_for_tests import Smooth, some_images, suited
from ..runtime.test_contexts import options_of

captum_attr = pytest.importorskip("captum.attr")


def made(name: str, model: Any, **options: Any) -> Any:
    return create_method(name, model, **{**options_of(name), **options})


class OfALibrary(Tensor):
    """A kind of tensor as fastai and MONAI have, which operators hand on."""


@pytest.mark.parametrize("name", METHODS)
def test_tensors_of_a_library_s_own_kind_are_taken_as_plain_ones(name: str) -> None:
    method, images = made(name, suited(name)), some_images(2)
    found = method.attribute(images.as_subclass(OfALibrary), [1, 4])
    assert type(found) is Tensor
    assert torch.equal(found, method.attribute(images, [1, 4]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", METHODS)
def test_models_of_every_precision_are_taken(name: str, dtype: torch.dtype) -> None:
    images = some_images(2)
    maps = made(name, suited(name).to(dtype)).attribute(images, [1, 4])
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert maps.abs().sum() > 0
    if dtype == torch.float64:
        single = made(name, suited(name)).attribute(images, [1, 4])
        assert float(torch.corrcoef(torch.stack([maps.flatten(), single.flatten()]))[0, 1]) > 0.99


@pytest.mark.parametrize("name", METHODS)
def test_captums_sensitivity_takes_every_method(name: str) -> None:
    metrics = pytest.importorskip("captum.metrics")
    bounds = {"bounds": (-1.0, 2.0)}  # its noise leaves [0, 1]
    method = made(name, suited(name), **bounds)
    found = metrics.sensitivity_max(method.attribute, some_images(1), target=1, n_perturb_samples=2)
    assert found.shape == (1,)
    assert found.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_one_input_in_a_tuple_gives_one_map_in_a_tuple(name: str) -> None:
    images, method = some_images(2), made(name, suited(name))
    (maps,) = method.attribute((images,), [1, 2])
    assert torch.equal(maps, method.attribute(images, [1, 2]))
    with pytest.raises(TypeError, match=r"inputs must be a torch.Tensor \(B, C, H, W\), got tuple"):
        method.attribute((images, images), [1, 2])


def test_details_come_beside_the_tuple() -> None:
    images = some_images(2)
    (maps,), details = FAMPE(Smooth(), steps=1, samples=2).attribute((images,), 1, return_details=True)
    assert maps.shape == images.shape
    assert details.model_passes == 1 + 1 * 2


@pytest.mark.parametrize("name", METHODS)
def test_noise_tunnels_take_every_method(name: str) -> None:
    method = made(name, suited(name), bounds=(-1.0, 2.0))
    maps = captum_attr.NoiseTunnel(method).attribute(some_images(1), target=1, nt_samples=2, stdevs=0.05)
    assert maps.shape == (1, 3, 24, 24)


@pytest.mark.parametrize("name", METHODS)
def test_options_that_a_method_does_not_have_are_named(name: str) -> None:
    for option in {"passes", "noise", "seed", "steps", "absolute", "map_cutoff", "alphas"} - known_options(name):
        with pytest.raises(TypeError, match=rf"method '{name}' has no option\(s\) {option}; known: "):
            create_method(name, Smooth(), **{option: 1})


@pytest.mark.parametrize(
    ("name", "options", "passes"),
    [("saliency", {}, 1), ("smoothgrad", {"passes": 7}, 7), ("integrated_gradients", {"passes": 9}, 9),
     ("forgrad_saliency", {}, 1), ("fampe", {"steps": 2, "samples": 3, "views": 0}, 6),
     ("fampe", {"steps": 2, "samples": 3}, 1 + 6), ("fampe", {"steps": 0, "views": 1}, 1), ("fampe", {"passes": 1}, 1),
     ("fampe", {"passes": 10}, 10), ("fampe", {}, 1), ("forgrad_fampe", {"passes": 2}, 2),
     ("attexplore", {"steps": 2, "samples": 2, "views": 1}, 1 + 4)],
)  # fmt: skip
def test_passes_are_those_that_are_made(name: str, options: dict[str, Any], passes: int) -> None:
    backward: list[int] = []

    class Counting(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            output = super().forward(pixels)
            if output.requires_grad:
                output.register_hook(lambda gradient: backward.append(len(gradient)))
            return output

    method = create_method(name, Counting(), **options)
    method.attribute(some_images(1), 2)  # a model's layers are found once
    backward.clear()
    method.attribute(some_images(1), 2)
    assert method.passes == passes == sum(backward)


def test_methods_describe_themselves_and_others_count_as_one_pass() -> None:
    model = Smooth()
    method = create_method("forgrad_smoothgrad", model, map_cutoff=4, passes=7)
    assert (method.name, method.passes, passes_of(method)) == ("FORGrad", 7, 7)
    assert method.describe() == describe(method) == {
        "method": "FORGrad",
        "map_cutoff": 4,
        "filtered": {
            "method": "smoothgrad",
            "config": {
                "passes": 7, "noise": 0.15, "seed": 0, "bounds": (0.0, 1.0), "absolute": False, "squared": False,
                "blur_cutoff": None, "area_cutoff": None,
            },
        },
        "signed": False,
    }  # fmt: skip
    explored = AttEXplore(model, steps=2, samples=3, explorer=model)
    assert (explored.name, explored.passes) == ("AttEXplore", 12)
    assert FAMPE(model, steps=2, samples=3, explorer=model).passes == 1 + 12  # the explorer has no views
    assert explored.describe()["config"]["samples"] == 3
    theirs = captum_attr.Saliency(model)
    assert (passes_of(theirs), describe(theirs)) == (1, {"method": "Saliency"})
    assert FORGrad(theirs, 4).passes == 1
    assert FORGrad(theirs, 4).describe()["filtered"] == {"method": "Saliency"}


class Broken(Smooth):
    """Its output is finite, and its gradient is not: that of a root at 0."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels) + (0 * pixels.mean((1, 2, 3))).sqrt()[:, None]


@pytest.mark.parametrize("name", [name for name in METHODS if name.endswith(("saliency", "smoothgrad", "gradients"))])
def test_maps_that_are_not_finite_come_with_a_warning(name: str) -> None:
    with pytest.warns(FampeWarning, match=r"map of image\(s\) \[9\] holds NaN or infinity"):
        made(name, Broken()).attribute(torch.full((1, 3, 24, 24), 0.5), 1, image_ids=[9])


@pytest.mark.parametrize("name", ["smoothgrad", "integrated_gradients", "saliency"])
def test_the_absolute_value_is_every_methods_option(name: str) -> None:
    images, model = some_images(2), Smooth()
    signed = made(name, model, absolute=False)
    maps = signed.attribute(images, [0, 1])
    assert (maps < 0).any()
    absolute = made(name, model, absolute=True)
    assert torch.equal(absolute.attribute(images, [0, 1]), maps.abs())
    custom = made(name, model)
    assert custom.absolute is (name == "saliency")
    assert signed.describe() != absolute.describe()
    with pytest.raises(TypeError, match="absolute must be True, False or None, got 'yes'"):
        CaptumMethod(model, name, absolute="yes")  # type: ignore[arg-type]


def test_smoothgrad_is_captums_average_of_the_same_noise() -> None:
    """Captum's own saliency over noise from a generator of the image's own, in one chunk or several."""
    model, images = Smooth(), some_images(2)
    method = CaptumMethod(model, "smoothgrad", passes=6, noise=0.1, seed=3)
    maps = method.attribute(images, [0, 1], image_ids=[4, 9])
    for k, image_id in enumerate((4, 9)):
        generator = torch.Generator().manual_seed((3 * 0x9E3779B97F4A7C15 + image_id) % 2**63)
        samples = images[k] + 0.1 * torch.randn(6, 3, 24, 24, generator=generator)
        expected = captum_attr.Saliency(model).attribute(samples.requires_grad_(), target=k, abs=False).mean(0)
        torch.testing.assert_close(maps[k], expected, rtol=1e-4, atol=1e-7)
    pieces = method.attribute(images, [0, 1], image_ids=[4, 9], internal_batch_size=4)
    torch.testing.assert_close(pieces, maps, rtol=1e-4, atol=1e-7)


def attribute_of(name: str, model: Any) -> Callable[..., Any]:
    attribute: Callable[..., Any] = made(name, model).attribute
    return attribute


def frequency_attribution(model: Any) -> Callable[..., Any]:
    return lambda *arguments, **options: FrequencyAttribution(model, passes=3)(*arguments, **options).gradients


GRADIENTS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    **{name: partial(attribute_of, name) for name in METHODS},
    "attack": BandLimitedAttack,
    "frequency attribution": frequency_attribution,
}
EVERY = {**GRADIENTS, "occluded frequency": lambda model: OccludedFrequency(model, 2)}


@pytest.mark.parametrize("name", EVERY)
def test_bad_input_is_named_alike_everywhere(name: str) -> None:
    call, images = EVERY[name](suited(name)), some_images(2)
    for inputs, target, error, message in (
        ((images * 255).byte(), 0, TypeError, "divide 8-bit images by 255"),
        (images[0], 0, ValueError, r"must be \(B, C, H, W\)"),
        (images * 2, 0, ValueError, r"must lie in \[0, 1\]"),
        (torch.full_like(images, torch.nan), 0, ValueError, "NaN or infinity"),
        (images, 5, ValueError, "target 5 .* out of range: the model has 5 classes"),
        (images, [0], ValueError, r"one entry per image, \(2,\)"),
        (images, 10**30, ValueError, "target 1000000000000000000000000000000 is out of range"),
        (images, [0, 2**63], ValueError, "target 9223372036854775808 is out of range"),
        (images, np.array([0, 2**63], dtype=np.uint64), ValueError, "target 9223372036854775808 is out of range"),
        (images, 0.5, TypeError, "target must be None, an int"),
        (images, np.array([0.5, 1.0]), TypeError, "target must hold integers, got an array of float64"),
    ):
        with pytest.raises(error, match=message):
            call(inputs, target)
    with pytest.raises(ValueError, match=r"training mode .*call model.eval\(\)"):
        EVERY[name](suited(name).train())(images, 0)
    assert call(images[:0], 0) is not None


@pytest.mark.parametrize("name", EVERY)
def test_targets_of_every_kind_mean_the_same(name: str) -> None:
    call, images = EVERY[name](suited(name)), some_images(2)

    def values(found: Any) -> Tensor:
        return found if isinstance(found, Tensor) else found.images if hasattr(found, "images") else found.drops

    expected = values(call(images, [3, 3]))
    for target in (
        3, np.int64(3), np.array(3), np.array([3, 3]), np.array([3, 3], dtype=np.uint8), [np.int32(3), 3], (3,),
        [(3,), (3,)], torch.tensor([3, 3], dtype=torch.uint8), [torch.tensor(3), 3],
    ):  # fmt: skip
        assert torch.equal(values(call(images, target)), expected), target


class Places(nn.Module):
    """An output with two dimensions more: class scores at each of 2 x 3 places."""

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self.net = suited(name, classes=24)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(pixels).reshape(-1, 4, 2, 3)


@pytest.mark.parametrize("name", EVERY)
def test_every_image_may_have_a_place_of_its_own(name: str) -> None:
    call, images = EVERY[name](Places(name)), some_images(2)

    def values(found: Any) -> Tensor:
        return found if isinstance(found, Tensor) else found.images if hasattr(found, "images") else found.drops

    both = values(call(images, [(1, 0, 2), (3, 1, -1)]))
    torch.testing.assert_close(both[:1], values(call(images[:1], (1, 0, 2))), rtol=1e-3, atol=1e-5)
    alone = EVERY[name](Places(name))
    noisy = ("fampe", "attexplore", "smoothgrad", "fampe_published", "rise", "random_map", "attack")
    if name in noisy or "forgrad" in name:
        pass  # the second image's noise has another id when it comes alone
    else:
        torch.testing.assert_close(both[1:], values(alone(images[1:], (3, 1, 2))), rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="tuples of one length"):
        call(images, [(1, 0, 2), (1, 0)])
    with pytest.raises(ValueError, match="out of range: the model's output is"):
        call(images, [(1, 0, 2), (1, 2, 0)])
    with pytest.raises(ValueError, match=r"expected a tuple of 3"):
        call(images, [1, 2])
    with pytest.raises(ValueError, match=r"give target as a tuple"):
        call(images)


@pytest.mark.slow
@pytest.mark.parametrize("method", [FAMPE, AttEXplore])
def test_places_of_their_own_survive_chunks_and_the_compiler(method: type) -> None:
    images, targets = some_images(3), [(1, 0, 2), (3, 1, 0), (0, 1, 1)]
    plain = method(Places(), steps=1, samples=4).attribute(images, targets, internal_batch_size=5)
    whole = method(Places(), steps=1, samples=4).attribute(images, targets, internal_batch_size=64)
    torch.testing.assert_close(plain, whole, rtol=1e-3, atol=1e-6)
    model = Places()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FampeWarning)
        compiled = method(model, steps=1, samples=4, compile="on").attribute(images, targets)
    assert float(torch.corrcoef(torch.stack([compiled.flatten(), whole.flatten()]))[0, 1]) > 0.999
