"""SimBA on models whose answer is known: its steps, its queries, its band and its orders."""

from __future__ import annotations

import math

import pytest
import scipy.fft
import torch
from torch import Tensor, nn

from fampe_fast.metrics.random_words import Stream, random_words
from fampe_fast.robustness import SimBA, SimBAConfig, disturbance
from fampe_fast.robustness.attack_bands import BandLimit

from ..models_for_tests import Smooth, asked, some_images

SIDE = 16
STEP = 0.1


def cosines(spectrum: Tensor) -> Tensor:
    """Pixels of orthonormal DCT-II coefficients, by scipy."""
    return torch.from_numpy(scipy.fft.idctn(spectrum.double().numpy(), axes=(-2, -1), norm="ortho"))


def radii(height: int, width: int) -> Tensor:
    rows, columns = torch.arange(height).double()[:, None] / height, torch.arange(width).double() / width
    return min(height, width) / 2 * (rows**2 + columns**2).sqrt()


def in_band(inner: float, outer: float, value: float = 1.0, height: int = SIDE, width: int = SIDE) -> Tensor:
    """The spectrum of one channel that is ``value`` in a band and 0 elsewhere."""
    found = radii(height, width)
    return torch.where((found > inner) & (found <= outer), value, 0.0)


def reader(spectrum: Tensor, margin: Tensor | float) -> nn.Module:
    """Class 0's logit is the margin and what the spectrum says of how an image differs from grey."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(cosines(spectrum).float())
            self.eval()

        def forward(self, pixels: Tensor) -> Tensor:
            score = ((pixels - 0.5) * self.weight).double().sum((1, 2, 3)) + margin
            return torch.stack([score, torch.zeros_like(score)], 1)

    return Reader()


GREY = torch.full((1, 3, SIDE, SIDE), 0.5)


# Known answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "tries"), [(-1.0, 1), (1.0, 2)], ids=["adding helps", "taking away helps"])
@pytest.mark.parametrize("margin", [0.05, 0.95, 2.45])
def test_the_queries_on_a_linear_model_are_counted_by_hand(weight: float, tries: int, margin: float) -> None:
    """Every cosine of the band counts alike: each step takes 0.1 off the margin, in one query or in two."""
    model = reader(in_band(-1, 3, weight).expand(3, -1, -1), margin)
    found = SimBA(model, "low", 3.0, SimBAConfig(step_size=STEP))(GREY, 0)
    steps = math.floor(margin / STEP) + 1
    assert found.queries.tolist() == [1 + tries * steps]
    assert int(model(found.images).argmax(1)) == 1
    change = found.images - GREY
    assert float(change.norm()) == pytest.approx(STEP * math.sqrt(steps), rel=1e-5)
    assert found.band_share.tolist() == pytest.approx([1], abs=1e-9)
    spectrum = scipy.fft.dctn(change[0].double().numpy(), axes=(-2, -1), norm="ortho")
    taken = torch.from_numpy(spectrum) * -weight
    assert int((taken > STEP / 2).sum()) == steps  # none twice, and none of the wrong sign
    torch.testing.assert_close(taken, torch.where(taken > STEP / 2, STEP, 0.0).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("band", "inner", "outer"), [("low", -1, 3), ("middle", 3, 6), ("high", 6, 99), ("all", -1, 99)]
)
def test_a_model_is_fooled_in_the_band_it_reads_alone(band: str, inner: float, outer: float) -> None:
    """And in all bands; elsewhere every cosine is tried, both ways, and none changes the score."""
    config = SimBAConfig(step_size=STEP, max_queries=4000)
    model = reader(in_band(inner, outer, -1).expand(3, -1, -1), 0.55)
    for own in ("low", "middle", "high", "all"):
        found = SimBA(model, own, 3.0, config, upper_cutoff=6.0)(GREY, 0)
        fooled = int(model(found.images).argmax(1)) == 1
        assert fooled == (own == band or "all" in (own, band))
        if not fooled:
            limits = {"low": (-1, 3), "middle": (3, 6), "high": (6, 99)}[own]
            assert int(found.queries) <= 1 + 2 * 3 * int(in_band(*limits).sum())
            assert float(found.band_share) > 1 - 1e-6


def test_a_middle_band_between_two_radii_is_disturbed_where_it_is_said() -> None:
    found = SimBA(Smooth(), "middle", 4.0, SimBAConfig(step_size=0.5, max_queries=100), upper_cutoff=8.0)(
        some_images(2, height=32, width=32)
    )
    energy = disturbance(some_images(2, height=32, width=32), found.images, bands=6).share()
    centres = (torch.arange(6) + 0.5) * math.sqrt(2) * 16 / 6
    inside = energy[:, (centres > 4) & (centres <= 8)].sum(1)
    assert (inside > 0.5).all()  # a cosine is no Fourier wave: some of it lies beside
    assert (found.band_share > 0.999).all()


def by_hand(model: nn.Module, image: Tensor, target: int, image_id: int, config: SimBAConfig) -> tuple[Tensor, int]:
    """Algorithm 1 of the paper for one image and all cosines, with loops."""
    channels, height, width = image.shape
    count = channels * height * width
    place = torch.zeros(1, dtype=torch.long)
    order = random_words(Stream.COORDINATES, config.seed, torch.tensor([image_id]), place, count)[0].argsort(
        stable=True
    )

    def chance(pixels: Tensor) -> tuple[float, int]:
        with torch.no_grad():
            output = model(pixels[None].float()).double().softmax(1)[0]
        return float(output[target]), int(output.argmax())

    change, queries = torch.zeros_like(image, dtype=torch.float64), 1
    best, answer = chance(image)
    for number in order.tolist():
        if answer != target:
            break
        spectrum = torch.zeros(count, dtype=torch.float64)
        spectrum[number] = config.step_size
        wave = cosines(spectrum.view(channels, height, width))
        for sign in (1, -1):
            if queries == config.max_queries:
                return (image + change).clamp(0, 1), queries
            queries += 1
            tried = change + sign * wave
            value, told = chance((image + tried).clamp(0, 1))
            if value < best:
                best, answer, change = value, told, tried
                break
    return (image + change).clamp(0, 1), queries


@pytest.mark.parametrize("max_queries", [40, 400])
def test_every_image_takes_the_papers_steps(max_queries: int) -> None:
    model, images = Smooth(), some_images(3, height=12, width=10)
    targets = model(images).argmax(1)
    config = SimBAConfig(step_size=0.3, max_queries=max_queries, seed=7)
    found = SimBA(model, config=config)(images, targets, image_ids=[5, 900, 2])
    for k, image_id in enumerate([5, 900, 2]):
        expected, queries = by_hand(model, images[k], int(targets[k]), image_id, config)
        assert int(found.queries[k]) == queries
        torch.testing.assert_close(found.images[k], expected.float(), rtol=0, atol=1e-5)


def test_an_image_is_attacked_alike_alone_and_in_company() -> None:
    model = reader(torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), 0.9)
    images, ids = some_images(5, height=SIDE, width=SIDE), [3, 1, 4, 15, 9]
    attack = SimBA(model, "low", 4.0, SimBAConfig(step_size=STEP, max_queries=60))
    targets = model(images).argmax(1)
    together = attack(images, targets, image_ids=ids)
    assert len(set(together.queries.tolist())) > 1
    for chunk in (1, 2):
        again = attack(images, targets, image_ids=ids, internal_batch_size=chunk)
        assert torch.equal(again.images, together.images)
    for k in range(5):
        alone = attack(images[k : k + 1], targets[k : k + 1], image_ids=ids[k : k + 1])
        assert torch.equal(alone.images[0], together.images[k])
        assert torch.equal(alone.queries[0], together.queries[k])
    other = SimBA(model, "low", 4.0, SimBAConfig(step_size=STEP, max_queries=60, seed=1))(images, targets)
    assert not torch.equal(other.images, together.images)


# Queries --------------------------------------------------------------------------------------------------------------


def test_the_queries_that_are_counted_are_the_images_that_the_model_is_shown() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.shown, self.graphs = Smooth(), [], 0
            self.eval()

        def forward(self, pixels: Tensor) -> Tensor:
            self.shown.append(len(pixels))
            self.graphs += torch.is_grad_enabled()
            return self.inner(pixels)

    images = some_images(4)
    model = asked(Counting(), images)
    model.graphs = 0
    truth = model.inner(images).argmax(1)
    wrong = torch.tensor([truth[0], truth[1], truth[2], (truth[3] + 1) % 5])
    found = SimBA(model, "low", 5.0, SimBAConfig(max_queries=25))(images, wrong, internal_batch_size=3)
    assert sum(model.shown) == int(found.queries.sum())
    assert model.graphs == 0
    assert int(found.queries.max()) <= found.model_passes == 25
    assert int(found.queries[3]) == 1  # never taken for its class: nothing to do
    assert torch.equal(found.images[3], images[3])


def test_a_model_that_computes_outside_torch_is_attacked_as_the_same_model_inside() -> None:
    inside, images = Smooth(), some_images(2)

    class Outside(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            with torch.no_grad():
                return torch.from_numpy(inside(pixels).numpy())

    config = SimBAConfig(max_queries=30)
    expected, found = (SimBA(model.eval(), config=config)(images) for model in (inside, Outside()))
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.queries, expected.queries)


def test_a_sure_model_is_attacked_all_the_same() -> None:
    """Its probability of the class rounds to 1 before and after; its log-odds do not."""

    class Sure(nn.Module):
        output = "sigmoid"

        def forward(self, pixels: Tensor) -> Tensor:
            return 60 - 2 * pixels.sum((1, 2, 3))[:, None] / math.sqrt(3 * SIDE * SIDE)

    model = Sure().eval()
    assert float(torch.sigmoid(model(GREY))) == 1
    found = SimBA(model, "low", 0.0, SimBAConfig(step_size=STEP))(GREY, 0)
    assert found.queries.tolist() == [1 + 3]  # the mean of three channels, and no more
    assert (found.images > GREY).all()


def test_a_model_in_probabilities_is_attacked_as_the_same_one_in_logits() -> None:
    class Chances(nn.Module):
        output = "probabilities"

        def forward(self, pixels: Tensor) -> Tensor:
            return Smooth()(pixels).softmax(1)

    config = SimBAConfig(max_queries=40)
    expected, found = (SimBA(model.eval(), config=config)(some_images()) for model in (Smooth(), Chances()))
    assert torch.equal(found.queries, expected.queries)
    torch.testing.assert_close(found.images, expected.images)


def test_no_image_is_no_work() -> None:
    found = SimBA(Smooth())(some_images()[:0], 1)
    assert found.images.shape == (0, 3, 24, 24)
    assert found.queries.shape == (0,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SimBA(3), TypeError, "got int"),
        (lambda: SimBA(Smooth(), "none"), ValueError, "low, middle, high, all; got 'none'"),
        (lambda: SimBA(Smooth(), "low", -1), ValueError, "not negative, got -1"),
        (
            lambda: SimBA(Smooth(), "middle"),
            ValueError,
            "middle band is empty: give an upper_cutoff above the cut-off of 30",
        ),
        (lambda: SimBA(Smooth(), "low", 9, upper_cutoff=8), ValueError, "at least the cut-off of 9, got 8"),
        (lambda: SimBA(Smooth(), config={"seed": 1}), TypeError, "SimBAConfig, got dict"),
        (lambda: SimBAConfig(step_size=0), ValueError, "step_size must be finite and above 0, got 0"),
        (lambda: SimBAConfig(max_queries=0), ValueError, "max_queries must be at least 1, got 0"),
        (lambda: SimBAConfig(max_queries=2.5), TypeError, "max_queries"),
        (lambda: SimBAConfig(bounds=(1, 0)), ValueError, "bounds"),
        (lambda: SimBA(Smooth(), "high", 99.0)(some_images()), ValueError, "high band is empty for 24 x 24 pixels"),
        (
            lambda: SimBA(Smooth(), "middle", 3.01, upper_cutoff=3.02)(some_images()),
            ValueError,
            "middle band is empty for 24 x 24 pixels: none .* above 3.01 and up to 3.02",
        ),
        (
            lambda: SimBA(Smooth())(some_images(height=1, width=1)),
            ValueError,
            "at least 8 pixels high and wide, got 1 x 1",
        ),
        (lambda: SimBA(Smooth())(some_images() + 1), ValueError, r"must lie in \[0, 1\]"),
        (lambda: SimBA(Smooth())(some_images(), 9), ValueError, "5 classes"),
        (
            lambda: SimBA(nn.Sequential(Smooth(), nn.Softmax(1)).eval())(some_images()),
            ValueError,
            "output='probabilities'",
        ),
        (lambda: SimBA(lambda x: torch.full((len(x), 2), math.nan))(some_images(), 0), ValueError, "NaN for image 0"),
    ],
)
def test_bad_arguments_are_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# Bands ----------------------------------------------------------------------------------------------------------------


def test_three_bands_share_out_a_perturbation() -> None:
    noise = torch.randn(2, 3, 20, 27, dtype=torch.float64)
    parts = [BandLimit(band, 3.0, 7.5).project(noise) for band in ("low", "middle", "high")]
    torch.testing.assert_close(sum(parts), noise)
    for k, first in enumerate(parts):
        for second in parts[k + 1 :]:
            assert abs(float((first * second).sum())) < 1e-9
    assert torch.equal(BandLimit("all").project(noise), noise)
    widths = torch.tensor([0.0, 3.0, 3.1, 7.5, 7.6]).double() ** 2
    assert BandLimit("middle", 3.0, 7.5).holds(widths).tolist() == [False, False, True, True, False]
