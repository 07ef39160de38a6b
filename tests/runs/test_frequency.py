"""``frequency`` over files: what is recorded of a model whose band and direction are known, and its figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fampe_fast import FrequencyAttribution
from fampe_fast.cli import DONE, SOME_FAILED, UNUSABLE, main
from fampe_fast.files import mark_of
from fampe_fast.frequency import bands_between, octave_bands, three_bands
from fampe_fast.images.textures import textures
from fampe_fast.metrics.summary import bootstrap_interval
from fampe_fast.models import Classifier
from fampe_fast.plots.bands import BandCurve
from fampe_fast.plots.frequency_plane import frequency_plane_figure
from fampe_fast.plots.reliance import ClassPoint, ModelReliance, reliance_figure
from fampe_fast.runs.frequency import frequency_files
from fampe_fast.runs.frequency_results import FrequencyStudy, ImageEvidence, read_study

SIDE = 64


class WaveReader(nn.Module):
    """Class 1's logit is what the images hold of one upright wave at radius 12, class 2's of one across at 3."""

    def forward(self, pixels: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(pixels.mean(1)).abs() / (SIDE * SIDE)
        return torch.stack([torch.zeros(len(pixels)), 100 * spectrum[:, 12, 0], 100 * spectrum[:, 0, 3]], 1)


def reader(name: str = "reader") -> Classifier:
    return Classifier(
        WaveReader(), name=name, mean=0.0, std=1.0, input_size=(SIDE, SIDE), class_names=("none", "fine", "coarse")
    ).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Upright waves of radius 12 and waves across of radius 3, on a ground of noise, of growing strength."""
    images = tmp_path / "images"
    images.mkdir()
    turns = 2 * math.pi * torch.arange(SIDE) / SIDE
    for k in range(6):
        wave = torch.cos(12 * turns)[:, None] if k % 2 == 0 else torch.cos(3 * turns)[None]
        noise = torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(k))
        pixels = ((0.5 + (0.1 + 0.02 * k) * wave + 0.2 * (noise - 0.5)) * 255).round().byte().numpy()
        Image.fromarray(pixels).convert("RGB").save(images / f"{k}.png")
    (images / "2.png").write_bytes(b"not an image")
    return images


def run(folder: Path, out: Path, classifier: Classifier | None = None, **options) -> FrequencyStudy:
    classifier = classifier or reader()
    method = FrequencyAttribution(classifier, passes=4)
    return frequency_files(classifier, method, sorted(folder.iterdir()), out, batch_size=2, **options)


def test_every_image_s_evidence_is_that_of_one_call_and_a_bad_file_costs_itself(folder: Path, tmp_path: Path) -> None:
    done: list[int] = []
    study = run(folder, tmp_path / "out", on_images=done.append, edges=(5, 20), rings=8, sectors=4)
    assert [failure.path.name for failure in study.failures] == ["2.png"]
    assert sum(done) == 5
    assert [image.target for image in study.images] == [1, 2, 2, 1, 2]
    classifier = reader()
    for image in study.images:
        pixels = classifier.transform(Image.open(folder / image.file))[None]
        found = FrequencyAttribution(classifier, passes=4)(pixels)
        values = found.coefficients()
        for name, bands in (
            ("octaves", octave_bands(SIDE, SIDE)), ("bands", three_bands(SIDE, SIDE, (5, 20))),
        ):  # fmt: skip
            assert image.evidence[name] == pytest.approx(bands.sums(values)[0].tolist(), abs=1e-4)
            power = bands_between(SIDE, SIDE, bands.edges[0, 1:-1].tolist()).energy(pixels)[0]
            assert image.energy[name] == pytest.approx((power / power.sum()).tolist(), abs=1e-6)
        assert image.gap == pytest.approx(float(found.gap()), abs=1e-5)
        # The fine wave is upright and between 8 and 16, the coarse one runs across, between 2 and 4.
        ring, sector = (3, 2) if image.target == 1 else (1, 0)
        total = image.score - image.baseline_score
        assert image.evidence["octaves"][ring] == pytest.approx(total, rel=1e-3)
        assert image.evidence["sectors"][sector] == pytest.approx(total, rel=1e-3)
        assert sum(image.energy["sectors"]) == pytest.approx(1)


