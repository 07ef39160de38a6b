"""Attribution to frequencies on models whose answer is known, beside Occluded Frequency."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fampe_fast import FrequencyAttribution, OccludedFrequency
from fampe_fast.frequency import (
    bands_between,
    centred,
    equal_energy_bands,
    equal_width_bands,
    low_pass,
    octave_bands,
    orientation_sectors,
    three_bands,
)

from ..models_for_tests import Constant, Smooth, TwoClassLinear, some_images

SIZES = [(24, 24), (21, 30), (25, 16)]


def wave(height: int, width: int, down: int, across: int) -> Tensor:
    rows = torch.arange(height)[:, None] / height
    columns = torch.arange(width) / width
    return torch.cos(2 * math.pi * (down * rows + across * columns) + 0.3)


WAVES = ((0, 2), (3, -3), (9, 1))
"""Downwards and across: one runs across, one rises to the right, one is nearly upright."""


def wave_powers(pixels: Tensor) -> Tensor:
    """Weighted powers of three waves in the images, whatever their phases: (B, 3)."""
    height, width = pixels.shape[-2:]
    spectrum = torch.fft.fft2(pixels.mean(1)) / (height * width)
    powers = [spectrum[:, down % height, across % width].abs().square() for down, across in WAVES]
    return 1000 * torch.stack(powers, 1) * torch.tensor([1.0, -2.0, 0.5])


def reader_of_powers(pixels: Tensor) -> Tensor:
    """The logit of class 0 is their sum."""
    total = wave_powers(pixels).sum(1)
    return torch.stack([total, torch.zeros_like(total)], 1)


# What is attributed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["integrated", "gradient"])
@pytest.mark.parametrize("include_dc", [False, True])
def test_a_linear_model_s_attributions_are_its_products_with_the_coefficients(
    size: tuple[int, int], kind: str, include_dc: bool
) -> None:
    """s(x) = <w, x>: conj(W) X / (HW) of the complex spectrum, summed over a conjugate pair; and they are complete."""
    weight = 0.1 * torch.randn(3, *size, generator=torch.Generator().manual_seed(3))
    model, images = TwoClassLinear(weight), some_images(2, height=size[0], width=size[1])
    found = FrequencyAttribution(model, kind, 3, include_dc=include_dc)(images, 0)
    spectra = torch.fft.fft2(weight.double()).conj() * torch.fft.fft2(images.double()) / (size[0] * size[1])
    expected = spectra.sum(1).real
    if not include_dc:
        expected[:, 0, 0] = 0
    plane = centred(found.coefficients(), size[1])
    middle = size[0] // 2, size[1] // 2
    for down in range(-((size[0] - 1) // 2), (size[0] - 1) // 2 + 1):
        for across in range(-((size[1] - 1) // 2), (size[1] - 1) // 2 + 1):
            torch.testing.assert_close(
                plane[:, middle[0] + down, middle[1] + across], expected[:, down % size[0], across % size[1]],
                rtol=1e-4, atol=1e-5,
            )  # fmt: skip
    torch.testing.assert_close(found.coefficients().sum((1, 2)), expected.sum((1, 2)), rtol=1e-4, atol=1e-4)
    assert found.gap().abs().max() < 1e-3
    baseline = torch.zeros_like(images) if include_dc else images.mean((2, 3), keepdim=True).expand_as(images)
    torch.testing.assert_close(found.baseline_score, model(baseline)[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_rings_are_occluded_frequency_s_drops_where_the_model_is_linear(size: tuple[int, int]) -> None:
    weight = 0.1 * torch.randn(3, *size, generator=torch.Generator().manual_seed(4))
    model, images = TwoClassLinear(weight), some_images(2, height=size[0], width=size[1])
    values = FrequencyAttribution(model, "gradient")(images, 0).coefficients()
    for spacing in ("width", "energy"):
        occluded = OccludedFrequency(model, 5, spacing, "logit")
        rings = occluded.bands_of(images).sums(values)
        torch.testing.assert_close(rings.float(), occluded(images, 0).drops, rtol=1e-4, atol=1e-4)


def test_powers_of_waves_are_attributed_to_their_rings_and_sectors_as_occluded_frequency_drops_them() -> None:
    """s = sum of w |X|^2: integrated gradients give each wave its own term, the plain gradient twice that."""
    images, model = some_images(2), reader_of_powers
    terms = wave_powers(images)
    found = FrequencyAttribution(model, passes=2)(images, 0)
    rings = equal_width_bands(24, 24, 6)
    expected = torch.zeros(2, 6)
    for k, (down, across) in enumerate(WAVES):
        ring = int((rings.edges[0, 1:] < math.hypot(down, across) - 1e-9).sum())
        expected[:, ring] += terms[:, k]
    values = found.coefficients()
    torch.testing.assert_close(rings.sums(values).float(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        OccludedFrequency(model, 6, score="logit")(images, 0).drops, expected, rtol=1e-3, atol=1e-4
    )
    assert found.gap().abs().max() < 1e-4
    sectors = orientation_sectors(24, 24, 4).sums(values)
    torch.testing.assert_close(sectors[:, [0, 1, 2]].float(), terms, rtol=1e-4, atol=1e-5)
    assert sectors[:, 3].abs().max() < 1e-6
    twice = FrequencyAttribution(model, "gradient")(images, 0).coefficients()
    torch.testing.assert_close(twice, 2 * values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("frequency", [(0, 2), (3, -4), (5, 5), (12, 12), (12, 0)])
def test_a_model_that_reads_one_wave_is_attributed_to_its_coefficient_alone(frequency: tuple[int, int]) -> None:
    """Whatever else the images hold."""
    read = wave(24, 24, *frequency).expand(3, -1, -1) / 100
    images, model = some_images(2), TwoClassLinear(read)
    found = FrequencyAttribution(model, "gradient")(images, 0)
    plane = centred(found.coefficients(), 24)
    ends = {(sign * a, other * b) for sign in (1, -1) for other in (1, -1) for a, b in [frequency]}
    ends = {(a, b) for a, b in ends if (a - frequency[0]) % 24 == 0 == (b - frequency[1]) % 24} | {
        (a, b) for a, b in ends if (a + frequency[0]) % 24 == 0 == (b + frequency[1]) % 24
    }
    there = sum(plane[:, 12 + a, 12 + b] for a, b in ends)
    torch.testing.assert_close(there.float(), found.score - found.baseline_score, rtol=1e-4, atol=1e-4)
    rest = plane.clone()
    for a, b in ends:
        rest[:, 12 + a, 12 + b] = 0
    assert rest.abs().max() < 1e-6


def test_integrated_gradients_are_complete_and_the_gap_says_how_nearly() -> None:
    model, images = Smooth(), some_images(3)
    for score in ("logit", "probability"):
        gaps = []
        for passes in (1, 4, 64):
            found = FrequencyAttribution(model, passes=passes, score=score)(images)
            total = found.coefficients().sum((1, 2))
            torch.testing.assert_close(found.score.double() - found.baseline_score.double() - total, found.gap())
            gaps.append(float(found.gap().abs().max()))
        assert gaps[0] > gaps[1] > gaps[2]
        assert gaps[2] < 1e-4
    mean = images.mean((2, 3), keepdim=True).expand_as(images)
    classes = model(images).argmax(1, keepdim=True)
    torch.testing.assert_close(found.score, model(images).softmax(1).gather(1, classes)[:, 0])
    torch.testing.assert_close(found.baseline_score, model(mean).softmax(1).gather(1, classes)[:, 0])


def test_a_quarter_turn_of_image_and_model_turns_the_map() -> None:
    class Turned(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model
            self.eval()

        def forward(self, pixels: Tensor) -> Tensor:
            return self.model(pixels.rot90(-1, (2, 3)))

    images = some_images(2, height=24, width=30)
    before = FrequencyAttribution(Smooth(), passes=3)(images, 1).coefficients()
    after = FrequencyAttribution(Turned(Smooth()), passes=3)(images.rot90(dims=(2, 3)), 1).coefficients()
    scale = float(before.abs().max())
    plane = centred(before, 30).rot90(dims=(1, 2))
    torch.testing.assert_close(centred(after, 24), plane, rtol=0, atol=1e-4 * scale)


def test_a_low_passed_model_is_attributed_nothing_above_its_cutoff() -> None:
    model = Smooth()
    found = FrequencyAttribution(lambda pixels: model(low_pass(pixels, 4)), passes=4)(some_images(2), 0)
    rings = bands_between(24, 24, [4]).sums(found.coefficients())
    assert rings[:, 1].abs().max() < 1e-6 < rings[:, 0].abs().min()


# Where a band acts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("include_dc", [False, True])
def test_the_bands_places_add_up_to_the_whole_and_to_the_rings(size: tuple[int, int], include_dc: bool) -> None:
    images = some_images(2, height=size[0], width=size[1])
    found = FrequencyAttribution(Smooth(), passes=3, include_dc=include_dc)(images, 2)
    for bands in (
        three_bands(*size), octave_bands(*size, include_dc=True), equal_energy_bands(images, 3, include_dc=True)
    ):  # fmt: skip
        if bool((bands.coefficients() == 0).any()):
            continue
        places = found.places(bands)
        assert places.shape == (2, bands.count, 3, *size)
        scale = float(places.abs().max())
        torch.testing.assert_close(places.sum(1), found.difference * found.gradients, rtol=0, atol=1e-5 * scale)
        sums = places.double().sum((2, 3, 4))
        torch.testing.assert_close(sums, bands.sums(found.coefficients()), rtol=1e-4, atol=1e-3 * scale)


def test_a_band_acts_where_the_model_reads_it() -> None:
    """The left half is asked for a coarse wave, the right one for a fine one: each band has one half."""
    half = (torch.arange(48) < 24).float()
    coarse, fine = wave(48, 48, 3, 0), wave(48, 48, 16, 0)
    model = TwoClassLinear((coarse * half + fine * (1 - half)).expand(3, -1, -1) / 100)
    images = (0.5 + 0.2 * coarse + 0.2 * fine).expand(1, 3, -1, -1)
    places = FrequencyAttribution(model, "gradient")(images, 0).places(three_bands(48, 48, (5, 10)))[0].sum(1)
    left, right = places[..., :24].sum((1, 2)), places[..., 24:].sum((1, 2))
    assert float(left[0]) > 1 < float(right[2])
    assert float(left[[1, 2]].abs().max()) < 1e-3 > float(right[[0, 1]].abs().max())


# How it is asked ----------------------------------------------------------------------------------------------------


def test_chunks_change_nothing_and_every_pass_is_counted() -> None:
    images, model, rows = some_images(3), Smooth(), []

    def counting(pixels: Tensor) -> Tensor:
        rows.append(len(pixels))
        return model(pixels)

    expected = FrequencyAttribution(model, passes=5)(images, [0, 1, 2]).coefficients()
    FrequencyAttribution(counting, passes=5)(images, [0, 1, 2])
    for chunk in (1, 4, 100):
        rows.clear()
        found = FrequencyAttribution(counting, passes=5)(images, [0, 1, 2], internal_batch_size=chunk)
        torch.testing.assert_close(found.coefficients(), expected, rtol=1e-3, atol=1e-7)
        assert 3 * 5 + 2 * 3 <= sum(rows) <= 3 * 5 + 2 * 3 + 2  # asked what its output is like
        assert max(rows) <= max(chunk, 2)
    empty = FrequencyAttribution(model)(images[:0], 1)
    assert empty.coefficients().shape == (0, 24, 13)
    assert empty.places(three_bands(24, 24)).shape == (0, 3, 3, 24, 24)
    assert FrequencyAttribution(Constant().eval())(images).coefficients().eq(0).all()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_probabilities_are_read_as_what_they_are() -> None:
    """A model that ends in a softmax, and says so: its logit is the logarithm of its probability."""
    model, images = Smooth(), some_images(2)

    class Chances(nn.Module):
        output = "probabilities"

        def forward(self, pixels: Tensor) -> Tensor:
            return model(pixels).softmax(1)

    chances = Chances().eval()
    plain, declared = (
        FrequencyAttribution(one, passes=4, score="probability")(images, 1).coefficients() for one in (model, chances)
    )
    torch.testing.assert_close(declared, plain, rtol=1e-3, atol=1e-7)
    logarithm = FrequencyAttribution(chances, "gradient")(images, 1)
    torch.testing.assert_close(logarithm.score, model(images).log_softmax(1)[:, 1])


def strange(pixels: Tensor) -> Tensor:
    """NaN for class 1 of images that are brighter than the second one's mean colour is."""
    logits = Smooth()(pixels)
    bright = (pixels.amax((1, 2, 3)) > 0.74)[:, None]
    return torch.where(bright & (torch.arange(5) == 1), torch.nan, logits)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: FrequencyAttribution(3), TypeError, "got int"),
        (
            lambda: FrequencyAttribution(Smooth(), "ig"),
            ValueError,
            "one of integrated, gradient; got 'ig'",
        ),
        (lambda: FrequencyAttribution(Smooth(), passes=0), ValueError, "passes must be at least 1"),
        (lambda: FrequencyAttribution(Smooth(), score="loss"), ValueError, "probability, logit; got 'loss'"),
        (lambda: FrequencyAttribution(Smooth(), bounds=(1, 0)), ValueError, "lower < upper"),
        (
            lambda: FrequencyAttribution(Smooth())(torch.rand(1, 3, 1, 1)),
            ValueError,
            "images must be at least 8 pixels high and wide, got 1 x 1",
        ),
        (lambda: FrequencyAttribution(Smooth())(some_images(), 5), ValueError, "target 5 .* the model has 5 classes"),
        (
            lambda: FrequencyAttribution(lambda x: Smooth()(x).softmax(1))(some_images()),
            ValueError,
            "the model ends in a softmax, so that its outputs are probabilities already: say output='probabilities'",
        ),
        (lambda: FrequencyAttribution(lambda x: Smooth()(x).detach())(some_images()), ValueError, "no gradient"),
        (
            lambda: FrequencyAttribution(strange)(some_images(2), 1),
            ValueError,
            "target 1 has no score: the model's output is NaN or infinite for image 0",
        ),
        (
            lambda: FrequencyAttribution(Smooth())(some_images(), 0).places(bands_between(24, 24, [1.1, 1.2])),
            ValueError,
            "band 1, radii from 1.1 to 1.2, has no frequency, and so no evidence",
        ),
        (
            lambda: FrequencyAttribution(Smooth())(some_images(), 0).places(octave_bands(32, 32)),
            ValueError,
            "these bands belong to 32 x 32 pixels",
        ),
    ],
)
def test_bad_arguments_are_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
@pytest.mark.shared
def test_photographs_on_a_real_model(mobilenet, photographs) -> None:
    """Pixels, bands, rings and coefficients hold the same evidence, and the integral is nearly complete."""
    images, labels = photographs(2)
    found = FrequencyAttribution(mobilenet)(images, labels)
    whole = (found.difference * found.gradients).double()
    torch.testing.assert_close(found.coefficients().sum((1, 2)), whole.sum((1, 2, 3)), rtol=1e-4, atol=1e-4)
    bands = three_bands(224, 224)
    places = found.places(bands)
    scale = float(whole.abs().max())
    torch.testing.assert_close(places.double().sum(1), whole, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(places.double().sum((2, 3, 4)), bands.sums(found.coefficients()), rtol=1e-3, atol=1e-3)
    assert (found.gap().abs() < 0.1 * (found.score - found.baseline_score).abs()).all()


@pytest.mark.slow
@pytest.mark.shared
def test_the_bands_add_up_on_every_photograph(mobilenet, photographs) -> None:
    for images, labels in zip(*(part.split(8) for part in photographs(64)), strict=True):
        found = FrequencyAttribution(mobilenet, "gradient")(images, labels)
        whole, places = found.difference * found.gradients, found.places(three_bands(224, 224))
        lacking = (places.sum(1) - whole).abs().amax((1, 2, 3)) / whole.abs().amax((1, 2, 3))
        assert float(lacking.max()) < 1e-5
