"""The metrics against peer libraries on the same input: Captum, Quantus, and Xplique's formulas in numpy and scipy.

Xplique itself needs TensorFlow, so its two formulas stand here transcribed from what its code computes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fampe_fast import FAMPE
from fampe_fast.methods import create_method
from fampe_fast.metrics import mu_fidelity, pointing_game, relevance_mass, stability

from ..models_for_tests import Smooth, asked, some_images


class Shown(nn.Module):
    """A model that keeps what it was shown."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.shown: list[Tensor] = []
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        self.shown.append(pixels.clone())
        return self.model(pixels)


class Explained:
    """A method that keeps what it was asked."""

    def __init__(self, method) -> None:
        self.method = method
        self.inputs: list[Tensor] = []

    def attribute(self, inputs: Tensor, target=None) -> Tensor:
        self.inputs.append(inputs.clone())
        return self.method.attribute(inputs, target=target)


@pytest.fixture(scope="module")
def quantus():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("quantus", reason="Quantus is not installed")


def signed_maps(images: Tensor) -> Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(8))


# Mu-fidelity.


def xplique_scores(
    model: nn.Module, images: Tensor, maps: Tensor, targets: list[int], masks: list[np.ndarray], activation: str | None
) -> list[float]:
    """Xplique's MuFidelity.evaluate from given masks (samples, H, W), 1 where a pixel stays."""
    stats = pytest.importorskip("scipy.stats")

    def predict(pixels: np.ndarray, target: int) -> np.ndarray:
        with torch.no_grad():
            logits = model(torch.from_numpy(pixels).float()).double().numpy()
        if activation == "softmax":
            logits = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return logits[:, target]

    scores = []
    for image, phi, target, keep in zip(images.numpy(), maps.double().numpy(), targets, masks, strict=True):
        keep = keep[:, None].astype(np.float32)
        degraded = image[None] * keep + (1 - keep) * 0.0
        drop = predict(image[None], target) - predict(degraded, target)
        attribution = (phi[None] * (1 - keep)).sum(axis=(1, 2, 3))
        correlation = stats.spearmanr(drop, attribution)[0]
        scores.append(0.0 if np.isnan(correlation) else float(correlation))
    return scores


@pytest.mark.parametrize(("score", "activation"), [("logit", None), ("probability", "softmax")])
@pytest.mark.parametrize("grid_size", [9, 5, None])
def test_mu_fidelity_is_xpliques_on_the_same_subsets(score: str, activation: str | None, grid_size: int | None) -> None:
    images, targets = some_images(3), [1, 4, 0]
    model = asked(Shown(Smooth()), images)
    maps = signed_maps(images)
    ours = mu_fidelity(model, images, maps, targets, score=score, grid_size=grid_size, samples=50).scores
    shown = torch.cat(model.shown).reshape(3, 50, 3, 24, 24)
    masks = [(shown[k] == images[k]).all(1).numpy() for k in range(3)]
    expected = xplique_scores(model.model, images, maps, targets, masks, activation)
    # The model's float32 logits differ in their last bits between batch sizes, which may swap two neighbours' ranks.
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3)


def test_mu_fidelity_agrees_with_xpliques_on_subsets_of_its_own() -> None:
    """Both estimate one number: with n subsets the rank correlation has a standard error below 1 / sqrt(n - 1)."""
    model, images, n = Smooth(), some_images(2), 1500
    maps = images - 0.2
    rng = np.random.default_rng(3)
    cells = rng.uniform(size=(n, 6 * 6)) > 0.2
    masks = np.kron(cells.reshape(n, 6, 6), np.ones((4, 4), dtype=bool))
    expected = xplique_scores(model, images, maps, [1, 2], [masks, masks], "softmax")
    ours = mu_fidelity(model, images, maps, [1, 2], grid_size=6, samples=n, internal_batch_size=250).scores
    np.testing.assert_allclose(ours, expected, rtol=0, atol=5 * math.sqrt(2 / (n - 1)))
    assert ours.abs().max() > 0.3