@pytest.mark.slow
def test_means_classes_and_the_connection_are_those_of_the_images(folder: Path, tmp_path: Path) -> None:
    study = run(folder, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "frequency.json").read_text())
    evidence = torch.tensor([image["evidence"]["octaves"] for image in written["images"]], dtype=torch.float64)
    reliance = evidence / evidence.abs().sum(1, keepdim=True)
    summary = written["summary"]
    assert summary["octaves"]["evidence"]["mean"] == pytest.approx(evidence.mean(0).tolist())
    assert summary["octaves"]["reliance"]["mean"] == pytest.approx(reliance.mean(0).tolist())
    expected = bootstrap_interval(reliance)
    assert summary["octaves"]["reliance"]["lower"] == pytest.approx(expected[0].tolist())
    assert summary["octaves"]["reliance"]["upper"] == pytest.approx(expected[1].tolist())
    assert [(entry["name"], entry["images"]) for entry in written["classes"]] == [("fine", 2), ("coarse", 3)]
    fine = [row for row, image in enumerate(written["images"]) if image["target"] == 1]
    assert written["classes"][0]["octaves"]["reliance"]["mean"] == pytest.approx(reliance[fine].mean(0).tolist())
    assert written["failures"][0]["file"] == "2.png"
    # What a model reads, it relies on where it is: here energy and reliance have one order in the middle band.
    assert summary["connection"]["middle"]["correlation"] == study.connection("middle").correlation
    assert -1 <= summary["connection"]["middle"]["interval"][0] <= summary["connection"]["middle"]["interval"][1] <= 1
    assert read_study(tmp_path / "out").images == study.images


def test_a_flat_image_has_no_energy_and_no_evidence(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (SIDE, SIDE), (90, 120, 30)).save(images / "flat.png")
    (image,) = run(images, tmp_path / "out").images
    assert all(value == 0 for part in image.energy.values() for value in part)
    assert all(abs(value) < 1e-4 for part in image.evidence.values() for value in part)
    study = read_study(tmp_path / "out")
    assert study.reliance("bands").isfinite().all()
    assert str(study.connection("high")) == "of too few images"


def test_a_correlation_is_that_of_the_ranks() -> None:
    """Of one order it is 1, of the reverse -1, and its interval is its own resamples'."""
    rows = [
        ImageEvidence(f"{k}.png", k, 0, 1.0, 0.0, {"bands": [0.0, 1 - reliance, reliance]}, {"bands": [0.0, 1 - e, e]})
        for k, (e, reliance) in enumerate([(0.1, 0.2), (0.2, 0.3), (0.3, 0.5), (0.5, 0.8), (0.9, 0.9)])
    ]
    study = FrequencyStudy({}, {}, 0.95, images=rows)
    assert study.connection("high").correlation == pytest.approx(1)
    assert study.connection("middle").correlation == pytest.approx(1)
    assert study.connection("low").correlation == 0  # nothing there differs
    assert study.connection("high").interval[1] == pytest.approx(1)


@pytest.mark.slow
def test_a_second_run_does_nothing_again_and_another_setting_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "out", []
    first = run(folder, out, pictures=2)
    figures = {name: (out / name).read_bytes() for name in ("frequency.png", "reliance.png", "places.png")}
    real = FrequencyAttribution.__call__

    def counted(self: FrequencyAttribution, inputs: Tensor, *rest: object, **options: object) -> object:
        calls.append(len(inputs))
        return real(self, inputs, *rest, **options)

    monkeypatch.setattr(FrequencyAttribution, "__call__", counted)
    again = run(folder, out, pictures=2)
    assert calls == []
    assert again.earlier == 5
    assert again.images == first.images
    assert {name: (out / name).read_bytes() for name in figures} == figures
    more = run(folder, out, pictures=5)  # of which the places were not kept
    assert 0 < sum(calls) < 5
    assert more.images == first.images
    calls.clear()
    assert run(folder, out, edges=(5, 20)).earlier == 0
    assert sum(calls) == 5


