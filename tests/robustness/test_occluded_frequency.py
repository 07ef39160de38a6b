"""Radial bands as a partition, and Occluded Frequency on models whose answer is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fampe_fast.frequency.bands import RadialBands, bands_between, equal_energy_bands, equal_width_bands
from fampe_fast.frequency.low_pass import low_pass
from fampe_fast.images.generated import BANDS, band_texture, generate
from fampe_fast.metrics.summary import bootstrap_interval, student_interval
from fampe_fast.models import Classifier
from fampe_fast.plots.band_panels import band_panels_figure
from fampe_fast.plots.bands import BandCurve, bands_figure
from fampe_fast.robustness.occluded_frequency import OccludedFrequency
from fampe_fast.runs.occlude import occlude_files

from ..models_for_tests import Constant, Smooth, TwoClassLinear, some_images

SIZES = [(16, 16), (15, 15), (12, 20), (21, 10), (9, 30), (8, 33)]


def wave(height: int, width: int, down: int, across: int, phase: float = 0.3) -> Tensor:
    rows = torch.arange(height, dtype=torch.float64)[:, None] / height
    columns = torch.arange(width, dtype=torch.float64) / width
    return torch.cos(2 * math.pi * (down * rows + across * columns) + phase)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def full_radius(height: int, width: int) -> Tensor:
    """Of the full spectrum, from numpy's own frequencies."""
    return min(height, width) * torch.from_numpy(
        np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
    )


def all_bands(height: int, width: int, *, include_dc: bool) -> list[RadialBands]:
    return [
        equal_width_bands(height, width, 4, include_dc=include_dc),
        bands_between(height, width, [1.5, 3], include_dc=include_dc),
        equal_energy_bands(noise(2, 3, height, width), 5, include_dc=include_dc),
    ]


# The bands ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("include_dc", [False, True])
def test_bands_are_a_partition_of_all_frequencies(size: tuple[int, int], include_dc: bool) -> None:
    """Counts, energies (Parseval) and images of the bands add up to the whole, with DC in the first band or in none."""
    height, width = size
    images = noise(2, 3, height, width)
    mean = 0 if include_dc else images.mean((-2, -1), keepdim=True)
    for bands in all_bands(height, width, include_dc=include_dc):
        assert bands.coefficients().sum(1).tolist() == [height * width - (not include_dc)] * len(bands.edges)
        energy = ((images - mean) ** 2).sum((1, 2, 3))
        torch.testing.assert_close(bands.energy(images).sum(1), energy)
        parts = [bands.project(images, band) for band in range(bands.count)]
        torch.testing.assert_close(sum(parts), images - mean)
        for k, part in enumerate(parts):
            torch.testing.assert_close((part**2).sum((1, 2, 3)), bands.energy(images)[:, k])


@pytest.mark.parametrize("size", SIZES)
def test_a_band_filter_is_an_orthogonal_projection(size: tuple[int, int]) -> None:
    a, b = noise(2, 3, *size), noise(2, 3, *size, seed=1)
    for bands in all_bands(*size, include_dc=False):
        once = bands.project(a, 1)
        torch.testing.assert_close(bands.project(once, 1), once)
        torch.testing.assert_close((once * b).sum(), (a * bands.project(b, 1)).sum())
        assert bands.project(once, 0).abs().max() < 1e-12
        torch.testing.assert_close(bands.project(a, torch.tensor([1, 2]))[1], bands.project(a, 2)[1])


@pytest.mark.parametrize("size", SIZES)
def test_bands_are_those_of_the_full_spectrum(size: tuple[int, int]) -> None:
    """Against the complex transform with numpy's frequencies, edges slightly moved off the lattice of radii."""
    bands = equal_width_bands(*size, 5)
    values, radius = noise(1, 2, *size), full_radius(*size)
    assert float(bands.edges[0, -1]) == pytest.approx(float(radius.max()))
    torch.testing.assert_close(bands.edges[0].diff(), (bands.edges[0, -1] / 5).expand(5))
    for k in range(5):
        inner, outer = (edge * (1 + 1e-9) for edge in bands.edges[0, k : k + 2])
        inside = (radius > inner) & (radius <= outer) & (radius > 0)
        assert int(bands.coefficients()[0, k]) == int(inside.sum())
        expected = torch.fft.ifft2(torch.fft.fft2(values) * inside)
        assert expected.imag.abs().max() < 1e-12
        torch.testing.assert_close(bands.project(values, k), expected.real)


