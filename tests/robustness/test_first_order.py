"""The first-order test of low-passed gradients, and gradients on both sides of strided layers: known answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fampe_fast.frequency import bands_between, fourier_signature, low_pass
from fampe_fast.robustness import FirstOrderTest, layer_spectra
from fampe_fast.robustness.first_order import doubling_radii

from ..models_for_tests import Constant, Smooth, TwoClassLinear, some_images
from .test_attacks import wave


def linear(*waves: tuple[int, int]) -> nn.Module:
    """Class 0's logit is the sum of some waves' amplitudes."""
    return TwoClassLinear(sum(wave(*one) for one in waves).expand(3, -1, -1) / 50)


def test_scalar_products_of_rings_sum_to_that_of_the_pixels() -> None:
    """Against the projections onto each ring, for an odd and an even side; of a batch with itself it is the energy."""
    first, second = some_images(2, height=15, width=18), some_images(2, height=15, width=18, seed=1)
    rings = bands_between(15, 18, [2, 5], include_dc=True)
    found = rings.products(first, second)
    torch.testing.assert_close(found.sum(1), (first.double() * second.double()).sum((1, 2, 3)))
    for k in range(rings.count):
        part = (rings.project(first.double(), k) * second.double()).sum((1, 2, 3))
        torch.testing.assert_close(found[:, k], part)
    torch.testing.assert_close(rings.products(first, first), rings.energy(first))
    with pytest.raises(ValueError, match="belong to 15 x 18 pixels"):
        rings.products(first, second[..., 1:])


# First order ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["white", "image"])
def test_a_gradient_of_low_frequencies_explains_all_from_its_radius_on(kind: str) -> None:
    """A linear model that reads radius sqrt(5): nothing within 2, everything within 4."""
    found = FirstOrderTest(linear((1, 2)), kind, samples=8)(some_images(), 0)
    assert found.radii.tolist() == pytest.approx([1, 2, 4, 8, 12, 12 * math.sqrt(2)])
    torch.testing.assert_close(found.explained[:, :2], torch.zeros(2, 2).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.explained[:, 2:], torch.ones(2, 4).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.gradient_share[:, 1:3], torch.tensor([[0.0, 1.0]] * 2).double(), rtol=0, atol=1e-6)
    assert found.model_passes == 9


def test_a_gradient_of_high_frequencies_explains_nothing_below_them() -> None:
    found = FirstOrderTest(linear((7, 6)), samples=8)(some_images(), 0)  # radius 9.2
    assert (found.explained[:, :4].abs() < 1e-3).all()
    assert (found.explained[:, 4:] > 1 - 1e-4).all()


def test_for_white_perturbations_the_part_explained_is_the_share_of_the_gradient() -> None:
    """Two waves, of which the coarse one has four fifths of the energy; the mean over many perturbations."""
    model = TwoClassLinear((2 * wave(0, 2) + wave(8, 0)).expand(3, -1, -1) / 50)
    found = FirstOrderTest(model, samples=400)(some_images(4), 0)
    share = found.gradient_share[0, 2]
    assert float(share) == pytest.approx(0.8, abs=1e-5)
    assert float(found.explained[:, 2].mean()) == pytest.approx(0.8, abs=0.03)
    assert float(found.explained[:, -1].min()) > 1 - 1e-4


def test_for_perturbations_like_the_image_the_image_s_spectrum_weighs() -> None:
    """The image has nine times the coarse wave's amplitude: what the model reads of the fine one hardly counts."""
    images = 0.5 + (0.36 * wave(0, 2) + 0.04 * wave(8, 0)).expand(1, 3, -1, -1)
    model = linear((0, 2), (8, 0))
    white, own = (FirstOrderTest(model, kind, samples=200)(images, 0) for kind in ("white", "image"))
    assert float(white.explained[0, 2]) == pytest.approx(0.5, abs=0.1)
    assert float(own.explained[0, 2]) > 0.95


