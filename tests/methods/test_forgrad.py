"""FORGrad: the filter against analytic facts, its places in methods, the search for the cut-off, signatures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fampe_fast import FAMPE, AttEXplore, FORGrad, LowPassGradients, TunedCutoff, create_method, tune_cutoff
from fampe_fast.frequency import filtered_map, fourier_signature, low_pass, power_slope
from fampe_fast.methods import tuning as search
from fampe_fast.metrics import Estimate, insertion_deletion

from ..models_for_tests import Smooth, TwoClassLinear, some_images

SIZES = [(8, 8), (9, 9), (12, 20), (21, 10), (15, 16), (1, 7)]


def wave(height: int, width: int, down: int, across: int, phase: float = 0.3) -> Tensor:
    rows = torch.arange(height, dtype=torch.float64)[:, None] / height
    columns = torch.arange(width, dtype=torch.float64) / width
    return torch.cos(2 * math.pi * (down * rows + across * columns) + phase)


def frequencies(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Of the full spectrum, in cycles per pixel."""
    return torch.fft.fftfreq(height, dtype=torch.float64)[:, None], torch.fft.fftfreq(width, dtype=torch.float64)


# The filter -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_the_filter_is_an_orthogonal_projection(size: tuple[int, int]) -> None:
    """Applied twice it is itself; it is symmetric; what it keeps and what it takes are orthogonal."""
    a, b = torch.randn(2, 3, 2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    once = low_pass(a, 2.5)
    torch.testing.assert_close(low_pass(once, 2.5), once)
    torch.testing.assert_close((once * b).sum(), (a * low_pass(b, 2.5)).sum())
    assert abs(float((once * (a - once)).sum())) < 1e-9
    torch.testing.assert_close(low_pass(a, 1e6), a)
    torch.testing.assert_close(low_pass(a, 0), a.mean((-2, -1), keepdim=True).expand_as(a))


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (12, 20), (20, 12), (9, 30)])
def test_a_wave_passes_up_to_its_radius_exactly(size: tuple[int, int]) -> None:
    """Its radius is known: min(H, W) * |(fu/H, fv/W)|; the disc is closed."""
    height, width = size
    for down, across in ((0, 1), (2, 0), (3, 4), (1, 3), (-2, 3)):
        values = wave(height, width, down, across)
        radius = min(size) * math.hypot(down / height, across / width)
        torch.testing.assert_close(low_pass(values, radius), values)
        assert low_pass(values, radius * (1 - 1e-9)).abs().max() < 1e-9


@pytest.mark.parametrize("size", SIZES)
def test_the_filter_is_that_of_the_full_spectrum(size: tuple[int, int]) -> None:
    """Against the complex transform with numpy's own frequencies."""
    height, width = size
    values = torch.randn(2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    radius = min(size) * torch.hypot(*frequencies(height, width))
    for cutoff in (0.5, 1.7, 3.3):
        expected = torch.fft.ifft2(torch.fft.fft2(values) * (radius <= cutoff))
        assert expected.imag.abs().max() < 1e-12
        torch.testing.assert_close(low_pass(values, cutoff), expected.real)


def test_the_signed_filter_is_the_signed_mean_filtered_and_its_absolute_value() -> None:
    maps = torch.stack([wave(16, 16, 0, 2), 3 * wave(16, 16, 0, 2), -wave(16, 16, 7, 7)])[None]
    torch.testing.assert_close(filtered_map(maps, 4, signed=True), wave(16, 16, 0, 2).abs()[None, None] * 4 / 3)


def public_disc(size: int, bandwidth: float) -> np.ndarray:
    """The mask of deel-ai/xplique, ``xplique/commons/forgrad.py``: (size, size // 2 + 1), about the rolled centre."""
    middle = size // 2
    place = np.arange(size) - middle
    inside = np.hypot(place[:, None], place[None, :]) <= bandwidth
    return np.roll(inside, (middle, middle), axis=(0, 1))[:, : size // 2 + 1]


def public_forgrad(explanations: np.ndarray, bandwidth: float) -> np.ndarray:
    """The filter of that file for (B, H, W, C) of an even H = W: mean of the channels, absolute, disc, absolute."""
    gray = np.abs(explanations.mean(-1))
    spectrum = np.fft.rfft2(gray) * public_disc(gray.shape[1], bandwidth)
    return np.abs(np.fft.irfft2(spectrum, s=gray.shape[1:]))


@pytest.mark.parametrize("bandwidth", [1, 5, 15, 15.5, 40, 112, 224])
@pytest.mark.parametrize("size", [8, 98, 224])
def test_the_filter_is_the_authors_public_code(size: int, bandwidth: float) -> None:
    maps = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))
    maps[1] *= torch.tensor([1.0, -1.0, 0.5])[:, None, None]
    expected = public_forgrad(maps.permute(0, 2, 3, 1).numpy(), bandwidth)
    np.testing.assert_allclose(filtered_map(maps, bandwidth)[:, 0].numpy(), expected, rtol=0, atol=1e-13)
    single = filtered_map(maps.float(), bandwidth)[:, 0].numpy()
    np.testing.assert_allclose(single, expected, rtol=0, atol=2e-6 * expected.max())
    if bandwidth < size / 2:
        other = filtered_map(maps, bandwidth, signed=True)[:, 0].numpy()
        assert np.corrcoef(other.ravel(), expected.ravel())[0, 1] < 0.9


