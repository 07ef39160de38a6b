"""``fampe-fast attack`` and ``fampe-fast tune``, and the pipelines below them, on models whose answer is known."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fampe_fast import TunedCutoff, create_method
from fampe_fast.cli import DONE, INTERRUPTED, SOME_FAILED, UNUSABLE, main
from fampe_fast.cli.model_and_methods import other_classifier_of
from fampe_fast.cli.parser import parse
from fampe_fast.frequency import filtered_map, low_pass
from fampe_fast.images.generated import generate
from fampe_fast.metrics import Estimate, insertion_deletion
from fampe_fast.models import Classifier
from fampe_fast.robustness import BandLimitedAttack, disturbance
from fampe_fast.runs.attack import attack_files, nearest_levels
from fampe_fast.runs.attack_results import AttackSettings, attack_config
from fampe_fast.runs.tune import models_figure, tune_files

from ..models_for_tests import Smooth, TwoClassLinear

SIZE = 24
EPS = 0.2


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    drawn = generate(3, seed=5)
    (tmp_path / "labels.json").write_text(json.dumps({f"object_{k}.png": int(drawn.labels[k]) for k in range(3)}))
    write_images(tmp_path / "photos", drawn.images, "object")
    return tmp_path / "photos"


def write_images(folder: Path, images: Tensor, name: str = "image") -> list[Path]:
    folder.mkdir(exist_ok=True)
    for k, image in enumerate(images):
        levels = (255 * image).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(folder / f"{name}_{k}.png")
    return sorted(folder.glob("*.png"))


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def wave(down: int, across: int) -> Tensor:
    rows, columns = torch.arange(SIZE)[:, None] / SIZE, torch.arange(SIZE) / SIZE
    return torch.cos(2 * math.pi * (down * rows + across * columns) + 0.3)


class Reader(nn.Module):
    """The class is the sign of one wave's amplitude; nothing on the other side of radius 5 is seen."""

    def __init__(self, down: int, across: int, low: bool) -> None:
        super().__init__()
        self.low, self.inner = low, TwoClassLinear(wave(down, across).expand(3, -1, -1) / 10)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        low = low_pass(pixels, 5.0)
        return self.inner(low if self.low else pixels - low)


def classifier_of(model: nn.Module, name: str) -> Classifier:
    return Classifier(model, name=name, input_size=SIZE, transform=to_tensor, num_classes=2).eval()


def low_reader() -> Classifier:
    return classifier_of(Reader(1, 2, low=True), "low reader")


def high_reader() -> Classifier:
    return classifier_of(Reader(7, 6, low=False), "high reader")


def two_waves(folder: Path, count: int = 6) -> tuple[list[Path], list[int]]:
    """Images with a coarse and a fine wave of one sign, which is the class; with some noise."""
    sign = torch.tensor([1.0, -1.0]).repeat(count)[:count]
    noise = 0.2 * torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    images = 0.4 + noise + 0.05 * sign[:, None, None, None] * (wave(1, 2) + wave(7, 6))
    return write_images(folder, images), (sign < 0).long().tolist()


ORACLE = AttackSettings(cutoff=5.0, config=attack_config(steps=5, eps=EPS), rings=4)


# Attacks --------------------------------------------------------------------------------------------------------------


def test_a_model_that_reads_one_band_is_fooled_in_that_band_alone(tmp_path: Path) -> None:
    """And what fools it does not carry over to a model that reads the other band."""
    paths, truth = two_waves(tmp_path / "images")
    out = tmp_path / "out"
    study = attack_files(low_reader(), paths, out, ORACLE, targets=truth, transfer_to=high_reader())
    low, high = study.models
    assert (low, high) == ("low reader", "high reader")
    assert study.accuracy(low).mean == study.accuracy(high).mean == 1
    expected = {"low": {low: (1, 0)}, "high": {high: (0, 1)}, "all": {low: (1, 0), high: (0, 1)}}
    for band, sources in expected.items():
        for source, shares in sources.items():
            assert [study.fooled(band, source, model).mean for model in (low, high)] == list(shares)
    assert study.fooled("high", low, low).mean == 0  # the one band it does not see
    assert study.confidence("low").mean < 0.5 < study.confidence("high").mean
    assert study.confidence("high").mean == pytest.approx(study.confidence(None).mean, abs=1e-3)

    written = json.loads((out / "attack.json").read_text())
    assert written["settings"]["models"] == [low, high]
    assert written["summary"]["transfer"]["all"][high] == {
        low: {"mean": 0, "standard_error": 0, "n": 6},
        high: {"mean": 1, "standard_error": 0, "n": 6},
    }
    assert written["summary"]["bands"]["low"]["fooled"]["n"] == 6
    for band, inside in (("low", 0), ("high", 1)):  # the rings' width is 4.2: the cut-off lies in the second
        shares = written["summary"]["bands"][band]["disturbance"]["mean_share"]
        assert sum(shares) == pytest.approx(1)
        assert (sum(shares[:2]) > 0.98) == (inside == 0)
    with Image.open(out / "attack.png") as picture:
        assert min(picture.size) > 300