@pytest.mark.parametrize("kind", ["white", "image"])
def test_it_is_the_formula(kind: str) -> None:
    """Against the perturbations, the filter and the model, called one by one."""
    model, images = Smooth(), some_images(3, height=20, width=27)
    test = FirstOrderTest(model, kind, samples=5, size=0.01, radii=[3, 6.5], seed=4)
    found = test(images, 2, image_ids=[7, 8, 9])
    assert found.radii.tolist()[:2] == [3, 6.5]
    for k in range(3):
        leaf = images[k : k + 1].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(leaf)[0, 2], leaf)
        drawn = [test._directions(images[k : k + 1], torch.tensor([7 + k]), torch.tensor([n])) for n in range(5)]
        assert [float(d.square().mean().sqrt()) for d in drawn] == pytest.approx([0.01] * 5)
        with torch.no_grad():
            changes = [float((model(images[k : k + 1] + d) - model(images[k : k + 1]))[0, 2]) for d in drawn]
        for r, radius in enumerate((3, 6.5, 99)):
            predicted = [float((low_pass(gradient, radius).double() * d.double()).sum()) for d in drawn]
            left = sum((change - guess) ** 2 for change, guess in zip(changes, predicted, strict=True))
            expected = 1 - left / sum(change**2 for change in changes)
            assert float(found.explained[k, r]) == pytest.approx(expected, abs=1e-3)
        energy = low_pass(gradient, 3).double().square().sum() / gradient.double().square().sum()
        assert float(found.gradient_share[k, 0]) == pytest.approx(float(energy), abs=1e-6)
    alone = test(images[1:2], 2, image_ids=[8], internal_batch_size=2)
    torch.testing.assert_close(alone.explained[0], found.explained[1], rtol=0, atol=1e-3)


def test_perturbations_like_an_image_have_its_spectrum_and_no_mean() -> None:
    images = some_images(1)
    drawn = FirstOrderTest(Smooth(), "image", size=0.01)._directions(images, torch.tensor([0]), torch.tensor([3]))
    amplitude, own = torch.fft.rfft2(drawn).abs(), torch.fft.rfft2(images).abs()
    own[..., 0, 0] = 0
    torch.testing.assert_close(amplitude / amplitude.norm(), own / own.norm(), rtol=0, atol=1e-5)
    between = torch.fft.rfft2(images)
    mine = torch.fft.rfft2(drawn)
    relation = (between[:, 0] * between[:, 1].conj()).angle(), (mine[:, 0] * mine[:, 1].conj()).angle()
    gap = (relation[0] - relation[1])[..., 3:9, 3:9]
    assert float(gap.sin().abs().max()) < 1e-2  # the channels' relation stays