@pytest.mark.slow
def test_runs_of_other_models_stand_in_one_figure_if_they_are_of_the_same_images(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "first")
    first = read_study(tmp_path / "first")
    run(folder, tmp_path / "second", reader("other"), beside=[first])
    assert (tmp_path / "second" / "reliance.png").read_bytes() != (tmp_path / "first" / "reliance.png").read_bytes()
    with pytest.raises(ValueError, match="reader would be in the figure twice"):
        run(folder, tmp_path / "third", beside=[first])
    (folder / "2.png").unlink()
    with pytest.raises(ValueError, match="the run of reader has other files than this one"):
        run(folder, tmp_path / "third", reader("other"), beside=[first])
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"confidence": 1.0}, ValueError, "confidence must be in"),
        ({"rings": 5000}, ValueError, "5000 bands of equal width are too many"),
        ({"rings": 2.0}, TypeError, "rings must be a whole number"),
        ({"sectors": 5000}, ValueError, "5000 sectors are too many for 64 x 64 pixels"),
        ({"edges": (5, 50)}, ValueError, "the high band, radii from 50 to 45.2548, would hold no frequency"),
        ({"edges": (5.2, 5.3)}, ValueError, "the middle band, radii from 5.2 to 5.3, would hold no frequency"),
        ({"pictures": -1}, ValueError, "pictures must be at least 0"),
    ],
)
def test_bad_options_end_the_run_before_work(
    options: dict, error: type[Exception], message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        run(folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# The command ----------------------------------------------------------------------------------------------------------


def photos_of(folder: Path) -> Path:
    folder.mkdir()
    for k, texture in enumerate(textures(96)[:3]):
        pixels = (torch.from_numpy(texture.draw(np.random.default_rng(k)))[0] * 255).round().byte()
        Image.fromarray(pixels.numpy()).convert("RGB").save(folder / f"{k}.png")
    return folder


@pytest.mark.slow
def test_the_command_writes_both_parts_and_the_old_name_the_first_alone(
    tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture
) -> None:
    photos, out = photos_of(tmp_path / "photos"), tmp_path / "out"
    (photos / "broken.png").write_bytes(b"nothing")
    arguments = [str(photos), "--model", str(model_file), "--bands", "4", "--batch-size", "2"]
    arguments += ["--input-size", "64"]
    assert main(["frequency", *arguments, "--passes", "2", "--out", str(out)]) == SOME_FAILED
    printed = capsys.readouterr()
    assert printed.err.count("broken.png") == 1
    found = json.loads((out / "frequency.json").read_text())
    for share in found["summary"]["octaves"]["reliance"]["mean"]:
        assert f"{share:+.3f}" in printed.out
    assert len(found["edges"]["rings"]) == 5
    assert found["settings"]["score"] == "logit"
    occluded = json.loads((out / "occluded_frequency.json").read_text())
    assert occluded["settings"]["score"] == "logit"
    kinds = {path.name: mark_of(path).kind for path in out.iterdir() if path.is_file()}
    assert set(kinds) == {
        "frequency.json", "frequency.jsonl", "frequency.png", "reliance.png", "places.png", "occluded_frequency.json",
        "occluded_frequency.jsonl", "occluded_frequency.png",
    }  # fmt: skip
    for name in ("frequency.png", "reliance.png", "places.png"):
        assert f"wrote {out / name}" in printed.out
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
    (photos / "broken.png").unlink()
    assert main(["occlude", *arguments, "--out", str(tmp_path / "old")]) == DONE
    assert {path.name for path in (tmp_path / "old").iterdir()} == {name for name in kinds if "occluded" in name}
    occluded = json.loads((tmp_path / "old" / "occluded_frequency.json").read_text())
    assert occluded["settings"]["score"] == "probability"
    # A resumed run of one part does not touch the other.
    assert main(["frequency", *arguments, "--passes", "2", "--out", str(out), "--parts", "attribution"]) == DONE
    assert "3 of 3 images were finished by an earlier run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("occlude --kind gradient", "--kind needs the attribution: add it to --parts"),
        ("occlude --beside nowhere", "--beside needs the attribution: add it to --parts"),
        ("frequency --passes 0", "passes must be at least 1, got 0"),
        ("frequency --beside nowhere", "cannot read the results of another model"),
        ("frequency --sectors 100000", "100000 sectors are too many"),
        ("frequency --edges 5,5000", "the high band, radii from 5000 to"),
        ("frequency --input-size 1", "images must be at least 8 pixels high and wide, got 1 x 1"),
        ("frequency --target 99", "--target 99 is out of range"),
        ("frequency --model-output probabilities", "output='probabilities' must lie in [0, 1]"),
    ],
)
def test_bad_words_cost_one_line(
    more: str, message: str, tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture
) -> None:
    photos, (command, *rest) = photos_of(tmp_path / "photos"), more.split()
    out = tmp_path / "out"
    code = main([command, str(photos), "--model", str(model_file), "--out", str(out), *rest])
    said = capsys.readouterr().err.strip()
    assert code == UNUSABLE
    assert message in said
    assert "\n" not in said
    assert not out.exists()