@pytest.mark.shared
def test_the_filter_is_the_authors_public_code_on_a_real_gradient(mobilenet, photographs) -> None:
    images, labels = photographs(2)
    gradient = create_method("saliency", mobilenet, absolute=False).attribute(images, labels)
    expected = public_forgrad(gradient.double().permute(0, 2, 3, 1).numpy(), 15)
    found = create_method("forgrad_saliency", mobilenet).attribute(images, labels)
    assert images.shape[-2:] == (224, 224)
    for channel in range(3):
        np.testing.assert_allclose(found[:, channel], expected, rtol=0, atol=1e-4 * expected.max())


@pytest.mark.parametrize("size", [(15, 15), (225, 225), (12, 20), (21, 10), (1, 7), (1, 1)])
def test_the_filter_is_centred_at_sizes_that_the_public_code_does_not_serve(size: tuple[int, int]) -> None:
    """Of an odd size that code's disc lies beside DC, and it takes no other shape than a square."""
    height, width = size
    if height == width and height > 1:
        assert not public_disc(height, 0.5)[0, 0]  # DC
    maps = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    gray = maps.mean(1, keepdim=True).abs()
    inside = min(size) * torch.hypot(*frequencies(height, width)) <= 3.3
    expected = torch.fft.ifft2(torch.fft.fft2(gray) * inside).real.abs()
    torch.testing.assert_close(filtered_map(maps, 3.3), expected)
    torch.testing.assert_close(filtered_map(maps, 0), gray.mean((-2, -1), keepdim=True).expand_as(gray))
    # A map that is moved gives the moved map: the disc is no worse at one place than at another.
    moved = maps.roll((1, 2), (-2, -1))
    torch.testing.assert_close(filtered_map(moved, 3.3), filtered_map(maps, 3.3).roll((1, 2), (-2, -1)))


