"""Captum's methods behind our call, the registry, and Quantus's conventions."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from fampe_fast.methods import METHODS, CaptumMethod, create_method
from fampe_fast.methods.quantus import explain

from ..models_for_tests import Smooth, some_images, suited
from ..runtime.test_contexts import options_of

captum_attr = pytest.importorskip("captum.attr")


def test_saliency_is_the_absolute_gradient_of_the_logit() -> None:
    model, images = Smooth(), some_images(2)
    maps = CaptumMethod(model, "saliency").attribute(images, target=[1, 3])
    pixels = images.clone().requires_grad_()
    logits = model(pixels)
    (gradient,) = torch.autograd.grad(logits[0, 1] + logits[1, 3], pixels)
    torch.testing.assert_close(maps, gradient.abs())


def test_integrated_gradients_are_captums_and_complete() -> None:
    model, images = Smooth(), some_images(2)
    maps = CaptumMethod(model, "integrated_gradients", passes=40).attribute(images, target=2)
    direct = captum_attr.IntegratedGradients(model).attribute(images, baselines=0.0, target=2, n_steps=40)
    torch.testing.assert_close(maps, direct.float(), rtol=1e-4, atol=1e-6)
    difference = model(images)[:, 2] - model(torch.zeros_like(images))[:, 2]
    torch.testing.assert_close(maps.sum((1, 2, 3)), difference, rtol=1e-2, atol=1e-2)


def test_smoothgrad_is_the_mean_gradient_and_depends_on_seed_and_id_alone() -> None:
    model, images = Smooth(), some_images(3)
    method = CaptumMethod(model, "smoothgrad", passes=6, seed=4)
    state = torch.get_rng_state()
    maps = method.attribute(images, target=0)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are left alone
    assert torch.equal(maps, method.attribute(images, target=0))
    torch.testing.assert_close(maps[2:], method.attribute(images[2:], target=0, image_ids=[2]), rtol=1e-4, atol=1e-7)
    assert not torch.allclose(maps, CaptumMethod(model, "smoothgrad", passes=6, seed=5).attribute(images, target=0))
    quiet = CaptumMethod(model, "smoothgrad", passes=2, noise=1e-6).attribute(images, target=0)
    pixels = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixels)[:, 0].sum(), pixels)
    torch.testing.assert_close(quiet, gradient, rtol=1e-3, atol=1e-6)


def test_the_square_of_smoothgrad_averages_squares() -> None:
    """Against the squares of Captum's own gradients for the same noise."""
    model, images = Smooth(), some_images(1)
    maps = CaptumMethod(model, "smoothgrad", passes=5, noise=0.1, squared=True).attribute(images, 3)
    generator = torch.Generator().manual_seed(0)
    samples = (images + 0.1 * torch.randn(5, 3, 24, 24, generator=generator)).requires_grad_()
    gradients = captum_attr.Saliency(model).attribute(samples, target=3, abs=False)
    torch.testing.assert_close(maps[0], gradients.square().mean(0), rtol=1e-4, atol=1e-9)
    assert not torch.allclose(maps[0], gradients.mean(0).square(), rtol=0.1)


def test_maps_are_blurred_or_joined_with_their_blur() -> None:
    """Against the Gaussian of SciPy, which weighs what lies beyond the border like any other place."""
    ndimage = pytest.importorskip("scipy.ndimage")
    model, images = Smooth(), some_images(1, height=48, width=48)
    plain = CaptumMethod(model, "saliency").attribute(images, 2)
    blurred = CaptumMethod(model, "saliency", blur_cutoff=8).attribute(images, 2)
    deviation = 48 / (2 * np.pi * 8)
    evidence = plain.sum(1)[0].double().numpy()
    weight = ndimage.gaussian_filter(np.ones((48, 48)), deviation, mode="constant", truncate=20)
    expected = ndimage.gaussian_filter(evidence, deviation, mode="constant", truncate=20) / weight
    np.testing.assert_allclose(blurred[0, 1].numpy(), expected, rtol=1e-4)
    joined = CaptumMethod(model, "saliency", area_cutoff=8).attribute(images, 2)
    np.testing.assert_allclose(joined[0, 2].numpy(), np.sqrt(evidence**2 + expected**2), rtol=1e-4)
    assert blurred.shape == joined.shape == plain.shape
    with pytest.raises(ValueError, match=r"give blur_cutoff or area_cutoff, not both; got 6 and 6\.0"):
        CaptumMethod(model, "saliency", blur_cutoff=6, area_cutoff=6.0)
    with pytest.raises(ValueError, match="blur_cutoff must be above 0, got 0"):
        create_method("saliency", model, blur_cutoff=0)
    with pytest.raises(TypeError, match="squared must be True or False, got 'no'"):
        create_method("smoothgrad", model, squared="no")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_the_same_call(name: str) -> None:
    images = some_images(2)
    method = create_method(name, suited(name), **options_of(name))
    maps = method.attribute(images, image_ids=[5, 6], internal_batch_size=3)
    assert maps.shape == images.shape
    assert maps.dtype == torch.float32
    assert maps.isfinite().all()
    assert maps.abs().sum() > 0
    with pytest.raises(ValueError, match="out of range"):
        method.attribute(images, target=17)
    with pytest.raises(TypeError, match="divide 8-bit images by 255"):
        method.attribute((images * 255).byte())


def test_wrong_names_and_options_are_named() -> None:
    with pytest.raises(ValueError, match="unknown method 'deeplift'; known are fampe, fampe_published, attexplore"):
        create_method("deeplift", Smooth())
    with pytest.raises(TypeError, match=r"'saliency' has no option\(s\) alpha"):
        create_method("saliency", Smooth(), alpha=0.1)
    with pytest.raises(ValueError, match="passes must be at least 1"):
        create_method("smoothgrad", Smooth(), passes=0)


def test_a_missing_captum_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match="not installed: pip install captum$"):
        create_method("saliency", Smooth())


def test_the_explain_function_follows_quantus_conventions() -> None:
    images = some_images(2)
    labels = np.array([1.0, 2.0])  # Quantus may hand labels over as floats
    maps = explain(Smooth(), images.numpy(), labels, method="fampe", steps=1, samples=2, device="cpu", softmax=False)
    assert maps.dtype == np.float32
    direct = create_method("fampe", Smooth(), steps=1, samples=2).attribute(images, target=[1, 2])
    assert np.array_equal(maps, direct.numpy())


def test_quantus_takes_it() -> None:
    quantus = pytest.importorskip("quantus")
    images = some_images(2).numpy()
    metric = quantus.PixelFlipping(features_in_step=64, disable_warnings=True)
    scores = metric(
        model=Smooth(),
        x_batch=images,
        y_batch=np.array([1, 2]),
        explain_func=explain,
        explain_func_kwargs={"method": "fampe", "steps": 1, "samples": 2},
    )
    assert len(scores) == 2
    assert np.isfinite(np.asarray(scores, dtype=float)).all()