def test_a_frequency_on_an_edge_belongs_to_the_band_below_it() -> None:
    """Square images: radius 5 is (3, 4) and (0, 5) exactly; the corner of 16 x 16 is 8 sqrt(2)."""
    bands = bands_between(16, 16, [5])
    assert bands.edges.tolist() == [[0, 5, math.sqrt(128)]]
    for down, across in ((3, 4), (4, 3), (-3, 4), (0, 5), (5, 0)):
        values = wave(16, 16, down, across)[None, None]
        torch.testing.assert_close(bands.project(values, 0), values)
    assert bands.project(wave(16, 16, 1, 5)[None, None], 0).abs().max() < 1e-12
    # One third of the corner's radius squared is 128/9: frequencies up to r^2 = 14 belong to the first band.
    assert int(equal_width_bands(16, 16, 3).coefficients()[0, 0]) == sum(
        0 < a * a + b * b <= 14 for a in range(-7, 9) for b in range(-7, 9)
    )
    nearly = bands_between(12, 20, [12 * math.hypot(2 / 12, 5 / 20)])
    assert int(nearly.index[0, 2, 5]) == 0
    assert bands_between(16, 16, [5, 50, 60]).edges.shape == (1, 3)  # nothing lies beyond the corner


@pytest.mark.parametrize("size", [*SIZES, (64, 64)])
@pytest.mark.parametrize("include_dc", [False, True])
def test_equal_energy_bands_hold_equal_energy_up_to_one_radius(size: tuple[int, int], include_dc: bool) -> None:
    """Each band's energy is 1/K of the whole within that of the most energetic single radius."""
    pink = low_pass(noise(3, 3, *size), 3) + 0.2 * noise(3, 3, *size, seed=1)
    count = 6
    bands = equal_energy_bands(pink, count, include_dc=include_dc)
    shares = bands.energy(pink)
    total = shares.sum(1)
    power = (torch.fft.fft2(pink).abs() ** 2).sum(1) / (size[0] * size[1])
    if not include_dc:
        power[:, 0, 0] = 0
    radius = (full_radius(*size) * 1e6).round().long()
    for image in range(3):
        per_radius = [float(power[image][radius == r].sum()) for r in radius.unique()]
        assert float((shares[image] - total[image] / count).abs().max()) <= max(per_radius) * (1 + 1e-9)
        inside = shares[image].cumsum(0) / total[image]
        assert (inside >= torch.arange(1, count + 1).double() / count - 1e-9).all()
    assert (bands.edges.diff(dim=1) >= 0).all()
    white = noise(1, 3, 64, 64)
    torch.testing.assert_close(
        equal_energy_bands(white, 4).energy(white) / (white - white.mean((2, 3), keepdim=True)).square().sum(),
        torch.full((1, 4), 0.25, dtype=torch.float64), atol=0.005, rtol=0,
    )  # fmt: skip


def test_a_radius_that_holds_all_energy_leaves_the_other_bands_empty_and_a_constant_image_has_no_energy() -> None:
    images = torch.stack([wave(16, 16, 0, 2), torch.full((16, 16), 0.3, dtype=torch.float64)])[:, None]
    bands = equal_energy_bands(images, 4)
    energy = bands.energy(images)
    assert energy[0].tolist() == pytest.approx([128, 0, 0, 0], abs=1e-9)
    assert bands.edges[0].tolist() == pytest.approx([0, 2, 2, 2, math.sqrt(128)])
    assert energy[1].abs().max() < 1e-12
    torch.testing.assert_close(bands.edges[1], equal_width_bands(16, 16, 4).edges[0])