def test_the_filters_part_where_signs_change_from_pixel_to_pixel() -> None:
    """What alternates is gone for the signed filter, and evidence as strong as any for the authors'."""
    checkers = torch.ones(1, 3, 16, 16)
    checkers[..., ::2, 1::2] *= -1
    checkers[..., 1::2, ::2] *= -1
    torch.testing.assert_close(filtered_map(checkers, 5), torch.ones(1, 1, 16, 16))
    torch.testing.assert_close(filtered_map(checkers, 5, signed=True), torch.zeros(1, 1, 16, 16), rtol=0, atol=1e-6)
    # Both take the channels' mean with its signs: channels that disagree cancel out.
    against = torch.cat([checkers[:, :1], -checkers[:, :1]], 1)
    assert filtered_map(against, 5).abs().max() < 1e-6
    torch.testing.assert_close(filtered_map(against.abs(), 5), torch.ones(1, 1, 16, 16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_filter_keeps_the_dtype_and_is_differentiable(dtype: torch.dtype) -> None:
    values = torch.rand(2, 9, 12).to(dtype)
    assert low_pass(values, 3).dtype == dtype
    assert low_pass(values[:0], 3).shape == (0, 9, 12)
    double = torch.rand(1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: low_pass(x, 1.5), (double,))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: low_pass(torch.ones(4, 4), -1), ValueError, "finite and not negative, got -1"),
        (lambda: low_pass(torch.ones(4, 4), math.nan), ValueError, "finite and not negative, got nan"),
        (lambda: low_pass(torch.ones(4, 4), "15"), TypeError, "must be a number, got '15'"),
        (lambda: low_pass(torch.ones(4, 4).int(), 1), TypeError, "real floating-point tensor, got torch.int32"),
        (lambda: low_pass(torch.ones(4), 1), ValueError, r"got shape \(4,\)"),
        (
            lambda: filtered_map(torch.ones(4, 4), 1),
            ValueError,
            r"maps must be \(B, C, H, W\) with C at least 1, got shape \(4, 4\)",
        ),
        (
            lambda: filtered_map(torch.ones(1, 3, 4, 4).int(), 1),
            TypeError,
            "real floating-point tensor, got torch.int32",
        ),
        (lambda: filtered_map(torch.ones(2, 0, 4, 4), 1), ValueError, r"C at least 1, got shape \(2, 0, 4, 4\)"),
        (lambda: filtered_map([1.0], 1), TypeError, "real floating-point tensor, got list"),
        (lambda: filtered_map(torch.ones(1, 3, 4, 4), 1, signed=1), TypeError, "signed must be True or False, got 1"),
        (lambda: FORGrad(FAMPE(Smooth()), 5, signed="no"), TypeError, "signed must be True or False, got 'no'"),
        (lambda: FORGrad(object()), TypeError, "a method 'attribute', got object"),
        (lambda: FORGrad(FAMPE(Smooth()), -2), ValueError, "not negative, got -2"),
        (lambda: LowPassGradients(3), TypeError, "got int"),
        (lambda: FAMPE(Smooth(), gradient_cutoff=-1), ValueError, "gradient_cutoff must be in"),
        (lambda: create_method("fampe", Smooth(), map_cutoff=3), TypeError, "no option"),
        (lambda: fourier_signature(torch.full((1, 1, 8, 8), math.inf)), ValueError, "NaN or infinity"),
        (lambda: power_slope(torch.ones(2, 2)), ValueError, "K at least 3"),
    ],
)
def test_bad_arguments_are_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# Inside methods -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("filters", [{}, {"signed": False}, {"signed": True}], ids=str)
@pytest.mark.parametrize("method", [FAMPE, AttEXplore])
def test_any_method_s_maps_are_filtered(method: type, filters: dict[str, bool]) -> None:
    images = some_images(2)
    inner = method(Smooth(), steps=1, samples=2, area_cutoff=None)
    maps = FORGrad(inner, 4, **filters).attribute(images, [0, 1], image_ids=[7, 8], internal_batch_size=3)
    plain = inner.attribute(images, [0, 1], image_ids=[7, 8], internal_batch_size=3)
    if filters.get("signed"):
        expected = low_pass(plain.mean(1, keepdim=True), 4).abs()
    else:
        expected = low_pass(plain.mean(1, keepdim=True).abs(), 4).abs()
    torch.testing.assert_close(maps, expected.expand_as(images))


def test_gradients_are_filtered_and_outputs_are_not() -> None:
    """Of a linear model the gradient is its weights: low-passed, whatever the image."""
    weight = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.01
    model = LowPassGradients(TwoClassLinear(weight), 5)
    images = some_images().requires_grad_()
    logits = model(images)
    assert torch.equal(logits, model.model(images))
    assert not model.training
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images)
    torch.testing.assert_close(gradient, low_pass(weight, 5).expand_as(images))


