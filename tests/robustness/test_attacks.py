"""Band-limited attacks on models whose answer is known, their transfer and analysis; the defence experiment."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fampe_fast import AttEXploreConfig, FAMPEConfig
from fampe_fast.engine.config import PathConfig
from fampe_fast.errors import FampeWarning
from fampe_fast.frequency.low_pass import low_pass
from fampe_fast.robustness import AdversarialImages, BandLimitedAttack, compare_reliance, disturbance, transfer_rates
from fampe_fast.robustness.occluded_frequency import OccludedFrequency
from fampe_fast.runs.defence_settings import DefenceSettings
from fampe_fast.runs.defend import defend

from ..models_for_tests import Smooth, TwoClassLinear, some_images

PLAIN = {"samples": 1, "smoothing": False, "input_diversity": False}
ONE_STEP = PathConfig(steps=1, eps=0.1, **PLAIN)


def wave(down: int, across: int, size: int = 24, phase: float = 0.3) -> Tensor:
    rows = torch.arange(size)[:, None] / size
    columns = torch.arange(size) / size
    return torch.cos(2 * math.pi * (down * rows + across * columns) + phase)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class LowReader(nn.Module):
    """Sees nothing above a radius."""

    def __init__(self, cutoff: float, model: nn.Module | None = None) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.inner = Smooth() if model is None else model
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.inner(low_pass(pixels, self.cutoff))


# Known answers --------------------------------------------------------------------------------------------------------


def test_without_a_band_the_attack_on_a_linear_model_is_the_sign_of_its_weights() -> None:
    """Class 0's logit is <w, x>: raising its loss moves every pixel by eps against the weight's sign."""
    weight, images = 0.01 * noise(3, 24, 24), some_images()
    for steps in (1, 4):
        found = BandLimitedAttack(TwoClassLinear(weight), config=PathConfig(steps=steps, eps=0.1, **PLAIN))(images, 0)
        torch.testing.assert_close(found.images, images - 0.1 * weight.sign())
        assert found.band_share.tolist() == [1, 1]
        assert found.model_passes == steps
    other = BandLimitedAttack(TwoClassLinear(weight), config=ONE_STEP)(images, 1)
    torch.testing.assert_close(other.images, images + 0.1 * weight.sign())


@pytest.mark.parametrize("band", ["low", "high"])
def test_in_a_band_it_is_the_sign_of_the_band_s_gradient_brought_into_the_band(band: str) -> None:
    """One step, one projection, by the written formula; the sign of the whole gradient would give another."""
    weight, images = 0.01 * noise(3, 24, 24, seed=1), some_images()
    attack = BandLimitedAttack(TwoClassLinear(weight), band, 5.0, ONE_STEP, step_projections=1, final_projections=1)

    def part(values: Tensor) -> Tensor:
        return low_pass(values, 5.0) if band == "low" else values - low_pass(values, 5.0)

    moved = part(-0.1 * part(weight).sign()).clamp(-0.1, 0.1)
    expected = images + part(moved).clamp(-0.1, 0.1)
    found = attack(images, 0)
    torch.testing.assert_close(found.images, expected, rtol=0, atol=1e-6)
    ignorant = images + part(part(-0.1 * weight.sign()).clamp(-0.1, 0.1)).clamp(-0.1, 0.1)
    score = TwoClassLinear(weight)
    assert (score(found.images)[:, 0] < score(ignorant)[:, 0]).all()


def test_a_wave_of_the_band_is_met_by_the_wave_itself() -> None:
    """Weights cos(k x): in a band without its harmonics the sign, a square wave, becomes -eps cos(k x)."""
    images = torch.full((1, 3, 24, 24), 0.5)
    weight = wave(0, 2, phase=math.pi / 12).expand(3, -1, -1)  # its sign is as symmetric on the pixels as itself
    found = BandLimitedAttack(TwoClassLinear(weight), "low", 3.0, ONE_STEP, final_projections=400)(images, 0)
    assert float(found.band_share) > 1 - 1e-6
    change = found.images - images
    torch.testing.assert_close(change / change.abs().max(), -(weight / weight.abs().max())[None], rtol=0, atol=0.01)
    assert 0.095 < float(change.abs().max()) <= 0.1 + 1e-6


def test_a_checkerboard_is_already_in_the_high_band() -> None:
    """The wave of highest frequency is its own sign: the projection changes nothing."""
    weight = wave(12, 12, phase=0.0).expand(3, -1, -1)
    images = some_images(1)
    found = BandLimitedAttack(TwoClassLinear(weight), "high", 10.0, ONE_STEP)(images, 0)
    torch.testing.assert_close(found.images, images - 0.1 * weight, rtol=0, atol=1e-6)


CONFIGS = [
    PathConfig(steps=3, eps=16 / 255, **PLAIN),
    FAMPEConfig(steps=2, samples=3, eps=16 / 255),
    AttEXploreConfig(steps=2, samples=3, eps=16 / 255),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "fampe", "attexplore"])
@pytest.mark.parametrize("band", ["low", "high", "all"])
def test_ball_and_bounds_hold_to_the_last_bit_and_the_band_nearly(config: PathConfig, band: str) -> None:
    """Also where many pixels lie on a bound: a third of them black or white here."""
    images = (some_images(3, height=20, width=27) * 3 - 1).clamp(0, 1)
    assert float(((images == 0) | (images == 1)).float().mean()) > 0.2
    found = BandLimitedAttack(Smooth(), band, 4.0, config)(images, [0, 1, 2])
    assert float(found.images.min()) >= 0
    assert float(found.images.max()) <= 1
    # Half the distance of neighbouring floats below 1 is what a rounded sum may add.
    assert float((found.images.double() - images.double()).abs().max()) <= config.eps + 2**-25
    assert (found.band_share > 0.98).all()
    change = (found.images - images).double()
    inside = low_pass(change, 4.0) if band == "low" else change - low_pass(change, 4.0)
    inside = change if band == "all" else inside
    share = inside.square().sum((1, 2, 3)) / change.square().sum((1, 2, 3))
    torch.testing.assert_close(found.band_share, share)
    assert found.model_passes == config.steps * config.samples


@pytest.mark.parametrize("config", CONFIGS, ids=["plain", "fampe", "attexplore"])
@pytest.mark.parametrize("band", ["low", "high", "all"])
def test_an_attack_raises_the_loss_and_gives_the_same_for_any_chunks(config: PathConfig, band: str) -> None:
    model, images = Smooth(), some_images(3)
    attack = BandLimitedAttack(model, band, 3.0, config)
    found = attack(images, 2, image_ids=[4, 5, 6])
    assert (model(found.images).softmax(1)[:, 2] < model(images).softmax(1)[:, 2]).all()
    again = attack(images, 2, image_ids=[4, 5, 6], internal_batch_size=1)
    assert float((again.images - found.images).abs().mean()) < 0.02 * config.eps
    assert torch.equal(attack(images, image_ids=[4, 5, 6]).target, model(images).argmax(1))
    assert attack(images[:0], 1).images.shape == (0, 3, 24, 24)


def test_a_model_that_reads_the_low_band_is_not_fooled_in_the_high_one() -> None:
    """The class is the sign of a low wave's amplitude: a high-band attack leaves all answers, the others turn all."""
    sign = torch.tensor([1.0, -1.0]).repeat(4)
    images = 0.4 + 0.2 * some_images(8) + 0.05 * sign[:, None, None, None] * wave(1, 2)
    model = LowReader(4.0, TwoClassLinear(wave(1, 2).expand(3, -1, -1) / 10))
    truth = (sign < 0).long()
    assert torch.equal(model(images).argmax(1), truth)
    config = PathConfig(steps=5, eps=0.2, **PLAIN)
    for band, fooled in (("high", 0), ("low", 8), ("all", 8)):
        found = BandLimitedAttack(model, band, 5.0, config)(images, truth)
        with torch.no_grad():
            before, after = model(images), model(found.images)
        assert int((after.argmax(1) != truth).sum()) == fooled
        if band == "high":
            assert float((after - before).abs().max()) < 0.01 * float(before.abs().max())