def test_mu_fidelity_of_one_size_is_quantus_faithfulness_correlation(quantus, monkeypatch: pytest.MonkeyPatch) -> None:
    images, targets = some_images(3, 1, 16, 16), [1, 4, 0]
    model = asked(Shown(Smooth(channels=1)), images)
    maps = signed_maps(images)
    options = {"grid_size": None, "fixed_size": True, "subset_percent": 0.25, "samples": 40}
    ours = mu_fidelity(model, images, maps, targets, **options).scores
    taken = (torch.cat(model.shown) == 0).flatten(1).reshape(3, 40, -1)
    # Quantus draws image after image, run after run: it gets the subsets that we drew.
    draws: Iterator[np.ndarray] = iter([taken[k, run].nonzero()[:, 0].numpy() for run in range(40) for k in range(3)])

    def choice(features: int, size: int, replace: bool) -> np.ndarray:
        assert (features, size, replace) == (256, 64, False)
        return next(draws)

    monkeypatch.setattr(np.random, "choice", choice)
    metric = quantus.FaithfulnessCorrelation(
        similarity_func=quantus.similarity_func.correlation_spearman,
        nr_runs=40,
        subset_size=64,
        normalise=False,
        perturb_baseline=0.0,  # its "black" is the darkest value of the image
        return_aggregate=False,
        disable_warnings=True,
    )
    theirs = metric(
        model=model.model,
        x_batch=images.numpy(),
        y_batch=np.array(targets),
        a_batch=maps.numpy(),
        softmax=True,
        device="cpu",
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    assert next(draws, None) is None


# Stability.


def as_captum_calls(method) -> Callable:
    """Captum's metrics hand a tuple over where they were given a tensor, and want the same back."""

    def explain(inputs: Tensor | tuple[Tensor], target: Tensor | int) -> Tensor | tuple[Tensor]:
        if isinstance(inputs, tuple):
            return (method.attribute(inputs[0], target=target),)
        return method.attribute(inputs, target=target)

    return explain


@pytest.mark.parametrize("name", ["saliency", "integrated_gradients"])
def test_the_largest_distance_is_captums_sensitivity_max(name: str) -> None:
    captum_metrics = pytest.importorskip("captum.metrics")
    model, images, targets = Smooth(), some_images(3), torch.tensor([1, 4, 0])
    method = Explained(create_method(name, model, **({} if name == "saliency" else {"passes": 10})))
    ours = stability(method, images, targets, reduce="max", samples=6, radius=0.05).scores
    copies = torch.stack(method.inputs[1:], 1).flatten(0, 1)  # every image's copies together, as Captum expands them
    theirs = captum_metrics.sensitivity_max(
        as_captum_calls(method.method), images, lambda inputs: copies, n_perturb_samples=6, target=targets
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert (ours > 0.005).all()


def test_captums_own_noise_gives_about_the_same() -> None:
    """Its uniform noise of the same radius: the mean over the copies agrees within the spread of the copies."""
    captum_metrics = pytest.importorskip("captum.metrics")
    model, images = Smooth(), some_images(2)
    method = create_method("saliency", model)
    ours = stability(method, images, 1, samples=30, radius=0.05)
    options = {"perturb_radius": 0.05, "n_perturb_samples": 1, "target": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [captum_metrics.sensitivity_max(as_captum_calls(method), images, **options) for _ in range(30)]
    found = torch.stack(theirs, 1)
    error = (ours.distances.var(1) / 30 + found.var(1) / 30).sqrt()
    assert ((ours.scores - found.mean(1)).abs() < 5 * error).all()
    assert (error < 0.1 * ours.scores).all()


def test_fampe_in_captums_sensitivity_max_is_the_same_where_ids_are_the_positions() -> None:
    """Captum explains all copies in one batch, whose positions would name other noise: one copy at a time agrees."""
    captum_metrics = pytest.importorskip("captum.metrics")
    model, images, targets = Smooth(), some_images(2), torch.tensor([1, 4])
    method = FAMPE(model, steps=2, samples=3)
    recorded = Explained(method)
    ours = stability(recorded, images, targets, samples=3)
    copies = iter(recorded.inputs[1:])
    for k in range(3):
        theirs = captum_metrics.sensitivity_max(
            method.attribute, images, lambda inputs: next(copies), n_perturb_samples=1, target=targets
        )
        torch.testing.assert_close(ours.distances[:, k], theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("reduce", "name"), [("max", "MaxSensitivity"), ("mean", "AvgSensitivity")])
def test_stability_is_quantus_sensitivity(quantus, reduce: str, name: str) -> None:
    model, images, targets = Smooth(), some_images(3), np.array([1, 4, 0])
    method = Explained(create_method("saliency", model))
    ours = stability(method, images, targets.tolist(), reduce=reduce, samples=5, radius=0.05).scores
    copies = iter(method.inputs[1:])

    def explain_func(model, inputs: np.ndarray, targets: np.ndarray, **kwargs) -> np.ndarray:
        found = method.method.attribute(torch.as_tensor(inputs).float(), target=[int(t) for t in targets])
        return found.numpy()

    metric = getattr(quantus, name)(
        nr_samples=5,
        normalise=False,
        abs=False,
        disable_warnings=True,
        perturb_func=lambda arr, indices, **kwargs: next(copies).flatten(1).numpy(),
    )
    theirs = metric(
        model=model, x_batch=images.numpy(), y_batch=targets, a_batch=None, explain_func=explain_func, device="cpu"
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_the_mean_squared_distance_is_xpliques_average_stability() -> None:
    model, images = Smooth(), some_images(2)
    method = Explained(create_method("saliency", model))
    for distance, of in (("squared_l2", np.square), ("l1", np.abs)):
        method.inputs.clear()
        ours = stability(method, images, [2, 3], distance=distance, normalise=False, samples=4).scores
        maps = [method.method.attribute(inputs, target=[2, 3]).double().numpy() for inputs in method.inputs]
        theirs = np.mean([of(moved - maps[0]).sum((1, 2, 3)) for moved in maps[1:]], axis=0)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


# Localisation.


def boxes(count: int, size: int) -> Tensor:
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    for k in range(count):
        masks[k, k : k + size // 2, size // 3 : size - k] = True
    return masks


def localisation(quantus, name: str, images: Tensor, relevance: Tensor, masks: Tensor) -> np.ndarray:
    metric = getattr(quantus, name)(abs=False, normalise=False, return_aggregate=False, disable_warnings=True)
    return np.asarray(
        metric(
            model=Smooth(),
            x_batch=images.numpy(),
            y_batch=np.zeros(len(images), dtype=int),
            a_batch=relevance.numpy(),
            s_batch=masks[:, None].numpy(),
            device="cpu",
        ),
        dtype=float,
    )


@pytest.mark.filterwarnings("ignore")
def test_pointing_game_is_quantus(quantus) -> None:
    images, masks = some_images(12), boxes(12, 24)
    maps = signed_maps(images)
    ours = pointing_game(maps, masks)
    theirs = localisation(quantus, "PointingGame", images, maps.sum(1, keepdim=True), masks)
    assert ours.tolist() == theirs.astype(bool).tolist()
    assert 0 < ours.float().mean() < 1


@pytest.mark.filterwarnings("ignore")
def test_relevance_mass_is_quantus_of_the_positive_part(quantus) -> None:
    images, masks = some_images(12), boxes(12, 24)
    maps = signed_maps(images)
    positive = maps.sum(1, keepdim=True).clamp(min=0)
    theirs = localisation(quantus, "RelevanceMassAccuracy", images, positive, masks)
    np.testing.assert_allclose(relevance_mass(maps, masks), theirs, rtol=1e-5)