def test_the_runs_beside_are_inputs(tmp_path: Path, model_file: Path, capsys: pytest.CaptureFixture) -> None:
    photos, out = photos_of(tmp_path / "photos"), tmp_path / "out"
    words = ["frequency", str(photos), "--model", str(model_file), "--passes", "1", "--parts", "attribution"]
    words += ["--input-size", "64"]
    assert main([*words, "--out", str(out)]) == DONE
    assert main([*words, "--out", str(out), "--beside", str(out)]) == UNUSABLE
    assert "is one of the inputs, and would be replaced" in capsys.readouterr().err


# The figures ----------------------------------------------------------------------------------------------------------


def panel(figure, label: str):
    (axes,) = [axes for axes in figure.axes if axes.get_label() == label]
    return axes


def test_the_plane_is_drawn_with_its_signs_at_its_frequencies() -> None:
    plane = torch.zeros(21, 31)
    plane[10 - 3, 15 + 5] = plane[10 + 3, 15 - 5] = 2.0
    plane[10, 15 + 2] = plane[10, 15 - 2] = -1.0
    edges = torch.tensor([0.0, 4.0, 8.0])
    curve = BandCurve(edges, torch.tensor([-2.0, 4.0]))
    sectors = BandCurve(torch.tensor([-45.0, 45.0, 135.0]), torch.tensor([2.0, 0.0]))
    figure = frequency_plane_figure(plane, curve, sectors, title="t", unit="logit")
    (picture,) = panel(figure, "plane").images
    colours = picture.get_array()
    left, right, low, high = picture.get_extent()
    rows, columns = round(low - 0.5), round(right - 0.5)  # rows go down
    assert (left, high) == (-right, -low)
    positive, negative = colours[rows - 3, columns + 5].astype(int), colours[rows, columns + 2].astype(int)
    assert positive[0] > positive[2]  # orange
    assert negative[0] < negative[2]  # blue
    assert colours[rows, columns].sum() == 0
    words = " ".join(text.get_text() for text in figure.texts)
    assert "up to ±2 logit" in words
    assert panel(figure, "plane").get_xlabel() == "frequency across (cycles per image)"
    with pytest.raises(ValueError, match="plane must be"):
        frequency_plane_figure(plane[1:], curve, sectors, title="t")


def test_energy_and_evidence_are_drawn_at_their_octaves_and_a_dot_per_class() -> None:
    edges = torch.tensor([0.0, 2.0, 4.0, 11.3])
    spectrum = BandCurve(edges, torch.tensor([0.7, 0.2, 0.1]))
    model = ModelReliance(
        BandCurve(edges, torch.tensor([0.1, 0.6, -0.3])),
        (ClassPoint(0.1, 0.4), ClassPoint(0.3, 0.5, (0.4, 0.6))),
        "+0.50",
    )
    figure = reliance_figure(spectrum, {"a": model, "b": model}, title="t", band="high")
    assert panel(figure, "octaves").get_xscale() == "log"
    dots = [line for line in panel(figure, "classes").lines if line.get_marker() != "None"]
    assert [list(line.get_ydata()) for line in dots] == [[0.4, 0.5]] * 2
    labels = [text.get_text() for text in panel(figure, "classes").get_legend().get_texts()]
    assert labels == ["a: +0.50", "b: +0.50"]
    with pytest.raises(ValueError, match="at least one model"):
        reliance_figure(spectrum, {}, title="t", band="high")
    other = ModelReliance(BandCurve(edges * 2, torch.tensor([0.1, 0.6, -0.3])), (), "")
    with pytest.raises(ValueError, match="the octaves of 'c' are not"):
        reliance_figure(spectrum, {"c": other}, title="t", band="high")