def test_a_model_without_a_gradient_warns_and_its_images_stay() -> None:
    def constant(pixels: Tensor) -> Tensor:
        return torch.zeros(len(pixels), 3) + 0 * pixels.sum((1, 2, 3))[:, None]

    images = some_images(1)
    with pytest.warns(FampeWarning, match="zero at every step"):
        found = BandLimitedAttack(constant, "low", 3.0, ONE_STEP)(images, 0)
    assert torch.equal(found.images, images)
    assert found.band_share.tolist() == [1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: BandLimitedAttack(3), TypeError, "got int"),
        (lambda: BandLimitedAttack(Smooth(), "none"), ValueError, "low, middle, high, all; got 'none'"),
        (lambda: BandLimitedAttack(Smooth(), "middle"), ValueError, "middle band is empty: give an upper_cutoff"),
        (lambda: BandLimitedAttack(Smooth(), "low", -1), ValueError, "not negative, got -1"),
        (lambda: BandLimitedAttack(Smooth(), config={"eps": 1}), TypeError, "PathConfig, got dict"),
        (lambda: BandLimitedAttack(Smooth(), final_projections=0), ValueError, "final_projections must be at least 1"),
        (lambda: BandLimitedAttack(Smooth())(some_images() + 1), ValueError, r"must lie in \[0, 1\]"),
        (lambda: BandLimitedAttack(Smooth())(some_images(), 9), ValueError, "5 classes"),
        (lambda: BandLimitedAttack(Smooth().train())(some_images()), ValueError, "training mode"),
        (lambda: transfer_rates({}, some_images(), [0, 1], BandLimitedAttack), ValueError, "at least one model"),
        (lambda: transfer_rates({"a": Smooth()}, some_images(), [0], BandLimitedAttack), ValueError, "2 images"),
        (
            lambda: transfer_rates({"a": Smooth()}, some_images(), [0, 1], lambda model: lambda x, y: x),
            TypeError,
            "AdversarialImages, got Tensor",
        ),
        (lambda: compare_reliance({}, some_images()), ValueError, "at least one model"),
        (lambda: disturbance(some_images(), some_images(1)), ValueError, "of one shape"),
    ],
)
def test_bad_arguments_are_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# Transfer -------------------------------------------------------------------------------------------------------------