def test_the_figures_are_those_of_the_library(tmp_path: Path) -> None:
    """Image by image, against the attack, the disturbance and the model called by hand; labels half wrong."""
    paths, _ = two_waves(tmp_path / "images", 5)
    classifier = classifier_of(Smooth(classes=2), "smooth")
    images = torch.stack([to_tensor(Image.open(path)) for path in paths])
    before = classifier(images).softmax(1).detach()
    classes = (before.argmax(1) + torch.tensor([0, 1, 0, 1, 0])) % 2
    labels, right = classes.tolist(), before.argmax(1) == classes
    settings = AttackSettings(("high",), 5.0, attack_config("fampe", steps=2, samples=3, eps=0.05, seed=9), 6)
    study = attack_files(classifier, paths, tmp_path / "out", settings, targets=labels, batch_size=2)
    attack = BandLimitedAttack(classifier, "high", 5.0, settings.config)
    for k, record in enumerate(study.records):
        found = attack(images[k : k + 1], classes[k : k + 1], image_ids=[k])
        after = classifier(found.images).softmax(1)[0]
        made = record.attacks["high"]["smooth"]
        assert record.before["smooth"].right == bool(right[k])
        assert record.before["smooth"].probability == pytest.approx(float(before[k, labels[k]]), abs=1e-5)
        assert made.answers["smooth"].right == (int(after.argmax()) == labels[k])
        assert made.answers["smooth"].probability == pytest.approx(float(after[labels[k]]), abs=1e-3)
        assert made.band_share == pytest.approx(float(found.band_share), abs=1e-3)
        energy = disturbance(images[k : k + 1], found.images, bands=6).perturbation[0]
        assert made.energy == pytest.approx(energy.tolist(), rel=0.02, abs=1e-3 * float(energy.sum()))
    fooled = [not study.records[k].attacks["high"]["smooth"].answers["smooth"].right for k in (0, 2, 4)]
    assert study.fooled("high", "smooth", "smooth").mean == pytest.approx(np.mean(fooled))
    assert study.fooled("high", "smooth", "smooth").n == study.confidence(None).n == 3
    assert study.confidence(None).mean == pytest.approx(float(before[[0, 2, 4]].amax(1).mean()), abs=1e-5)
    assert study.accuracy("smooth").mean == pytest.approx(0.6)


def test_images_keep_their_random_numbers_in_any_batch(tmp_path: Path) -> None:
    paths, truth = two_waves(tmp_path / "images", 4)
    classifier = classifier_of(Smooth(classes=2), "smooth")

    def attacked(name: str, seed: int, **options: int) -> np.ndarray:
        config = attack_config("fampe", steps=3, samples=1, eps=0.1, sigma=0.5, rho=1.0, seed=seed)
        settings = AttackSettings(("all",), 5.0, config)
        out = tmp_path / name
        attack_files(classifier, paths, out, settings, targets=truth, save_images=True, **options)
        return np.stack([np.array(Image.open(out / "images" / "all" / path.name)) for path in paths])

    whole = attacked("whole", 1)
    single = attacked("single", 1, batch_size=1)
    chunks = attacked("chunks", 1, batch_size=3, internal_batch_size=2)
    other = attacked("other", 2)
    assert (whole == single).mean() > 0.99
    assert (whole == chunks).mean() > 0.99
    assert (whole == other).mean() < 0.95


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 5.6 / 255, 0.02])
def test_8_bit_images_stay_inside_the_ball(eps: float) -> None:
    """Against a search over all 256 levels, for originals on and off the levels; plain rounding leaves the ball."""
    generator = torch.Generator().manual_seed(3)
    on = torch.randint(0, 256, (1, 3, 9, 9), generator=generator) / 255
    images = torch.cat([on, torch.rand(1, 3, 9, 9, generator=generator)])
    step = eps * (2 * torch.rand(2, 3, 9, 9, generator=generator) - 1)
    attacked = torch.cat([(images + eps * step.sign()).clamp(0, 1), (images + step).clamp(0, 1)])
    originals = images.repeat(2, 1, 1, 1)
    found = nearest_levels(attacked, originals, eps)
    levels = torch.arange(256, dtype=torch.float64) / 255
    distance = (levels - attacked.double()[..., None]).abs()
    distance[(levels - originals.double()[..., None]).abs() > eps + 1e-6] = math.inf
    assert distance.amin(-1).isfinite().all()
    chosen = distance.gather(-1, found.long()[..., None])[..., 0]
    torch.testing.assert_close(chosen, distance.amin(-1), rtol=0, atol=1e-9)
    plain = (255 * attacked).round() / 255
    outside = float((plain.double() - originals.double()).abs().max()) > eps + 1e-6
    assert outside or eps == 8 / 255 or not bool((plain * 255 != found).any())


def test_saved_images_are_what_the_model_was_asked_about(tmp_path: Path) -> None:
    paths, truth = two_waves(tmp_path / "images", 4)
    classifier, out = low_reader(), tmp_path / "out"
    settings = AttackSettings(("low", "high"), 5.0, attack_config(steps=3, eps=5.6 / 255), 4)
    study = attack_files(classifier, paths, out, settings, targets=truth, save_images=True)
    assert study.saved_stay_inside()
    assert study.largest_saved_change() == pytest.approx(5 / 255, abs=1e-6)
    for record in study.records:
        original = to_tensor(Image.open(record.path))
        for band in ("low", "high"):
            saved = record.attacks[band]["low reader"].saved
            pixels = to_tensor(Image.open(out / saved.file))
            assert saved.file == f"images/{band}/{record.path.name}"
            change = (pixels.double() - original.double()).abs().max()
            assert saved.largest_change == pytest.approx(float(change), abs=1e-6)
            logits = classifier(pixels[None])[0]
            assert saved.answer.right == (int(logits.argmax()) == record.target)
            assert saved.answer.probability == pytest.approx(float(logits.softmax(0)[record.target]), abs=1e-4)
            change = (pixels - original).double()
            low = low_pass(change, 5.0)
            inside = float(((low if band == "low" else change - low) ** 2).sum() / (change**2).sum())
            assert saved.band_share == pytest.approx(inside, abs=1e-4)
            assert inside < record.attacks[band]["low reader"].band_share
    wrong = [not record.attacks["low"]["low reader"].saved.answer.right for record in study.records]
    assert study.fooled_as_saved("low").mean == pytest.approx(np.mean(wrong))
    shares = [record.attacks["low"]["low reader"].saved.band_share for record in study.records]
    assert study.band_share_as_saved("low").mean == pytest.approx(np.mean(shares))