def test_filtered_gradients_are_the_signed_filter_s() -> None:
    """Mean and low-pass commute, the absolute value does not: inside a model it is never the authors' filter."""
    pytest.importorskip("captum.attr")
    weight = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.01
    images = some_images()
    inside = create_method("saliency", LowPassGradients(TwoClassLinear(weight), 5), absolute=False)
    mean = inside.attribute(images, 0).mean(1, keepdim=True).abs()
    signed = create_method("forgrad_signed_saliency", TwoClassLinear(weight), map_cutoff=5).attribute(images, 0)
    torch.testing.assert_close(mean.expand_as(images), signed, rtol=1e-3, atol=1e-6)
    authors = create_method("forgrad_saliency", TwoClassLinear(weight), map_cutoff=5).attribute(images, 0)
    assert not torch.allclose(mean.expand_as(images), authors, rtol=0.1)


def test_captum_s_methods_get_filtered_gradients() -> None:
    """Integrated gradients of a linear model: the image times the low-passed weights."""
    attr = pytest.importorskip("captum.attr")
    weight = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.01
    images = some_images()
    method = attr.IntegratedGradients(LowPassGradients(TwoClassLinear(weight), 5))
    maps = method.attribute(images, target=0, n_steps=4)
    torch.testing.assert_close(maps.float(), images * low_pass(weight, 5), rtol=1e-4, atol=1e-6)
    shown = FORGrad(attr.Saliency(TwoClassLinear(weight)), 5)
    torch.testing.assert_close(
        shown.attribute(images, 0), filtered_map(weight.abs()[None], 5).expand_as(images), rtol=1e-4, atol=1e-6
    )


def test_fampe_s_aggregation_is_filtered() -> None:
    """The linear model's map is then its low-passed weights, normalised (see the same fact without the filter)."""
    weight = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(1)) * 0.01
    identity = {"mode": "mix", "alpha": 0.5, "gain": 2.0, "rho": 0.0, "sigma": 0.0, "decay": 0.0}
    plain = {"smoothing": False, "input_diversity": False, "area_cutoff": None, "views": 0}
    method = FAMPE(TwoClassLinear(weight), steps=4, samples=3, eps=0.1, gradient_cutoff=5, **identity, **plain)
    maps = method.attribute(some_images(), target=0)
    filtered = low_pass(weight, 5)
    torch.testing.assert_close(
        maps, (0.1 * filtered.abs() / filtered.abs().mean()).expand_as(maps), rtol=1e-3, atol=1e-5
    )


def test_names_with_forgrad_make_filtered_methods() -> None:
    images = some_images(1)
    method = create_method("forgrad_fampe", Smooth(), map_cutoff=3, steps=1, samples=2)
    assert isinstance(method, FORGrad)
    assert method.cutoff == 3
    assert create_method("forgrad_attexplore", Smooth()).cutoff == 15
    pytest.importorskip("captum.attr")
    weight = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(0)) * 0.01
    for name, signed in (("forgrad_saliency", False), ("forgrad_signed_saliency", True)):
        saliency = create_method(name, TwoClassLinear(weight), map_cutoff=5)
        assert isinstance(saliency, FORGrad)
        assert saliency.signed is signed
        torch.testing.assert_close(  # the weights with their signs
            saliency.attribute(images, 0),
            filtered_map(weight[None], 5, signed=signed).expand_as(images),
            rtol=1e-4,
            atol=1e-6,
        )
    magnitudes = create_method("forgrad_saliency", TwoClassLinear(weight), map_cutoff=5, absolute=True)
    torch.testing.assert_close(
        magnitudes.attribute(images, 0), filtered_map(weight.abs()[None], 5).expand_as(images), rtol=1e-4, atol=1e-6
    )
    assert isinstance(create_method("forgrad_signed_fampe", Smooth()).method, FAMPE)