def test_transfer_rates_of_models_whose_answers_are_written_down() -> None:
    """Images are told apart by pixel 0; an "attack" on a model writes that model's number into pixel 1."""
    images = torch.zeros(6, 3, 8, 8)
    images[:, 0, 0, 0] = torch.arange(6) / 10
    truth = torch.tensor([0, 1, 0, 1, 0, 1])

    class Written(nn.Module):
        def __init__(self, right: list[int], fooled_by: dict[int, list[int]]) -> None:
            super().__init__()
            self.right, self.fooled_by = right, fooled_by
            self.eval()

        def forward(self, pixels: Tensor) -> Tensor:
            answers = []
            for image in pixels:
                number, attacker = round(float(image[0, 0, 0]) * 10), round(float(image[0, 0, 1]) * 10)
                correct = number in self.right and number not in self.fooled_by.get(attacker, [])
                answers.append(int(truth[number]) if correct else 1 - int(truth[number]))
            return nn.functional.one_hot(torch.tensor(answers), 2).float()

    first = Written([0, 1, 2, 3], {1: [0, 1, 2, 3], 2: [3, 4, 5]})
    second = Written([2, 3, 4, 5], {1: [0, 1, 2], 2: [2, 3, 4, 5]})
    none_right = Written([], {})
    marks = {id(first): 1, id(second): 2, id(none_right): 3}

    def factory(model: nn.Module):
        def attack(pixels: Tensor, targets: Tensor) -> AdversarialImages:
            assert torch.equal(targets, truth)
            changed = pixels.clone()
            changed[:, 0, 0, 1] = marks[id(model)] / 10
            return AdversarialImages(changed, targets, torch.ones(len(pixels)), 7)

        return attack

    models = {"first": first, "second": second, "none": none_right}
    found = transfer_rates(models, images, truth, factory, internal_batch_size=4)
    assert found.model_passes == 7
    assert [found.accuracy[name].mean for name in models] == pytest.approx([4 / 6, 4 / 6, 0])
    assert found.rates["first"]["first"].mean == 1
    assert found.rates["first"]["second"].mean == 0.25  # of 2, 3, 4, 5 only 2
    assert found.rates["second"]["first"].mean == 0.25  # of 0, 1, 2, 3 only 3
    assert found.rates["second"]["first"].standard_error == pytest.approx(math.sqrt(0.25 * 0.75 / 3))
    assert found.rates["second"]["first"].n == 4
    assert found.rates["second"]["second"].mean == 1
    assert found.rates["none"]["first"].mean == 0
    assert found.rates["first"]["none"] is None
    assert found.matrix()[:2, :2].tolist() == [[1, 0.25], [0.25, 1]]
    assert found.matrix()[:, 2].isnan().all()