def test_nothing_is_left_of_a_weak_attack_in_8_bits(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    arguments = ["attack", str(photos), "--model", str(model_file), "--bands", "low", "--eps", "1/999", "--limit", "1"]
    assert main([*arguments, "--steps", "2", "--save-images", "--input-size", "64", "--out", str(out)]) == DONE
    assert "8 bits erase an attack" in capsys.readouterr().out
    saved = json.loads((out / "attack.json").read_text())["images"][0]["attacks"]["low"].popitem()[1]["saved"]
    assert saved["largest_change"] == 0
    assert saved["band_share"] == 1


def test_an_image_that_fails_costs_itself(tmp_path: Path) -> None:
    class Picky(Reader):
        def forward(self, pixels: Tensor) -> Tensor:
            if bool((pixels[:, :, 0, 0] > 0.99).any()):
                raise RuntimeError("not this one")
            return super().forward(pixels)

    paths, _ = two_waves(tmp_path / "images", 4)
    white = np.array(Image.open(paths[2]))
    white[0, 0] = 255
    Image.fromarray(white).save(paths[2])
    paths[1].write_bytes(b"nothing")
    failures, counted = [], []
    study = attack_files(
        classifier_of(Picky(1, 2, low=True), "picky"), paths, tmp_path / "out", ORACLE,
        on_images=counted.append, on_failure=failures.append,
    )  # fmt: skip
    assert [record.path.name for record in study.records] == ["image_0.png", "image_3.png"]
    assert sum(counted) == 2
    written = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert {failure["file"] for failure in written["failures"]} == {"image_1.png", "image_2.png"}
    assert [failure.path.name for failure in failures] == ["image_1.png", "image_2.png"]
    assert "not this one" in failures[1].reason
    assert study.accuracy("picky").mean == 1  # its own first choice is the target

    class Nothing(Reader):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels) * math.nan

    out = tmp_path / "nan"
    none = attack_files(classifier_of(Nothing(1, 2, low=True), "nan"), paths[:1], out, ORACLE, targets=[0])
    assert not none.records
    assert "NaN" in none.failures[0].reason
    assert not (out / "attack.json").exists()


def test_an_interrupt_leaves_what_was_attacked(tmp_path: Path) -> None:
    paths, truth = two_waves(tmp_path / "images", 3)
    done = []

    def interrupt(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack_files(
            low_reader(), paths, tmp_path / "out", ORACLE, targets=truth, batch_size=1, on_images=interrupt
        )  # fmt: skip
    written = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert [image["file"] for image in written["images"]] == ["image_0.png", "image_1.png"]
    assert written["summary"]["images"] == 2
    assert (tmp_path / "out" / "attack.png").exists()


def test_one_image_and_a_model_that_is_never_right(tmp_path: Path) -> None:
    paths, truth = two_waves(tmp_path / "images", 1)
    study = attack_files(low_reader(), paths, tmp_path / "out", ORACLE, targets=[1 - truth[0]])
    assert study.fooled("low", "low reader", "low reader") is None
    assert study.confidence(None) is None
    written = json.loads((tmp_path / "out" / "attack.json").read_text())
    assert written["summary"]["bands"]["low"]["fooled"] is None
    assert written["summary"]["bands"]["low"]["disturbance"]["lower"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AttackSettings(()), "none given"),
        (lambda: AttackSettings(("low", "centre")), "unknown band(s) centre"),
        (lambda: AttackSettings(("low", "middle")), "middle band is empty"),
        (lambda: AttackSettings(cutoff=-1), "not negative, got -1"),
        (lambda: AttackSettings(rings=0), "rings must be at least 1"),
        (lambda: attack_config("magic"), "one of plain, fampe, attexplore"),
        (lambda: attack_config(eps=0.0), "eps must be in (0, inf]"),
        (lambda: attack_config(alpha=0.5), "no option(s) alpha"),
        (lambda: attack_config(direction="descend"), "no option(s) direction"),
        (lambda: attack_config(samples=3), "3 samples would all be the same"),
    ],
)
def test_settings_that_make_no_attack_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as found:
        call()
    assert message in str(found.value)


def test_models_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    paths, _ = two_waves(tmp_path / "images", 1)
    other = Classifier(Smooth(classes=5), name="five", input_size=SIZE, num_classes=5).eval()
    with pytest.raises(ValueError, match="low reader has 2 classes and five has 5"):
        attack_files(low_reader(), paths, tmp_path / "out", ORACLE, transfer_to=other)
    grey = Classifier(Smooth(), name="grey", input_size=SIZE, num_classes=2, channels=1).eval()
    with pytest.raises(ValueError, match="low reader takes 3 channels and grey takes 1"):
        attack_files(low_reader(), paths, tmp_path / "out", ORACLE, transfer_to=grey)
    twin = attack_files(low_reader(), paths, tmp_path / "out", ORACLE, transfer_to=low_reader())
    assert twin.models == ("low reader", "low reader (2)")
    assert twin.fooled("low", "low reader", "low reader (2)").mean == 1


