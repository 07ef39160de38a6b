"""Whole maps: every primitive from Triton against every primitive from the reference, on the shipped classifier."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models_for_tests import published
from torch import Tensor

from fampe_fast import FAMPE, AttEXplore, insertion_deletion, load_embedded_classifier
from fampe_fast.images.generated import generate

pytest.importorskip("triton", reason="the package triton is not installed")
pytestmark = pytest.mark.usefixtures("triton_runs")


SEED = 8  # two samples at two steps: three without input diversity and one with it


@pytest.fixture(scope="module")
def scene(device: torch.device) -> tuple[torch.nn.Module, Tensor, Tensor]:
    clf = load_embedded_classifier().to(device)
    images = generate([0, 5], seed=7).images if device.type != "cpu" else generate([5], seed=7, size=64).images
    images = images.to(device)
    return clf, images, clf(images).argmax(1)


@pytest.fixture(autouse=True)
def few_programs(interpreted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs programs one after the other: long ones, then, which changes no bit."""
    if interpreted:
        monkeypatch.setattr("fampe_fast.kernels.launch.ENOUGH_PROGRAMS", 1)
        monkeypatch.setattr("fampe_fast.kernels.gradient_step.ENOUGH_PROGRAMS", 1)


@pytest.mark.parametrize("method", [FAMPE, published, AttEXplore])
def test_maps_are_those_of_the_reference(method: Any, scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that may differ is rounding, which a sign step passes on where a gradient is next to zero."""
    clf, images, targets = scene
    results = {}
    for backend in ("reference", "triton"):
        monkeypatch.setenv("FAMPE_FAST_BACKEND", backend)
        explain = method(clf, steps=2, samples=2, seed=SEED, compile="off")
        results[backend] = explain.attribute(images, targets, return_details=True)
    (expected, plain), (maps, details) = results["reference"], results["triton"]
    for got, want in zip(maps, expected, strict=True):
        assert torch.corrcoef(torch.stack([got.flatten(), want.flatten()]))[0, 1] > 0.9999
    if details.cutoff is not None:
        assert torch.equal(details.cutoff, plain.cutoff)
    torch.testing.assert_close(details.gradient_scale, plain.gradient_scale, rtol=1e-3, atol=0)
    moved = (details.perturbed - plain.perturbed).abs() > 1e-6
    assert moved.float().mean() < 0.002


def test_scores_are_those_of_the_reference_to_the_bit(scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masking only moves values, so the model sees the same images."""
    clf, images, targets = scene
    maps = images - images.mean((2, 3), keepdim=True)
    scores = []
    for backend in ("reference", "triton"):
        monkeypatch.setenv("FAMPE_FAST_BACKEND", backend)
        scores.append(insertion_deletion(clf, images, maps, targets, steps=6))
    assert torch.equal(scores[0].insertion_curves, scores[1].insertion_curves)
    assert torch.equal(scores[0].deletion_curves, scores[1].deletion_curves)


@pytest.mark.shared
@pytest.mark.parametrize("method", [FAMPE, published, AttEXplore])
def test_maps_of_photographs_are_those_of_the_reference(
    method: Any, interpreted: bool, device: torch.device, mobilenet, photographs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference itself, on photographs moved by half an ulp, agrees with itself to 0.996."""
    if interpreted:
        pytest.skip("Triton's interpreter takes 20 minutes for one photograph; test_compiled_code runs this test")
    images, labels = (tensor.to(device) for tensor in photographs(2))
    clf = copy.deepcopy(mobilenet).to(device)
    results = {}
    for backend in ("reference", "triton"):
        monkeypatch.setenv("FAMPE_FAST_BACKEND", backend)
        explain = method(clf, steps=2, samples=4, compile="off")
        results[backend] = explain.attribute(images, labels, return_details=True)
    (expected, plain), (maps, details) = results["reference"], results["triton"]
    for got, want in zip(maps, expected, strict=True):
        assert torch.corrcoef(torch.stack([got.flatten(), want.flatten()]))[0, 1] > 0.99
    if details.cutoff is not None:
        assert torch.equal(details.cutoff, plain.cutoff)
    torch.testing.assert_close(details.gradient_scale, plain.gradient_scale, rtol=0.02, atol=0)