def test_bands_keep_the_dtype_and_are_differentiable() -> None:
    bands = equal_width_bands(9, 12, 3)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert bands.project(noise(2, 1, 9, 12).to(dtype), 1).dtype == dtype
    double = noise(1, 2, 9, 12).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bands.project(x, 1), (double,))
    assert bands.project(noise(0, 1, 9, 12), 1).shape == (0, 1, 9, 12)
    assert equal_energy_bands(noise(0, 1, 9, 12), 3).energy(noise(0, 1, 9, 12)).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: equal_width_bands(16, 16, 0), ValueError, "bands must be at least 1, got 0"),
        (lambda: equal_width_bands(16, 16, 2.0), TypeError, "bands must be a whole number"),
        (lambda: equal_width_bands(8, 8, 20), ValueError, "20 bands of equal width are too many for 8 x 8"),
        (lambda: bands_between(8, 8, [3, 2]), ValueError, "ascending radii above 0"),
        (lambda: bands_between(8, 8, []), ValueError, "ascending radii above 0"),
        (lambda: bands_between(8, 8, [math.inf]), ValueError, "finite"),
        (lambda: equal_energy_bands(torch.ones(1, 3, 8), 2), ValueError, r"\(B, C, H, W\), got shape \(1, 3, 8\)"),
        (lambda: equal_energy_bands(torch.full((1, 3, 8, 8), math.nan), 2), ValueError, "NaN or infinity"),
        (lambda: equal_energy_bands(torch.ones(1, 3, 8, 8), 99), ValueError, "too few for 99 bands"),
        (lambda: equal_width_bands(8, 8, 2).project(torch.ones(1, 3, 8, 9), 0), ValueError, "belong to 8 x 8 pixels"),
        (lambda: equal_width_bands(8, 8, 2).project(torch.ones(1, 3, 8, 8), 2), ValueError, "0 ... 1, got 2"),
        (lambda: equal_width_bands(8, 8, 2).energy(torch.ones(1, 3, 8, 8).int()), TypeError, "got torch.int32"),
        (
            lambda: equal_energy_bands(torch.rand(2, 3, 8, 8), 2).project(torch.rand(3, 3, 8, 8), 0),
            ValueError,
            "belong to 2 images, got 3",
        ),
    ],
)
def test_bad_bands_are_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# The method on known models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 24), (21, 30), (25, 16)])
@pytest.mark.parametrize("spacing", ["width", "energy"])
def test_a_linear_model_loses_exactly_the_contribution_of_the_band(size: tuple[int, int], spacing: str) -> None:
    """s(x) = <w, x>: the drop is <w, P_k x>, and over the bands they sum to s(x) - s(mean of x)."""
    weight = (0.1 * noise(3, *size, seed=3)).float()
    model, images = TwoClassLinear(weight), some_images(3, height=size[0], width=size[1])
    found = OccludedFrequency(model, 5, spacing, "logit")(images, 0)
    bands = OccludedFrequency(model, 5, spacing).bands_of(images)
    for k in range(5):
        expected = (weight * bands.project(images.double(), k)).sum((1, 2, 3))
        torch.testing.assert_close(found.drops[:, k].double(), expected, rtol=1e-4, atol=1e-5)
    mean = images.mean((2, 3), keepdim=True).expand_as(images)
    torch.testing.assert_close(found.drops.sum(1), model(images)[:, 0] - model(mean)[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.base, model(images)[:, 0])
    torch.testing.assert_close(found.energy.sum(1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("frequency", [(0, 2), (3, -4), (5, 5), (12, 12)])
def test_a_model_that_reads_one_frequency_drops_in_its_band_alone(frequency: tuple[int, int]) -> None:
    """Whatever else the images hold; what is dropped is the wave's whole score."""
    read = wave(24, 24, *frequency).float().expand(3, -1, -1) / (3 * 24 * 12)
    images = (0.5 + 0.2 * wave(24, 24, *frequency).float() + 0.05 * noise(2, 3, 24, 24)).clamp(0, 1).float()
    model = TwoClassLinear(read)
    found = OccludedFrequency(model, 6, score="logit")(images, 0)
    radius = math.hypot(*frequency)
    band = int((found.edges[0, 1:] < radius - 1e-9).sum())
    torch.testing.assert_close(found.drops[:, band], found.base - model(torch.full_like(images, 0.5))[:, 0])
    others = [k for k in range(6) if k != band]
    assert found.drops[:, others].abs().max() < 1e-6


def test_probabilities_are_of_the_softmax_and_the_model_runs_once_per_band_and_once_more() -> None:
    """Against a loop over bands; every row passes the model once, whatever the chunks and the target's form."""
    images = some_images(3)
    rows: list[int] = []

    def counting(pixels: Tensor) -> Tensor:
        rows.append(len(pixels))
        return model(pixels)

    model = Smooth()
    bands = equal_width_bands(24, 24, 4)
    classes = model(images).argmax(1)
    expected = torch.stack(
        [
            (model(images).softmax(1) - model(images - bands.project(images, k)).softmax(1))[torch.arange(3), classes]
            for k in range(4)
        ],
        1,
    )
    for target in (None, classes, classes.tolist()):
        for chunk in (1, 5, 100):
            asked = 1 if rows else 3  # what its output is like; the first time also beside another image
            rows.clear()
            found = OccludedFrequency(counting, 4)(images, target, internal_batch_size=chunk)
            torch.testing.assert_close(found.drops, expected, rtol=1e-4, atol=1e-6)
            assert sum(rows) - asked == 3 * found.model_passes == 15
            assert max(rows) <= max(chunk, 2)
            assert torch.equal(found.target, classes)
    assert OccludedFrequency(model, 4)(images[:0], 1).drops.shape == (0, 4)


def test_dc_is_left_alone_unless_asked_for() -> None:
    """A model of the mean brightness: no band drops, or the first drops all of it."""
    model, images = TwoClassLinear(torch.full((3, 16, 16), 1 / 768)), some_images(2, height=16, width=16)
    assert OccludedFrequency(model, 4, score="logit")(images, 0).drops.abs().max() < 1e-6
    found = OccludedFrequency(model, 4, score="logit", include_dc=True)(images, 0)
    torch.testing.assert_close(found.drops, torch.stack([found.base, *torch.zeros(3, 2)], 1), atol=1e-6, rtol=1e-5)


def test_what_remains_is_clipped_only_where_asked() -> None:
    seen: list[Tensor] = []

    def watching(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return pixels.mean((2, 3))

    images = (noise(1, 3, 16, 16) > 0).float()
    OccludedFrequency(watching, 3)(images, 0)
    lowest, highest = min(float(x.min()) for x in seen), max(float(x.max()) for x in seen)
    assert lowest < -0.05
    assert highest > 1.05
    seen.clear()
    OccludedFrequency(watching, 3, clamp=True)(images, 0)
    assert all(0 <= float(x.min()) <= float(x.max()) <= 1 for x in seen)


def test_constant_images_and_constant_models_drop_nothing() -> None:
    images = torch.full((1, 3, 16, 16), 0.4)
    for spacing in ("width", "energy"):
        found = OccludedFrequency(Smooth(), 3, spacing)(images)
        assert found.drops.abs().max() < 1e-5
        assert found.energy.eq(0).all()
        assert OccludedFrequency(Constant().eval(), 3, spacing)(some_images(1)).drops.eq(0).all()


def strange(pixels: Tensor) -> Tensor:
    """NaN for the second image once anything is removed from it."""
    logits = Smooth()(pixels)
    changed = (pixels - some_images(2)[1]).abs().amax((1, 2, 3))
    return torch.where(((changed > 0) & (changed < 0.2))[:, None], torch.nan, logits)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: OccludedFrequency(3), TypeError, "got int"),
        (lambda: OccludedFrequency(Smooth(), 0), ValueError, "bands must be at least 1"),
        (lambda: OccludedFrequency(Smooth(), spacing="octave"), ValueError, "width, energy; got 'octave'"),
        (lambda: OccludedFrequency(Smooth(), score="loss"), ValueError, "probability, logit; got 'loss'"),
        (lambda: OccludedFrequency(Smooth(), bounds=(1, 0)), ValueError, "lower < upper"),
        (lambda: OccludedFrequency(Smooth())(some_images() * 255), ValueError, r"must lie in \[0, 1\]"),
        (lambda: OccludedFrequency(Smooth())(some_images(), 5), ValueError, "5 classes"),
        (lambda: OccludedFrequency(Smooth())(some_images(), [1]), ValueError, "one entry per image"),
        (lambda: OccludedFrequency(Smooth().train())(some_images()), ValueError, "training mode"),
        (lambda: OccludedFrequency(lambda x: x.sum())(some_images()), ValueError, r"must be \(B, classes\)"),
        (lambda: OccludedFrequency(strange)(some_images(2), 0), ValueError, "NaN or infinite for image 1"),
    ],
)
def test_bad_arguments_are_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# The method on trained models -----------------------------------------------------------------------------------------


class TinyNet(nn.Module):
    """Log-energies of learned filters: enough to tell textures apart at any place and phase."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(1, 8, 7, stride=2)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 2)

    def forward(self, pixels: Tensor) -> Tensor:
        energy = self.filters(pixels.mean(1, keepdim=True) - 0.5).square().mean((2, 3))
        return self.head(self.norm((energy + 1e-4).log()))


def textures(band: tuple[float, float], count: int, seed: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Generated backgrounds of all frequencies; class 1 also has a faint texture in a known band, nothing else."""
    scenes = generate(count, seed=seed, size=size).backgrounds
    rng = np.random.default_rng(seed)
    labels = torch.arange(count) % 2
    texture = torch.from_numpy(np.stack([band_texture(rng, band, size) for _ in range(count)])).float()
    return (scenes * 0.6 + 0.2 + 0.2 * (labels[:, None, None] * texture)[:, None]).clamp(0, 1), labels


def trained_on(band: tuple[float, float]) -> tuple[nn.Module, Tensor, Tensor]:
    images, labels = textures(band, 192, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TinyNet()
    optimiser = torch.optim.Adam(model.parameters(), 0.03)
    generator = torch.Generator().manual_seed(0)
    for _ in range(90):
        rows = torch.randint(0, len(images), (48,), generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimiser.step()
    return model.eval(), *textures(band, 48, seed=1)


@pytest.mark.parametrize("band", [*BANDS.values(), (27.0, 31.0)])
def test_a_trained_classifier_drops_most_in_the_only_band_that_carries_the_class(band: tuple[float, float]) -> None:
    """Of the images with the texture the largest drop is in its band; its edges are known."""
    model, images, labels = trained_on(band)
    assert float((model(images).argmax(1) == labels).float().mean()) > 0.9
    inner, outer = band
    bands = sorted({0.5 * inner, inner - 0.5, outer + 0.5, outer + 8.0})
    carriers = images[labels == 1]
    # Edges of one's own around the band ...
    cut = bands_between(64, 64, bands)
    known = bands.index(inner - 0.5) + 1
    with torch.no_grad():
        whole = model(carriers).softmax(1)[:, 1]
        drops = torch.stack([whole - model(carriers - cut.project(carriers, k)).softmax(1)[:, 1] for k in range(5)], 1)
    assert int(drops.mean(0).argmax()) == known
    # ... and the method's own rings: the largest drop is in one that meets the band.
    found = OccludedFrequency(model, 9)(carriers, 1)
    best = int(found.drops.mean(0).argmax())
    assert float(found.edges[0, best]) < outer
    assert float(found.edges[0, best + 1]) > inner
    beside = [k for k in range(9) if found.edges[0, k] >= outer or found.edges[0, k + 1] <= inner]
    assert float(found.drops.mean(0)[beside].max()) < 0.3 * float(found.drops.mean(0)[best])


# Over files -----------------------------------------------------------------------------------------------------------


class BandReader(nn.Module):
    """Log-energy of one band against a constant: what class 1 means is known."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, pixels: Tensor) -> Tensor:
        energy = low_pass(pixels - pixels.mean((2, 3), keepdim=True), self.cutoff).square().mean((1, 2, 3))
        return torch.stack([torch.zeros_like(energy), 100 * energy], 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for k, image in enumerate(generate(5, seed=3, size=64).images):
        pixels = (image.permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(images / f"{k}.png")
    (images / "2.png").write_bytes(b"not an image")
    return images


def reader(cutoff: float = 4.0) -> Classifier:
    return Classifier(BandReader(cutoff), name="band reader", mean=0.0, std=1.0, input_size=(64, 64)).eval()


def test_files_give_a_curve_each_and_a_mean_and_a_bad_one_costs_itself(folder: Path, tmp_path: Path) -> None:
    classifier = reader()
    paths = sorted(folder.iterdir())
    done: list[int] = []
    study = occlude_files(
        classifier, OccludedFrequency(classifier, 6, score="logit"), paths, tmp_path / "out", targets=[1] * 5,
        batch_size=2, on_images=done.append,
    )  # fmt: skip
    assert [failure.path.name for failure in study.failures] == ["2.png"]
    assert [path.name for path in study.paths] == ["0.png", "1.png", "3.png", "4.png"]
    assert sum(done) == 4
    written = json.loads((tmp_path / "out" / "occluded_frequency.json").read_text())
    single = OccludedFrequency(classifier, 6, score="logit")
    for entry, path in zip(written["images"], study.paths, strict=True):
        found = single(classifier.transform(Image.open(path))[None], 1)
        assert entry["drops"] == pytest.approx(found.drops[0].tolist(), abs=1e-4)
        assert entry["score"] == pytest.approx(float(found.base), rel=1e-4)
    drops = torch.tensor([entry["drops"] for entry in written["images"]])
    assert written["summary"]["mean_drop"] == pytest.approx(drops.mean(0).tolist(), abs=1e-6)
    assert drops[:, 0].min() > 0
    assert drops[:, 1:].abs().max() < 1e-4  # the reader reads below radius 4, and the first band reaches 7.5
    lower, upper = written["summary"]["lower"], written["summary"]["upper"]
    assert lower[0] < drops[:, 0].mean() < upper[0]
    assert "bootstrap" in written["summary"]["interval"]
    assert written["failures"][0]["file"] == "2.png"
    picture = Image.open(tmp_path / "out" / "occluded_frequency.png")
    assert picture.size == (768, 504)


def test_the_bootstrap_interval_is_that_of_the_mean() -> None:
    """For normal values its half-width is 1.96 s / sqrt(n), and it covers the true mean as often as it says."""
    values = noise(400, 2)
    found = bootstrap_interval(values)
    half = (found[1] - found[0]) / 2
    torch.testing.assert_close(half, 1.96 * values.std(0) / 20, rtol=0.06, atol=0)
    torch.testing.assert_close(bootstrap_interval(values), found, rtol=0, atol=0)
    hits = 0
    for k in range(100):
        low, high = bootstrap_interval(noise(40, 1, seed=k), 0.9)
        hits += int(low < 0 < high)
    assert 80 <= hits <= 97
    assert bootstrap_interval(values[:1]) is None
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval(values, 1.0)


def test_students_interval_is_scipys_for_any_number_of_rows() -> None:
    stats = pytest.importorskip("scipy.stats")
    for count in (2, 3, 4, 5, 10, 31, 200):
        values = noise(count, 3, seed=count).double()
        for confidence in (0.1, 0.5, 0.95, 0.999):
            expected = stats.t.interval(confidence, count - 1, values.mean(0), stats.sem(values))
            torch.testing.assert_close(student_interval(values, confidence), torch.tensor(np.stack(expected)))
    assert student_interval(values[:1]) is None
    for bad in (1.0, 0.0):
        with pytest.raises(ValueError, match="confidence"):
            student_interval(values, bad)
    with pytest.raises(ValueError, match="finite"):
        student_interval(values * math.nan)


def test_the_figure_shows_each_band_at_its_radius() -> None:
    edges = torch.tensor([0.0, 2.0, 5.0, 9.0])
    values = torch.tensor([0.4, 0.1, -0.05])
    interval = torch.stack([values - 0.1, values + 0.1])
    figure = bands_figure({"a": BandCurve(edges, values, interval), "b": BandCurve(edges, values / 2)}, title="t")
    axes = next(axes for axes in figure.axes if axes.get_label() == "bands")
    steps = [patch for patch in axes.patches if not patch.get_fill()]
    assert steps[0].get_data().edges.tolist() == edges.tolist()
    assert steps[0].get_data().values.tolist() == pytest.approx(values.tolist())
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    numbered = bands_figure({"a": BandCurve(edges, values)}, by_number=True)
    labels = [text.get_text() for text in numbered.axes[0].get_xticklabels()]
    assert labels == ["2.0", "5.0", "9.0"]
    for bad in (BandCurve(edges, values[:2]), BandCurve(edges, values * math.nan), BandCurve(edges.flip(0), values)):
        with pytest.raises(ValueError, match="'a'"):
            bands_figure({"a": bad})
    with pytest.raises(ValueError, match="at least one curve"):
        bands_figure({})


def test_panels_have_each_their_curves_and_cut_off() -> None:
    edges, values = torch.tensor([0.0, 2.0, 5.0]), torch.tensor([0.4, 0.1])
    curve, half = (BandCurve(edges, v, torch.stack([v - 0.1, v + 0.2])) for v in (values, values / 2))
    words = {"title": "t", "over": "7 seeds", "ylabel": "drop"}
    figure = band_panels_figure({"one": {"a": curve}, "two": {"a": half}}, cutoffs={"one": 2, "two": 4}, **words)
    one, two = figure.axes
    assert (one.get_label(), two.get_label()) == ("one", "two")
    assert [text.get_text() for text in one.get_legend().get_texts()] == ["a", "cut-off 2"]
    assert [text.get_text() for text in two.get_legend().get_texts()] == ["a", "cut-off 4"]
    for axes, expected in ((one, curve), (two, half)):
        band, line = sorted(axes.patches, key=lambda patch: not patch.get_fill())
        assert line.get_data().values.tolist() == expected.values.tolist()
        assert torch.tensor(band.get_data().baseline).tolist() == pytest.approx(expected.interval[0].tolist())
        assert band.get_data().values.tolist() == pytest.approx(expected.interval[1].tolist())
    texts = [text.get_text() for text in figure.texts]
    assert "mean over 7 seeds, shaded: 95% interval of the mean" in texts
    assert {"t", "one", "two"} <= set(texts)
    for panels, said in (
        ({}, "at least one panel"),
        ({"one": {}}, "at least one curve"),
        ({"one": {"a": BandCurve(edges, edges)}}, "'a'"),
    ):
        with pytest.raises(ValueError, match=said):
            band_panels_figure(panels, cutoffs={"one": 2}, **words)


@pytest.mark.shared
def test_photographs_on_a_real_model(mobilenet, photographs) -> None:
    """Chunks do not matter, and a low-passed model does not miss what it never saw."""
    images, labels = photographs(2)
    found = OccludedFrequency(mobilenet, 4)(images, labels, internal_batch_size=3)
    again = OccludedFrequency(mobilenet, 4)(images, labels, internal_batch_size=8)
    torch.testing.assert_close(found.drops, again.drops, rtol=0, atol=1e-4)
    blurred = OccludedFrequency(lambda pixels: mobilenet(low_pass(pixels, 39)), 4)(images, labels)
    assert float(blurred.edges[0, 1]) > 39
    assert blurred.drops[:, 1:].abs().max() < 1e-4