def test_attack_prints_tables_and_writes_figures(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (photos / "broken.png").write_bytes(b"nothing")
    out = tmp_path / "out"
    arguments = ["attack", str(photos), "--model", str(model_file), "--bands", "high,low", "--cutoff", "12"]
    arguments += ["--eps", "16/255", "--steps", "4", "--rings", "5", "--transfer-to", str(model_file)]
    assert main([*arguments, "--save-images", "--input-size", "64", "--out", str(out)]) == SOME_FAILED
    captured = capsys.readouterr()
    assert "broken.png" in captured.err
    assert "1 of 4 images failed" in captured.err
    written = json.loads((out / "attack.json").read_text())
    assert written["settings"]["bands"] == ["high", "low"]
    assert written["settings"]["config"]["eps"] == pytest.approx(16 / 255)
    assert len(written["summary"]["edges"]) == 6
    first, second = written["settings"]["models"]
    for band in ("high", "low"):
        summary = written["summary"]["bands"][band]
        for key in ("fooled", "fooled_as_saved", "confidence_after"):
            assert f"{summary[key]['mean']:.3f} ± {summary[key]['standard_error']:.3f}" in captured.out
        for share in summary["disturbance"]["mean_share"]:
            assert f"{share:.4f}" in captured.out
        # One model under two names: what is made on the one does to the other what it does to it.
        rates = written["summary"]["transfer"][band]
        assert rates[first][first] == rates[first][second] == rates[second][first]
        assert sorted(path.name for path in (out / "images" / band).iterdir()) == [f"object_{k}.png" for k in range(3)]
    assert "inside eps of 0.06275" in captured.out
    assert "transfer" in captured.out
    assert not [path for path in out.rglob(".*") if path.is_file()]


# The search -----------------------------------------------------------------------------------------------------------


class Known:
    """Maps that are the evidence up to radius 3 and noise above it; an image it does not like fails."""

    name = "known"

    def __init__(self, evidence: Tensor, refused: int | None = None, loudness: float = 1.0) -> None:
        self.evidence, self.refused, self.loudness = evidence, refused, loudness

    def attribute(self, inputs: Tensor, target: object = None, **options: object) -> Tensor:
        ids = list(options["image_ids"])
        if self.refused in ids:
            raise RuntimeError("not this one")
        return torch.stack([self.evidence + self.loudness * self.noise(k) for k in ids])[:, None].expand_as(inputs)

    @staticmethod
    def noise(image_id: int) -> Tensor:
        drawn = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(image_id))
        return drawn - low_pass(drawn, 3.0)


