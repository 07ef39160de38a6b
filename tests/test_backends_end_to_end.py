"""Whole maps: every primitive from Triton against every primitive from the reference, on the shipped classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fampe_fast import FAMPE, AttEXplore, insertion_deletion, load_embedded_classifier
from fampe_fast.images.generated import generate

from .models_for_tests import published

pytest.importorskip("triton", reason="the package triton is not installed")
pytestmark = pytest.mark.usefixtures("triton_runs")


SEED = 8  # two samples at two steps: three without input diversity and one with it


@pytest.fixture(scope="module")
def scene(device: torch.device) -> tuple[torch.nn.Module, Tensor, Tensor]:
    clf = load_embedded_classifier().to(device)
    images = generate([0, 5], seed=7).images
    if device.type == "cpu":  # for the interpreter the middle of a small one, which no power of two divides
        images = generate([5], seed=7, size=64).images[..., 12:52, 10:54].contiguous()
    images = images.to(device)
    return clf, images, clf(images).argmax(1)


@pytest.fixture(autouse=True)
def few_programs(interpreted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs programs one after the other: long ones, then, which changes no bit."""
    if interpreted:
        monkeypatch.setattr("fampe_fast.kernels.launch.MULTIPROCESSORS", 1)
        monkeypatch.setattr("fampe_fast.kernels.gradient_step.ENOUGH_PROGRAMS", 1)


@pytest.fixture
def on_both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], tuple[Any, Any]]:
    """What a function gives with the reference, and with Triton."""

    def run(function: Callable[[], Any]) -> tuple[Any, Any]:
        results = []
        for backend in ("reference", "triton"):
            monkeypatch.setenv("FAMPE_FAST_BACKEND", backend)
            results.append(function())
        return results[0], results[1]

    return run


def assert_alike(expected: Any, got: Any, correlation: float, scale: float) -> None:
    """Maps and details: alike but for rounding, which a sign step passes on where a gradient is next to zero."""
    for one, other in zip(expected[0], got[0], strict=True):
        assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > correlation
    if got[1].cutoff is not None:
        assert torch.equal(got[1].cutoff, expected[1].cutoff)
    torch.testing.assert_close(got[1].gradient_scale, expected[1].gradient_scale, rtol=scale, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", [FAMPE, published, AttEXplore])
def test_maps_are_those_of_the_reference(method: Any, scene, on_both) -> None:
    clf, images, targets = scene
    explain = method(clf, steps=2, samples=2, seed=SEED, compile="off")
    expected, got = on_both(lambda: explain.attribute(images, targets, return_details=True))
    assert_alike(expected, got, correlation=0.9999, scale=1e-3)
    moved = (got[1].perturbed - expected[1].perturbed).abs() > 1e-6
    assert moved.float().mean() < 0.002


@pytest.mark.parametrize("protocol", ["rise", "per_element"])
def test_scores_are_those_of_the_reference_to_the_bit(protocol: str, scene, on_both) -> None:
    """Masking only moves values, so the model sees the same images."""
    clf, images, targets = scene
    maps = images - images.mean((2, 3), keepdim=True)
    expected, got = on_both(lambda: insertion_deletion(clf, images, maps, targets, steps=6, protocol=protocol))
    assert torch.equal(got.insertion_curves, expected.insertion_curves)
    assert torch.equal(got.deletion_curves, expected.deletion_curves)


# Photographs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def photographed(interpreted: bool, device: torch.device, request: pytest.FixtureRequest):
    if interpreted:
        pytest.skip("Triton's interpreter takes 20 minutes for one photograph; test_compiled_code runs this test")
    clf = copy.deepcopy(request.getfixturevalue("mobilenet")).to(device)
    images, labels = request.getfixturevalue("photographs")(2)
    return clf, images.to(device), labels.to(device)


@pytest.mark.shared
@pytest.mark.parametrize("method", [FAMPE, published, AttEXplore])
def test_maps_of_photographs_are_those_of_the_reference(method: Any, photographed, on_both) -> None:
    """The reference agrees with itself, on photographs moved by half an ulp, to 0.996."""
    clf, images, labels = photographed
    explain = method(clf, steps=2, samples=4, compile="off")
    expected, got = on_both(lambda: explain.attribute(images, labels, return_details=True))
    assert_alike(expected, got, correlation=0.99, scale=0.02)


@pytest.mark.shared
def test_scores_of_photographs_are_those_of_the_reference_to_the_bit(photographed, on_both) -> None:
    clf, images, labels = photographed
    expected, got = on_both(lambda: insertion_deletion(clf, images, images, labels, steps=4))
    assert torch.equal(got.insertion_curves, expected.insertion_curves)
    assert torch.equal(got.deletion_curves, expected.deletion_curves)