def test_a_record_says_which_filter_it_was() -> None:
    records = [
        create_method(name, Smooth(), map_cutoff=3).describe() for name in ("forgrad_fampe", "forgrad_signed_fampe")
    ]
    assert [record["signed"] for record in records] == [False, True]
    assert [record["map_cutoff"] for record in records] == [3, 3]
    assert records[0]["filtered"] == records[1]["filtered"] == FAMPE(Smooth()).describe()
    json.dumps(records)


# The search -----------------------------------------------------------------------------------------------------------


class Fixed:
    """A method whose maps are given."""

    name = "fixed"

    def __init__(self, maps: Tensor) -> None:
        self.maps, self.calls = maps, 0

    def attribute(self, inputs: Tensor, target: object = None) -> Tensor:
        self.calls += 1
        return self.maps[: len(inputs)]


@pytest.mark.parametrize("peak", [1, 3, 11, 20, 37, 56, 112])
def test_the_search_finds_the_peak_of_a_curve_with_one(peak: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The score is made to depend on the radius alone, by the ring of the map that is left."""
    tried: list[float] = []

    def score(model: object, images: Tensor, maps: Tensor, targets: Tensor, **options: object) -> object:
        radius = float(maps.flatten()[0])
        tried.append(radius)
        value = torch.full((len(images),), 0.9 - abs(math.log(max(radius, 0.5) / peak)) / 10)

        class Found:
            insertion, deletion = value, torch.zeros_like(value)

        return Found

    monkeypatch.setattr(search, "filtered_map", lambda maps, radius, signed: torch.full_like(maps[:, :1], radius))
    monkeypatch.setattr(search, "insertion_deletion", score)
    images = torch.rand(2, 3, 224, 224)
    method = Fixed(torch.rand(2, 3, 224, 224))
    found = tune_cutoff(Smooth(), [(images, torch.tensor([0, 1]))], method, metric_steps=7)
    assert found.cutoff == peak
    assert method.calls == 1
    assert list(found.curve) == sorted(found.curve)
    assert len(found.curve) <= 2 * math.ceil(math.log2(224)) + 2
    assert found.forward_passes == 2 * 8 * (len(found.curve) + 1) == 16 * len(tried)
    neighbours = {radius for radius in (peak - 1, peak + 1) if 1 <= radius <= 112}
    assert neighbours <= set(found.curve)


def test_the_search_prefers_what_insertion_and_deletion_prefer(tmp_path: Path) -> None:
    """The evidence is a smooth blob under strong noise: the filter wins, and its scores are the metric's own."""
    blob = torch.exp(-((torch.arange(24) - 12.0) ** 2)[:, None] / 30 - ((torch.arange(24) - 8.0) ** 2) / 30)
    weight = blob.expand(3, -1, -1) / (0.4 * 3 * (blob**2).sum()) * 4

    class Contrast(TwoClassLinear):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels - 0.5)

    model = Contrast(weight)
    noise = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(2))
    images = 0.5 + 0.4 * blob.expand(3, 3, -1, -1) * torch.tensor([1.0, 0.9, 0.8])[:, None, None, None]
    maps = (blob + 0.5 * noise).expand(3, -1, -1, -1)
    targets = torch.zeros(3, dtype=torch.long)
    loader = [(images[:2], targets[:2]), (images[2:], targets[2:])]
    found = tune_cutoff(model, loader, Fixed(maps), metric_steps=12, mean=0.5, model_name="linear")
    assert found.curve[found.cutoff].mean == max(estimate.mean for estimate in found.curve.values())
    assert found.curve[found.cutoff].mean > found.unfiltered.mean
    assert 1 <= found.cutoff <= 8
    shown = filtered_map(maps, found.cutoff).expand_as(images)
    scores = insertion_deletion(model, images, shown, targets, steps=12, mean=0.5)
    assert found.curve[found.cutoff].mean == pytest.approx(float((scores.insertion - scores.deletion).mean()), abs=1e-6)
    assert found.curve[found.cutoff].n == 3

    file = tmp_path / "deep" / "cutoffs.json"
    found.save(file)
    other = TunedCutoff("other", "fixed", 3, {3: Estimate(0.5, None, 1)}, Estimate(0.1, None, 1), "rise", 10)
    other.save(file)
    assert TunedCutoff.load(file, "linear", "fixed") == found
    assert TunedCutoff.load(file, "other", "fixed") == other
    with pytest.raises(KeyError, match="no cut-off for 'resnet | fixed'.*linear | fixed"):
        TunedCutoff.load(file, "resnet", "fixed")

    # A radius serves the filter that it was found for: both are kept, each under its own name.
    assert found.signed is False
    signed = tune_cutoff(model, loader, Fixed(maps), metric_steps=12, mean=0.5, model_name="linear", signed=True)
    shown = filtered_map(maps, signed.cutoff, signed=True).expand_as(images)
    scores = insertion_deletion(model, images, shown, targets, steps=12, mean=0.5)
    expected = float((scores.insertion - scores.deletion).mean())
    assert signed.curve[signed.cutoff].mean == pytest.approx(expected, abs=1e-6)
    assert signed.unfiltered == found.unfiltered
    assert signed.curve != found.curve
    with pytest.raises(KeyError, match="linear | fixed | signed"):
        TunedCutoff.load(file, "linear", "fixed", signed=True)
    signed.save(file)
    assert TunedCutoff.load(file, "linear", "fixed", signed=True) == signed
    assert TunedCutoff.load(file, "linear", "fixed") == found
    with pytest.raises(TypeError, match="signed must be True or False"):
        tune_cutoff(model, loader, Fixed(maps), metric_steps=12, mean=0.5, signed=1)
    file.write_text("[1]")
    with pytest.raises(ValueError, match="not a file of tuned cut-offs"):
        TunedCutoff.load(file, "linear", "fixed")