def test_an_attack_on_the_high_band_does_not_reach_a_model_behind_a_low_pass() -> None:
    inner, images = Smooth(), some_images(6)
    models = {"whole": inner, "low": LowReader(4.0, inner)}
    truth = inner(images).argmax(1)
    config = PathConfig(steps=5, eps=0.1, **PLAIN)
    found = transfer_rates(models, images, truth, lambda model: BandLimitedAttack(model, "high", 5.0, config))
    right = models["low"](images).argmax(1) == truth
    assert found.rates["whole"]["low"].n == int(right.sum()) > 0
    assert found.rates["whole"]["low"].mean == 0


# Analysis -------------------------------------------------------------------------------------------------------------


def test_disturbance_is_where_the_perturbation_is() -> None:
    """A wave is in its ring alone; energies sum to squared norms (Parseval)."""
    images = some_images(2)
    perturbed = images + torch.stack([0.1 * wave(0, 2), 0.02 * wave(7, 7)])[:, None]
    found = disturbance(images, perturbed, bands=5)
    share = found.share()
    for row, radius in enumerate((2, 7 * math.sqrt(2))):
        ring = int((found.edges[1:] < radius).sum())
        assert float(share[row, ring]) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(
        found.perturbation.sum(1), (perturbed - images).double().square().sum((1, 2, 3)), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(found.image.sum(1), images.double().square().sum((1, 2, 3)))
    assert disturbance(images, images).share().eq(0).all()


def test_attacks_disturb_their_band() -> None:
    images = some_images(2)
    for band, inside in (("low", slice(0, 3)), ("high", slice(3, 9))):
        config = PathConfig(steps=3, eps=0.05, **PLAIN)
        edge = 12 * math.sqrt(2) / 9 * 3
        found = BandLimitedAttack(Smooth(), band, edge, config)(images, 0)
        assert (disturbance(images, found.images, bands=9).share()[:, inside].sum(1) > 0.99).all()


def test_reliance_is_occluded_frequency_side_by_side() -> None:
    images, models = some_images(2), {"whole": Smooth(), "low": LowReader(4.0)}
    found = compare_reliance(models, images, 1, bands=4, score="logit")
    for name, model in models.items():
        torch.testing.assert_close(found[name].drops, OccludedFrequency(model, 4, score="logit")(images, 1).drops)
    assert float(found["low"].edges[0, 1]) > 4
    assert found["low"].drops[:, 1:].abs().max() < 1e-5
    assert found["whole"].drops[:, 1:].abs().max() > 1e-3


# The defence ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_defence_experiment_is_reproducible_and_its_figures_fit_together(tmp_path: Path) -> None:
    settings = DefenceSettings(train_images=32, test_images=12, train_steps=3, batch_size=8, attack_steps=2)
    stages: list[str] = []
    result = defend(tmp_path / "a", settings, on_stage=stages.append)
    assert (tmp_path / "a" / "reliance.png").stat().st_size > 5000
    defend(tmp_path / "b", settings)
    text = (tmp_path / "a" / "defence.json").read_text()
    assert text == (tmp_path / "b" / "defence.json").read_text()
    written = json.loads(text)
    assert list(written["accuracy"]) == ["plain", "low_pass", "band_mix", "adversarial"] == list(result.accuracy)
    for name, row in written["accuracy"].items():
        assert list(row) == ["clean", "low", "high", "all"]
        for attack in ("low", "high", "all"):
            own = written["transfer"][attack][name][name]
            if own is not None:
                assert row[attack]["mean"] == pytest.approx(row["clean"]["mean"] * (1 - own["mean"]))
            assert written["band_share"][name][attack] > 0.98
        drops = written["occluded_frequency"]["mean_drop"][name]
        assert drops == pytest.approx(result.drops[name].mean(0).tolist())
    assert "training, low_pass" in stages
    wrong = {"train_steps": 0, "adversarial_steps": 0, "cutoff": 0, "eps": -1, "probability": 2, "contrast": 0.5}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=name):
            DefenceSettings(**{name: value})


@pytest.mark.slow
@pytest.mark.shared
def test_a_real_model_is_fooled_in_either_band(mobilenet, photographs) -> None:
    images, labels = photographs(2)
    for band in ("low", "high"):
        config = PathConfig(steps=4, eps=8 / 255, **PLAIN)
        found = BandLimitedAttack(mobilenet, band, 30.0, config)(images, labels)
        with torch.no_grad():
            before, after = mobilenet(images).softmax(1), mobilenet(found.images).softmax(1)
        rows = torch.arange(2)
        assert (after[rows, labels] < 0.2 * before[rows, labels]).all()
        assert (found.band_share > 0.999).all()
        assert float((found.images.double() - images.double()).abs().max()) <= 8 / 255 + 2**-25