@pytest.fixture
def known(tmp_path: Path) -> tuple[Classifier, Tensor, list[Path]]:
    """A linear model on images of one colour: its weights are each pixel's share, and their order the best there is."""
    evidence = 1 + 0.5 * wave(0, 1) + 0.4 * wave(3, 0)
    classifier = classifier_of(TwoClassLinear(evidence.expand(3, -1, -1) / 400), "linear")
    colours = torch.tensor([0.4, 0.6, 0.8])[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    return classifier, evidence, write_images(tmp_path / "images", colours)


@pytest.mark.parametrize(("signed", "loudness"), [(True, 1.0), (False, 0.02)], ids=["signed filter", "FORGrad"])
def test_the_search_over_files_finds_the_radius_that_is_known(
    signed: bool, loudness: float, known: tuple[Classifier, Tensor, list[Path]], tmp_path: Path
) -> None:
    """Up to radius 3 there is evidence alone, and all of it; no order of the pixels scores more than that map's.

    Where noise turns signs, FORGrad's absolute value mixes the two before the filter: the noise is faint for it.
    """
    classifier, evidence, paths = known
    out = tmp_path / "deep" / "tuned"
    stages = []
    tuning = tune_files(
        classifier, {"known": Known(evidence, loudness=loudness)}, paths, out, protocol="per_pixel", metric_steps=12,
        signed=signed, batch_size=2, on_stage=lambda stage, total: stages.append(stage),
    )  # fmt: skip
    found = tuning.results["known"]
    assert found.cutoff == 3
    images = torch.stack([to_tensor(Image.open(path)) for path in paths])
    maps = evidence.expand_as(images)
    best = insertion_deletion(classifier, images, maps, torch.zeros(3).long(), protocol="per_pixel", steps=12)
    assert found.curve[3].mean == pytest.approx(float((best.insertion - best.deletion).mean()), abs=1e-6)
    assert all(estimate.mean < found.curve[3].mean for radius, estimate in found.curve.items() if radius != 3)
    assert float(evidence.min()) > 0
    noisy = evidence + loudness * torch.stack([Known.noise(k) for k in range(3)])
    assert bool((noisy < 0).any()) is signed
    noisy = noisy[:, None].abs().expand_as(images)
    plain = insertion_deletion(classifier, images, noisy, torch.zeros(3).long(), protocol="per_pixel", steps=12)
    assert found.unfiltered.mean == pytest.approx(float((plain.insertion - plain.deletion).mean()), abs=1e-6)
    assert TunedCutoff.load(out / "cutoffs.json", "linear", "known", signed=signed) == found
    assert stages == ["images", "known: maps", "known: cut-offs"]
    with Image.open(out / "cutoffs.png") as picture:
        assert min(picture.size) > 300


def test_a_search_over_files_goes_on_without_what_fails(
    known: tuple[Classifier, Tensor, list[Path]], tmp_path: Path
) -> None:
    classifier, evidence, paths = known
    broken = tmp_path / "images" / "broken.png"
    broken.write_bytes(b"nothing")
    out = tmp_path / "tuned"
    earlier = TunedCutoff("linear", "earlier", 3, {3: Estimate(0.5, None, 1)}, Estimate(0.1, None, 1), "rise", 10)
    out.mkdir()
    earlier.save(out / "cutoffs.json")
    methods = {"none": Known(evidence, refused=3), "some": Known(evidence, refused=2), "all": Known(evidence)}
    done = []
    tuning = tune_files(
        classifier, methods, [broken, *paths], out, targets=[0] * 4, metric_steps=4, protocol="per_pixel",
        on_done=done.append,
    )  # fmt: skip
    assert [(f.path.name, f.reason) for f in tuning.failures[1:]] == [
        ("image_2.png", "none: RuntimeError: not this one"),
        ("image_1.png", "some: RuntimeError: not this one"),
    ]
    assert tuning.failures[0].path == broken
    assert [found.unfiltered.n for found in tuning.results.values()] == [2, 2, 3]
    assert TunedCutoff.load(out / "cutoffs.json", "linear", "earlier") == earlier
    assert TunedCutoff.load(out / "cutoffs.json", "linear", "some").cutoff == 3

    class Never(Known):
        def attribute(self, inputs: Tensor, target: object = None, **options: object) -> Tensor:
            return super().attribute(inputs, target, **options) * math.nan

    nothing = tune_files(classifier, {"never": Never(evidence)}, paths, tmp_path / "no", metric_steps=4)
    assert not nothing.results
    assert len(nothing.failures) == 3
    assert not (tmp_path / "no" / "cutoffs.json").exists()


def test_an_image_that_fails_at_one_radius_costs_itself(
    known: tuple[Classifier, Tensor, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fampe_fast.methods.tuning import Faithfulness

    classifier, evidence, paths = known
    judge = Faithfulness.__call__

    def fails(self: object, images: Tensor, targets: Tensor, maps: Tensor, radius: int | None) -> list[float]:
        scores: list[float] = judge(self, images, targets, maps, radius)  # type: ignore[arg-type]
        if radius == 4 and any(torch.equal(image, refused) for image in images):
            raise ValueError("not this one at that radius")
        return scores

    refused = classifier.transform(Image.open(paths[1]).convert("RGB"))
    options = {"targets": [0] * 3, "metric_steps": 4, "protocol": "per_pixel"}
    monkeypatch.setattr(Faithfulness, "__call__", fails)
    found = tune_files(classifier, {"known": Known(evidence)}, paths, tmp_path / "some", **options)
    assert [(f.path, f.reason) for f in found.failures] == [
        (paths[1], "known: ValueError: not this one at that radius")
    ]
    monkeypatch.setattr(Faithfulness, "__call__", judge)
    whole = tmp_path / "all"
    every = tune_files(classifier, {"known": Known(evidence)}, paths, whole, **options)
    assert every.results["known"].unfiltered.n == 3
    scores: dict[tuple[str, int], float] = {}
    for line in map(json.loads, (whole / "cutoffs.jsonl").read_text().splitlines()[1:]):
        for entry in line.get("results", ()):
            scores[line["part"], entry["id"]] = entry["result"].get("score")
    one = found.results["known"]
    assert one.unfiltered.n == 2
    for radius, estimate in one.curve.items():
        assert estimate.n == 2
        if radius in every.results["known"].curve:
            expected = (scores[f"radius {radius}", 0] + scores[f"radius {radius}", 2]) / 2
            assert estimate.mean == pytest.approx(expected, abs=1e-5)
    assert one.curve.keys() & every.results["known"].curve.keys() >= {1, 2, 4}

    def never(self: object, images: Tensor, targets: Tensor, maps: Tensor, radius: int | None) -> list[float]:
        if radius is not None:
            raise ValueError("none")
        return judge(self, images, targets, maps, radius)  # type: ignore[arg-type]

    monkeypatch.setattr(Faithfulness, "__call__", never)
    nothing = tune_files(classifier, {"known": Known(evidence)}, paths, tmp_path / "no", **options)
    assert not nothing.results
    assert len(nothing.failures) == 3
    assert not (tmp_path / "no" / "cutoffs.json").exists()


def test_models_that_share_a_folder_are_drawn_side_by_side(
    known: tuple[Classifier, Tensor, list[Path]], tmp_path: Path
) -> None:
    """Those of one filter and protocol; another filter's curves are not comparable."""
    classifier, evidence, paths = known
    out, options = tmp_path / "tuned", {"targets": [0] * 3, "metric_steps": 3, "protocol": "per_pixel"}
    first = tune_files(classifier, {"known": Known(evidence)}, paths, out, **options)
    assert first.files == ["cutoffs.json", "cutoffs.png"]
    assert models_figure(out / "cutoffs.json", first.results["known"]) is None
    other = classifier_of(classifier.model, "other")
    signed = tune_files(other, {"known": Known(evidence)}, paths, out, signed=True, **options)
    assert signed.files == ["cutoffs.json", "cutoffs.png"]
    both = tune_files(other, {"known": Known(evidence)}, paths, out, **options)
    assert both.files == ["cutoffs.json", "cutoffs.png", "models.png"]
    figure = models_figure(out / "cutoffs.json", both.results["known"])
    assert figure is not None
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert [name.partition(", best")[0] for name in names] == ["linear, known", "other, known"]
    with Image.open(out / "models.png") as picture:
        assert min(picture.size) > 300
    (out / "cutoffs.json").write_text('{"fampe_fast": "cutoffs", "a | b": {"model": "a", "signed": false}}')
    with pytest.raises(ValueError, match="is not a file of tuned cut-offs"):
        tune_files(classifier, {"known": Known(evidence)}, paths, out, **options)


def test_an_interrupted_search_keeps_the_methods_it_finished(
    known: tuple[Classifier, Tensor, list[Path]], tmp_path: Path
) -> None:
    classifier, evidence, paths = known

    def stop(stage: str, total: int) -> None:
        assert total > 0
        if stage == "second: cut-offs":
            raise KeyboardInterrupt

    out = tmp_path / "tuned"
    methods = {"first": Known(evidence), "second": Known(evidence)}
    with pytest.raises(KeyboardInterrupt):
        tune_files(classifier, methods, paths, out, metric_steps=4, protocol="per_pixel", on_stage=stop)
    assert TunedCutoff.load(out / "cutoffs.json", "linear", "first").cutoff == 3
    with pytest.raises(KeyError):
        TunedCutoff.load(out / "cutoffs.json", "linear", "second")


@pytest.mark.slow
def test_tune_prints_curves_and_a_line_that_works(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("captum")
    (photos / "broken.png").write_bytes(b"nothing")
    out = tmp_path / "my cutoffs"
    arguments = ["tune", str(photos), "--model", str(model_file), "--method", "saliency,attexplore", "--steps", "1"]
    arguments += ["--samples", "2", "--metric-steps", "3", "--out", str(out), "--loss", "softmax_twice"]
    arguments += ["--input-size", "64"]
    assert main([*arguments, "--limit", "3"]) == SOME_FAILED
    captured = capsys.readouterr()
    assert "1 of 3 images failed" in captured.err
    (photos / "object_2.png").unlink()
    model = json.loads((out / "cutoffs.json").read_text()).popitem()[1]["model"]
    lines = [line for line in captured.out.splitlines() if line.startswith("fampe-fast explain")]
    assert len(lines) == 2
    for name, line in zip(("saliency", "attexplore"), lines, strict=True):
        found = TunedCutoff.load(out / "cutoffs.json", model, name)
        assert f"{found.curve[found.cutoff].mean:.3f} ± {found.curve[found.cutoff].standard_error:.3f}" in captured.out
        assert f"{found.unfiltered.mean:.3f}" in captured.out
        assert found.unfiltered.n == 2
        explained = tmp_path / name
        assert main([*shlex.split(line)[1:], "--out", str(explained)]) == SOME_FAILED  # the broken one again
        with np.load(explained / "object_0.npz") as archive:
            settings, shown, image = json.loads(str(archive["settings"])), archive["map"], archive["image"]
        assert settings["map_cutoff"] == found.cutoff
        if name == "attexplore":
            assert settings["filtered"]["config"]["samples"] == 2
            assert settings["filtered"]["config"]["loss"] == "softmax_twice"

    # Saliency is tuned with its signs, as the filter gets it; the line shows the maps that were scored.
    from fampe_fast.models import load_classifier

    classifier = load_classifier(str(model_file), input_size=64)
    best = TunedCutoff.load(out / "cutoffs.json", model, "saliency")
    images = torch.stack([classifier.transform(Image.open(photos / f"object_{k}.png")) for k in range(2)])
    targets = classifier(images).argmax(1)
    signed = create_method("saliency", classifier, absolute=False).attribute(images, targets)
    filtered = filtered_map(signed, best.cutoff).expand_as(images)
    scores = insertion_deletion(classifier, images, filtered, targets, steps=3)
    assert best.curve[best.cutoff].mean == pytest.approx(float((scores.insertion - scores.deletion).mean()), abs=1e-4)
    assert shlex.split(lines[0])[3:5] == ["--method", "forgrad_saliency"]
    assert np.corrcoef(image.ravel(), images[0].numpy().ravel())[0, 1] > 0.9999
    with np.load(tmp_path / "saliency" / "object_0.npz") as archive:
        np.testing.assert_allclose(archive["map"], filtered[0].numpy(), atol=1e-3 * float(filtered[0].max()))
    assert shown.shape == (3, *images.shape[2:])


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True])
def test_tune_searches_for_the_filter_that_is_named(
    signed: bool, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("captum")
    from fampe_fast.models import load_classifier

    out = tmp_path / "tuned"
    arguments = ["tune", str(photos), "--model", str(model_file), "--method", "saliency", "--metric-steps", "4"]
    arguments += ["--protocol", "per_element", "--out", str(out), *(["--signed"] if signed else [])]
    arguments += ["--input-size", "64"]
    assert main(arguments) == DONE
    printed = capsys.readouterr().out
    assert f"{'signed filter' if signed else 'FORGrad'}, 3 images, protocol per_element" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("fampe-fast explain")]
    method = "forgrad_signed_saliency" if signed else "forgrad_saliency"
    assert shlex.split(line)[3:5] == ["--method", method]

    classifier = load_classifier(str(model_file), input_size=64)
    best = TunedCutoff.load(out / "cutoffs.json", classifier.name, "saliency", signed=signed)
    assert (best.signed, best.protocol) == (signed, "per_element")
    with pytest.raises(KeyError):
        TunedCutoff.load(out / "cutoffs.json", classifier.name, "saliency", signed=not signed)
    images = torch.stack([classifier.transform(Image.open(photos / f"object_{k}.png")) for k in range(3)])
    targets = classifier(images).argmax(1)
    maps = create_method(method, classifier, map_cutoff=best.cutoff).attribute(images, targets)
    scores = insertion_deletion(classifier, images, maps, targets, steps=4, protocol="per_element")
    assert best.curve[best.cutoff].mean == pytest.approx(float((scores.insertion - scores.deletion).mean()), abs=1e-4)
    explained = tmp_path / "explained"
    assert main([*shlex.split(line)[1:], "--out", str(explained)]) == DONE
    with np.load(explained / "object_0.npz") as archive:
        settings = json.loads(str(archive["settings"]))
        np.testing.assert_allclose(archive["map"], maps[0], atol=1e-3 * float(maps[0].max()))
    assert (settings["signed"], settings["map_cutoff"]) == (signed, best.cutoff)


# What cannot start ----------------------------------------------------------------------------------------------------


UNUSABLE_ARGUMENTS = [
    (["attack", "{photos}", "--cutoff", "-3"], "finite and not negative, got -3"),
    (["attack", "{photos}", "--eps", "0"], "eps must be in (0, inf], got 0.0"),
    (["attack", "{photos}", "--gradients", "fampe", "--rho", "2"], "rho must be in [0, 1], got 2"),
    (["attack", "{photos}", "--rho", "0.5"], "--gradients plain: no such option(s): --rho; known are --bounds"),
    (["attack", "{photos}", "--fampe-cutoff", "9"], "no such option(s): --fampe-cutoff"),
    (["attack", "{photos}", "--steps", "0"], "steps must be at least 1, got 0"),
    (["attack", "{photos}", "--samples", "5"], "5 samples would all be the same"),
    (["attack", "{photos}", "--rings", "9999"], "bands"),
    (["attack", "{photos}", "--transfer-to-weights", "{model}"], "name it with --transfer-to"),
    (["attack", "{photos}", "--transfer-to-arg", "pad_type=same"], "--transfer-to-arg needs a model"),
    (["study", "explorer", "{photos}", "--explorer-mean", "0.5"], "name it with --explorer"),
    (["study", "alpha", "{photos}", "--samples", "0"], "samples must be at least 1, got 0"),
    (["attack", "{photos}/object_0.png"], "attack takes a folder of images"),
    (["attack", "{empty}"], "no images in the directory"),
    (["attack", "{photos}", "--labels", "{few_labels}"], "2 of 3 images have no label"),
    (["tune", "{photos}", "--labels", "{few_labels}"], "2 of 3 images have no label"),
    (["tune", "{empty}"], "no images in the directory"),
    (["tune", "{photos}", "--noise", "0.3"], "no such option(s): --noise"),
    (["tune", "{photos}", "--out", "{folder_of_a_list}"], "is not a file of tuned cut-offs"),
]


@pytest.mark.parametrize("command", [["attack", "photos"], ["study", "explorer", "photos"]], ids=["attack", "study"])
def test_the_other_model_has_a_normalisation_of_its_own(command: list[str], model_file: Path) -> None:
    option = {"attack": "transfer-to", "study": "explorer"}[command[0]]
    model = ["--model", str(model_file), "--mean", "0.1", "--std", "0.2"]
    other = [f"--{option}", str(model_file), f"--{option}-mean", "0.3,0.4,0.5", f"--{option}-std", "0.6"]
    found = other_classifier_of(parse([*command, *model, *other]), option.replace("-", "_"))
    assert found.mean.flatten().tolist() == pytest.approx([0.3, 0.4, 0.5])
    assert found.std.flatten().tolist() == pytest.approx([0.6, 0.6, 0.6])


@pytest.mark.parametrize(("arguments", "message"), UNUSABLE_ARGUMENTS, ids=[case[1] for case in UNUSABLE_ARGUMENTS])
def test_what_cannot_start_says_so_in_one_line_and_writes_nothing(
    arguments: list[str], message: str, photos: Path, model_file: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    places = {"photos": photos, "model": model_file, "empty": tmp_path / "empty"}
    places |= {"few_labels": tmp_path / "few_labels.json", "folder_of_a_list": tmp_path / "list"}
    places["empty"].mkdir()
    places["folder_of_a_list"].mkdir()
    places["few_labels"].write_text(json.dumps({"object_0.png": 1}))
    (tmp_path / "list" / "cutoffs.json").write_text("[1]")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    filled = [part.format(**places) for part in arguments]
    assert main([*filled, "--model", str(model_file)]) == UNUSABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("fampe-fast: ")
    assert captured.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attack"], "DIR"),
        (["attack", "x", "--bands", "low,centre"], "unknown band(s) 'centre'; known: low, middle, high, all"),
        (["attack", "x", "--bands", ","], "unknown band(s) ','"),
        (["attack", "x", "--eps", "8/0"], "a number or a fraction such as 8/255, got '8/0'"),
        (["attack", "x", "--eps", "nan"], "got 'nan'"),
        (["attack", "x", "--option", "decay=1"], "unrecognized arguments: --option"),
        (["tune", "x", "--map-cutoff", "3"], "unrecognized arguments: --map-cutoff"),
        (["attack", "x", "--gradients", "magic"], "invalid choice: 'magic'"),
        (["tune", "x", "--method", "saliency,forgrad_fampe"], "forgrad_fampe: tune takes the unfiltered method"),
        (["tune", "x", "--method", "magic"], "unknown method(s) 'magic'"),
        (["tune", "x", "--protocol", "magic"], "invalid choice: 'magic'"),
    ],
)  # fmt: skip
def test_typing_errors_exit_with_two(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == UNUSABLE
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("typed", [["attack", "x", "--bands", "no"], ["explain", "--help"], ["evaluate", "--help"]])
def test_typing_errors_and_the_help_load_no_torch(typed: list[str]) -> None:
    script = (
        f"import sys; from fampe_fast.cli import main\n"
        f"try: main({typed!r})\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", ["attack", "tune"])
def test_labels_that_only_the_model_can_refuse_are_named(
    command: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A TorchScript file does not say how many classes it has: its answer to an image of noise does."""
    labels = tmp_path / "far.json"
    labels.write_text(json.dumps({f"object_{k}.png": 900 + k for k in range(3)}))
    out = tmp_path / "out"
    arguments = [command, str(photos), "--labels", str(labels), "--model", str(model_file), "--out", str(out)]
    assert main(arguments) == UNUSABLE
    errors = capsys.readouterr().err.replace("\n", " ")
    assert errors.count("the label 900 of 'object_0.png' is out of range: the model has 8 classes") == 1
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="processes are ended by a signal")
def test_a_request_to_end_leaves_finished_results_whole(photos: Path, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fampe_fast", "attack", str(photos), "--model", str(model_file), "--bands", "low"]
    command += ["--cutoff", "12", "--out", str(out), "--steps", "60", "--batch-size", "1", "--save-images"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 240
    while not (out / "images/low/object_1.png").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, errors
    assert "interrupted; completed results were saved" in errors
    assert "Traceback" not in errors
    written = json.loads((out / "attack.json").read_text())
    assert 1 <= len(written["images"]) < 3
    assert (out / "attack.png").exists()


# Plots ----------------------------------------------------------------------------------------------------------------


def test_cut_offs_are_drawn_per_method() -> None:
    from fampe_fast.plots.studies import CutoffCurve, cutoffs_figure

    points = {radius: Estimate(0.1 * radius, 0.01, 4) for radius in (1, 2, 4)}
    other = {8: Estimate(0.3, None, 1)}
    curves = {"one": CutoffCurve(points, Estimate(0.2, 0.1, 4), 4), "two": CutoffCurve(other, Estimate(0, None, 1), 8)}
    axes = cutoffs_figure(curves, title="a title").axes[-1]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one, best 4", "two, best 8"]
    rings = [line for line in axes.get_lines() if line.get_markersize() == 11]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(4, 0.4), (8, 0.3)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4", "8"]
    with pytest.raises(ValueError, match="best radius of 'one', 3"):
        cutoffs_figure({"one": CutoffCurve(points, Estimate(0, None, 1), 3)}, title="")
    with pytest.raises(ValueError, match="at least one curve"):
        cutoffs_figure({}, title="")


def test_bands_are_drawn_with_the_cut_off() -> None:
    from fampe_fast.plots.bands import BandCurve, bands_figure

    curve = {"one": BandCurve(torch.tensor([0.0, 2, 4]), torch.tensor([0.5, 0.5]))}
    axes = bands_figure(curve, cutoff=3).axes[-1]
    assert [3, 3] in [list(line.get_xdata()) for line in axes.get_lines()]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "cut-off 3"]
    assert bands_figure(curve).axes[-1].get_legend() is None
    with pytest.raises(ValueError, match="cut-off"):
        bands_figure(curve, cutoff=3, by_number=True)


# The real model -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.shared
def test_both_run_on_photographs_with_the_real_model(
    shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("captum")
    weights = str(shared_dir / "models" / "mobilenetv2_100_same.imagenet.safetensors")
    rest = ["--labels", str(shared_dir / "images" / "labels.json"), "--limit", "2", "--weights", weights]
    rest += ["--model", "mobilenetv2_100", "--model-arg", "pad_type=same", "--mean", "0.5", "--std", "0.5"]
    photographs = str(shared_dir / "images")
    arguments = ["attack", photographs, *rest, "--bands", "low,high", "--steps", "3", "--out", str(tmp_path)]
    assert main(arguments) == DONE
    summary = json.loads((tmp_path / "attack.json").read_text())["summary"]
    for band in ("low", "high"):
        assert summary["bands"][band]["confidence_after"]["mean"] < 0.3 * summary["confidence_before"]["mean"]
        assert summary["bands"][band]["band_share"]["mean"] > 0.999
    out = tmp_path / "tuned"
    assert main(["tune", photographs, *rest, "--method", "saliency", "--metric-steps", "4", "--out", str(out)]) == DONE
    found = TunedCutoff.load(out / "cutoffs.json", "mobilenetv2_100", "saliency")
    assert f"--map-cutoff {found.cutoff}" in capsys.readouterr().out
    assert found.curve[found.cutoff].mean == max(estimate.mean for estimate in found.curve.values())