def test_an_outcome_from_before_there_were_two_filters_is_the_signed_one_s(tmp_path: Path) -> None:
    file = tmp_path / "cutoffs.json"
    old = TunedCutoff("resnet", "fixed", 3, {3: Estimate(0.5, None, 1)}, Estimate(0.1, None, 1), "rise", 10, True)
    old.save(file)
    content = json.loads(file.read_text())
    ((key, entry),) = ((key, value) for key, value in content.items() if isinstance(value, dict) and "curve" in value)
    del entry["signed"], content[key]
    file.write_text(json.dumps({**content, "resnet | fixed": entry}))
    with pytest.raises(KeyError, match=r"no cut-off for 'resnet \| fixed' .*resnet \| fixed \| signed"):
        TunedCutoff.load(file, "resnet", "fixed")
    assert TunedCutoff.load(file, "resnet", "fixed", signed=True) == old
    new = TunedCutoff("resnet", "fixed", 9, {9: Estimate(0.6, None, 1)}, Estimate(0.1, None, 1), "rise", 10)
    new.save(file)
    assert TunedCutoff.load(file, "resnet", "fixed") == new
    assert TunedCutoff.load(file, "resnet", "fixed", signed=True) == old
    later = TunedCutoff("resnet", "fixed", 5, {5: Estimate(0.7, None, 1)}, Estimate(0.1, None, 1), "rise", 10, True)
    later.save(file)
    assert TunedCutoff.load(file, "resnet", "fixed", signed=True) == later


def test_bad_loaders_are_named() -> None:
    method = Fixed(torch.rand(1, 3, 24, 24))
    with pytest.raises(ValueError, match="yielded no images"):
        tune_cutoff(Smooth(), [], method)
    with pytest.raises(TypeError, match="pairs"):
        tune_cutoff(Smooth(), [torch.rand(1, 3, 24, 24)], method)
    label = torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="one size"):
        tune_cutoff(Smooth(), [(some_images(1), label), (some_images(1, height=20), label)], method)
    with pytest.raises(TypeError, match="attribute"):
        tune_cutoff(Smooth(), [(some_images(1), label)], object())