def test_curvature_is_what_the_whole_gradient_leaves() -> None:
    """The square of a wave's amplitude beside its gradient: the farther, the less the tangent says."""

    class Bent(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            amplitude = ((pixels - 0.5) * wave(0, 2)).sum((1, 2, 3))
            return torch.stack([amplitude + amplitude**2, torch.zeros_like(amplitude)], 1)

    images = torch.full((1, 3, 24, 24), 0.5)
    near, far = (FirstOrderTest(Bent().eval(), size=size)(images, 0).explained[0, -1] for size in (1e-4, 0.1))
    assert float(near) > 0.99
    assert float(far) < 0.5


@pytest.mark.parametrize(("score", "reading"), [("probability", "probabilities"), ("logit", "probabilities")])
def test_models_in_probabilities_are_scored_as_they_are_read(score: str, reading: str) -> None:
    class Chances(nn.Module):
        output = reading

        def forward(self, pixels: Tensor) -> Tensor:
            return linear((1, 2))(pixels).softmax(1)

    found = FirstOrderTest(Chances().eval(), samples=4, score=score)(some_images(), 0)
    assert (found.explained[:, 2:] > 0.98).all()


def test_radii_double_up_to_half_the_shorter_side() -> None:
    assert doubling_radii(224, 300) == [1, 2, 4, 8, 16, 32, 64, 112]
    assert doubling_radii(8, 8) == [1, 2, 4]
    assert doubling_radii(9, 20) == [1, 2, 4, 4.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FirstOrderTest(Smooth(), "pink"), "perturbation must be one of white, image; got 'pink'"),
        (lambda: FirstOrderTest(Smooth(), samples=0), "samples must be at least 1, got 0"),
        (lambda: FirstOrderTest(Smooth(), size=0), "size must be finite and above 0, got 0"),
        (lambda: FirstOrderTest(Smooth(), score="loss"), "score must be one of probability, logit; got 'loss'"),
        (lambda: FirstOrderTest(Smooth(), radii=[4, 2])(some_images()), "ascending radii above 0"),
        (lambda: FirstOrderTest(Constant().eval())(some_images(), 0), "changes the logit of image 0"),
        (lambda: FirstOrderTest(Smooth(), "image")(torch.full((1, 3, 9, 9), 0.5)), "has only one colour"),
        (
            lambda: FirstOrderTest(Smooth())(some_images(height=1, width=1)),
            "at least 8 pixels high and wide, got 1 x 1",
        ),
        (lambda: FirstOrderTest(Smooth())(some_images(), 7), "5 classes"),
        (lambda: layer_spectra(Smooth(), some_images()[:0], 0), "at least one image"),
        (lambda: layer_spectra(Smooth(), some_images(), 7), "5 classes"),
    ],
)
def test_what_cannot_be_measured_is_said(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_layers_are_those_of_a_module() -> None:
    assert layer_spectra(linear((1, 2)), some_images(), 0) == []
    with pytest.raises(TypeError, match="the model is a function"):
        layer_spectra(lambda pixels: pixels.mean((2, 3)), some_images())


# Strided layers -------------------------------------------------------------------------------------------------------


class Below(nn.Module):
    """A layer to half the places, and a score of known gradient behind it."""

    def __init__(self, layer: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.layer, self.weight = layer, nn.Parameter(weight)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        score = (self.layer(pixels) * self.weight).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_a_layer_that_skips_places_repeats_the_spectrum_at_frequencies_it_did_not_have() -> None:
    """Zeros between the gradient's values: the fine spectrum is four copies of the coarse one, with three quarters of
    the energy outside the square of the coarse frequencies."""
    skip = nn.Conv2d(1, 1, 1, stride=2, bias=False)
    nn.init.ones_(skip.weight)
    weight = noise(1, 12, 12)
    (found,) = layer_spectra(Below(skip, weight), some_images(2, channels=1), 0)
    assert (found.name, found.kind, found.fine, found.coarse) == ("layer", "Conv2d", (24, 24), (12, 12))
    torch.testing.assert_close(found.arriving, fourier_signature(weight[None].expand(2, -1, -1, -1)))
    fine = torch.zeros(1, 1, 24, 24)
    fine[..., ::2, ::2] = weight
    torch.testing.assert_close(torch.fft.fft2(fine)[0, 0], torch.fft.fft2(weight)[0].repeat(2, 2))
    torch.testing.assert_close(found.leaving, fourier_signature(fine.expand(2, -1, -1, -1)))
    energy = bands_between(24, 24, [6], include_dc=True).energy(fine)
    assert found.beyond.tolist() == pytest.approx([float(energy[0, 1] / energy.sum())] * 2)
    assert 0.7 < float(found.beyond[0]) < 0.9  # a disc in place of the square: 1 - pi / 16 of white noise


def test_pooling_that_averages_adds_less_than_pooling_that_picks() -> None:
    """A mean smears over its window, the largest alone gets the gradient, a long kernel smears best."""
    long = nn.Conv2d(1, 1, 6, stride=2, padding=2, bias=False)
    nn.init.constant_(long.weight, 1 / 36)
    images, weight = some_images(4, channels=1), noise(1, 12, 12)
    share = {
        name: float(layer_spectra(Below(layer, weight), images, 0)[0].beyond.mean())
        for name, layer in (("max", nn.MaxPool2d(2)), ("mean", nn.AvgPool2d(2)), ("long", long))
    }
    assert share["long"] < share["mean"] < share["max"]
    torch.testing.assert_close(share["max"], 1 - math.pi / 16, rtol=0, atol=0.08)
    fine = torch.nn.functional.interpolate(weight[None], scale_factor=2, mode="nearest") / 4
    energy = bands_between(24, 24, [6], include_dc=True).energy(fine)
    assert share["mean"] == pytest.approx(float(energy[0, 1] / energy.sum()), abs=1e-5)


def test_layers_come_in_the_order_of_a_pass_and_the_innermost_counts() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.late = nn.Sequential(nn.MaxPool2d(2), nn.ReLU(inplace=True))
            self.early = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(inplace=True))
            self.head = nn.Linear(4, 5)
            self.eval()

        def forward(self, pixels: Tensor) -> Tensor:
            return self.head(self.late(self.early(pixels)).mean((2, 3)))

    images = some_images(3, height=32, width=40)
    found = layer_spectra(Twice(), images)
    assert [(layer.name, layer.coarse) for layer in found] == [("early.0", (16, 20)), ("late.0", (8, 10))]
    assert found[0].leaving.shape == (3, 17)
    parts = layer_spectra(Twice(), images, internal_batch_size=1)
    assert [part.arriving.shape for part in parts] == [layer.arriving.shape for layer in found]
    assert not [hook for module in Twice().modules() for hook in module._forward_hooks]


def test_a_gradient_is_measured_of_every_image_by_itself() -> None:
    model, images = Smooth(), some_images(3)
    together = layer_spectra(model, images, [0, 1, 2])[0]
    for k in range(3):
        alone = layer_spectra(model, images[k : k + 1], k)[0]
        torch.testing.assert_close(alone.leaving[0], together.leaving[k], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(alone.beyond[0], together.beyond[k], rtol=1e-4, atol=1e-7)
    leaf = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(leaf).gather(1, torch.arange(3)[:, None]).sum(), leaf)
    expected = torch.stack([fourier_signature(gradient[:, c : c + 1]) for c in range(3)]).mean(0)
    torch.testing.assert_close(together.leaving, expected, rtol=1e-4, atol=1e-7)  # the image is the layer's input
    assert not model.features[0]._forward_hooks