# Signatures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (31, 31), (24, 40)])
def test_a_wave_s_signature_has_one_ring(size: tuple[int, int]) -> None:
    height, width = size
    values = wave(height, width, 0, 5)[None, None]
    signature = fourier_signature(values)
    ring = math.ceil(min(size) * 5 / width - 1e-9)
    assert signature.shape == (1, min(size) // 2 + 1)
    assert int(signature[0].argmax()) == ring
    assert signature[0, [k for k in range(signature.shape[1]) if k != ring]].max() < 1e-9
    full = torch.fft.fft2(values[0, 0]).abs()
    radius = min(size) * torch.hypot(*frequencies(height, width))
    inside = radius.sub(1e-9).ceil() == ring
    assert signature[0, ring].item() == pytest.approx(full[inside].mean().item())


@pytest.mark.parametrize("exponent", [0.0, -1.0, -2.0, -3.5])
def test_the_slope_is_that_of_the_power_law(exponent: float) -> None:
    radii = torch.arange(0, 60, dtype=torch.float64)
    signature = radii.clamp(min=1) ** (exponent / 2)
    slope = power_slope(torch.stack([signature, 7 * signature]))
    torch.testing.assert_close(slope, torch.full((2,), exponent, dtype=torch.float64))


def test_white_noise_is_flat_and_its_low_pass_is_steep() -> None:
    noise = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    slopes = power_slope(fourier_signature(noise))
    assert abs(float(slopes.mean())) < 5 * float(slopes.std()) / math.sqrt(40)
    smoothed = torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2)
    assert power_slope(fourier_signature(smoothed)).mean() < -1
    assert power_slope(fourier_signature(torch.zeros(1, 1, 8, 8))).isnan().all()
    assert fourier_signature(noise[:0]).shape == (0, 33)


@pytest.mark.slow
@pytest.mark.shared
def test_fampe_s_maps_of_the_real_model_gain_by_the_filter(mobilenet, photographs) -> None:
    """What the paper reports for white-box methods: raw gradients have a flatter spectrum than their filtered maps."""
    images, labels = photographs(2)
    gradients = create_method("saliency", mobilenet, absolute=False).attribute(images, labels)
    raw, filtered = fourier_signature(gradients), fourier_signature(filtered_map(gradients, 15))
    assert (power_slope(filtered) < power_slope(raw)).all()
    found = tune_cutoff(mobilenet, [(images, labels)], Fixed(gradients), metric_steps=6, method_name="gradient")
    assert found.model == mobilenet.name
    assert 1 <= found.cutoff <= 112


def test_signatures_and_slopes_are_drawn_per_method(tmp_path: Path) -> None:
    from fampe_fast.plots import save_figure, signatures_figure, slopes_figure

    noise = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    signatures = {"raw": fourier_signature(noise), "filtered": fourier_signature(low_pass(noise, 8) + 1e-3 * noise)}
    figure = signatures_figure(signatures)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[-1].get_lines()}
    assert lines.keys() == signatures.keys()
    assert all(line[0] == pytest.approx(1) and len(line) == 16 for line in lines.values())
    assert lines["filtered"][-1] < 0.01 < lines["raw"][-1]
    save_figure(figure, tmp_path / "signatures.png")
    slopes = {name: power_slope(signature) for name, signature in signatures.items()}
    figure = slopes_figure(slopes)
    assert [label.get_text() for label in figure.axes[-1].get_yticklabels()] == ["raw", "filtered"]
    save_figure(figure, tmp_path / "slopes.png")
    assert (tmp_path / "slopes.png").stat().st_size > 5000
    for call, message in (
        (lambda: signatures_figure({}), "at least one method"),
        (lambda: signatures_figure({"a": torch.zeros(2, 9)}), "no map of 'a' has power"),
        (lambda: signatures_figure({"a": torch.ones(2, 9), "b": torch.ones(2, 8)}), "one length"),
        (lambda: slopes_figure({"a": torch.full((2,), math.nan)}), "with a finite value"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
