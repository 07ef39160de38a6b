"""``fampe-fast gradients`` and what it measures over files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from fampe_fast.cli import SOME_FAILED, UNUSABLE, main
from fampe_fast.models import Classifier
from fampe_fast.plots.gradients import ExplainedCurve, LayerCurves, explained_figure, layers_figure
from fampe_fast.robustness import FirstOrderTest, layer_spectra
from fampe_fast.runs.gradients import GradientSettings, measure_gradients, read_gradients

from ..cli.test_cli_attack_tune import low_reader, to_tensor, two_waves
from ..models_for_tests import Smooth

QUICK = GradientSettings(samples=3)


def smooth(seed: int = 0) -> Classifier:
    model = Smooth(classes=2, seed=seed)
    return Classifier(model, name=f"smooth {seed}", input_size=24, transform=to_tensor, num_classes=2).eval()


@pytest.mark.slow
def test_every_image_is_measured_as_by_hand_and_models_stand_side_by_side(tmp_path: Path) -> None:
    paths, truth = two_waves(tmp_path / "images", 3)
    out = tmp_path / "out"
    study = measure_gradients(smooth(), paths, out, QUICK, targets=truth, image_ids=[4, 7, 9], batch_size=2)
    for k in range(3):
        image = to_tensor(Image.open(paths[k]))[None]
        for kind in ("white", "image"):
            alone = FirstOrderTest(smooth(), kind, 3)(image, truth[k], image_ids=[[4, 7, 9][k]])
            assert study.explained[kind][k] == pytest.approx(alone.explained[0].tolist(), abs=0.02)
        (layer,) = layer_spectra(smooth(), image, truth[k])
        assert study.spectra[k][0]["beyond"] == pytest.approx(float(layer.beyond), rel=1e-3)
        assert study.spectra[k][0]["leaving"] == pytest.approx(layer.leaving[0].tolist(), rel=1e-3)
    assert [layer["coarse"] for layer in study.layers] == [[10, 10]]
    measure_gradients(smooth(1), paths[:1], out, QUICK, targets=truth[:1])
    models = read_gradients(out / "gradients.json")
    assert list(models) == ["smooth 0", "smooth 1"]
    found = models["smooth 0"]["summary"]
    assert found["images"] == 3
    explained = torch.tensor(study.explained["white"]).double()
    assert found["explained"]["white"]["mean"] == pytest.approx(explained.mean(0).tolist())
    low, high = (torch.tensor(found["explained"]["white"][end]).double() for end in ("lower", "upper"))
    assert bool((low <= explained.mean(0)).all() and (explained.mean(0) <= high).all())
    assert models["smooth 1"]["summary"]["explained"]["white"]["lower"] is None
    assert found["layers"][0]["beyond"]["n"] == 3
    for name in ("explained.png", "layers.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
    again = measure_gradients(smooth(), paths, out, QUICK, targets=truth, image_ids=[4, 7, 9])
    assert again.earlier == 3
    assert again.explained == study.explained


def test_a_model_without_strided_layers_has_its_gradient_tested_alone(tmp_path: Path) -> None:
    """The low reader sees nothing above radius 5: the gradient within it explains all that the whole one does."""
    paths, _ = two_waves(tmp_path / "images", 2)
    out, settings = tmp_path / "out", GradientSettings(samples=3, size=0.01)
    study = measure_gradients(low_reader(), paths, out, settings, targets=[0, 0])
    assert not study.failures
    assert study.layers == []
    assert study.radii[:4] == pytest.approx([1, 2, 4, 8])
    for rows in study.explained.values():
        for row in rows:
            assert row[3] == pytest.approx(1, abs=0.02)
            assert row[1] < 0.1
    assert (out / "explained.png").exists()
    assert not (out / "layers.png").exists()
    flat = measure_gradients(low_reader(), paths, tmp_path / "flat", settings, targets=[1, 1])  # a logit of 0 for all
    assert [failure.reason.partition(" of image")[0] for failure in flat.failures] == [
        "ValueError: no perturbation of size 0.01 changes the logit"
    ] * 2
    assert not (tmp_path / "flat" / "gradients.json").exists()


def test_the_command_prints_tables_and_writes_figures(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A net with a strided stem and a pooling that takes the largest behind it."""
    paths, _ = two_waves(tmp_path / "images", 2)
    (paths[0].parent / "broken.png").write_bytes(b"nothing")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = timm.create_model("resnet10t").state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    line = ["gradients", str(paths[0].parent), "--model", "resnet10t", "--weights", str(tmp_path / "weights.pt")]
    out = tmp_path / "out"
    line += ["--input-size", "64", "--samples", "2", "--perturbations", "white", "--out", str(out)]
    assert main(line) == SOME_FAILED
    captured = capsys.readouterr()
    assert "broken.png" in captured.err
    told = captured.out
    found = read_gradients(out / "gradients.json")["resnet10t"]["summary"]
    assert list(found["explained"]) == ["white"]
    for value in found["explained"]["white"]["mean"]:
        assert f"{value:.3f}" in told
    assert [layer["kind"] for layer in found["layers"]][:2] == ["Conv2d", "MaxPool2d"]
    assert [layer["coarse"] for layer in found["layers"]] == [[32, 32], [16, 16], [8, 8], [8, 8], [4, 4], [4, 4]]
    for layer in found["layers"]:
        assert f"{layer['beyond']['mean']:.3f} ± {layer['beyond']['standard_error']:.3f}" in told
    assert "explained.png" in told
    assert "layers.png" in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "samples must be at least 1, got 0"),
        (["--size", "0"], "size must be finite and above 0, got 0"),
        (["--score", "loss"], "invalid choice: 'loss'"),
        (["--perturbations", "pink"], "unknown perturbation(s) 'pink'; known: white, image"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths, _ = two_waves(tmp_path / "images", 1)
    line = ["gradients", str(paths[0].parent), *options, "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exit:
        sys.exit(main(line))
    assert exit.value.code == UNUSABLE
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("content", ["{}", '{"fampe_fast": "gradients", "models": {"a": {}}}', "no JSON"])
def test_a_file_of_something_else_is_not_added_to(content: str, tmp_path: Path) -> None:
    paths, truth = two_waves(tmp_path / "images", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gradients.json").write_text(content)
    with pytest.raises(ValueError, match="is not a file of measured gradients"):
        measure_gradients(smooth(), paths, tmp_path / "out", QUICK, targets=truth)
    assert (tmp_path / "out" / "gradients.json").read_text() == content


def test_the_settings_are_checked_before_anything_is_read() -> None:
    with pytest.raises(ValueError, match="at least one kind of perturbation of white, image, got none"):
        GradientSettings(())
    with pytest.raises(ValueError, match="one of white, image; got 'pink'"):
        GradientSettings(("pink",))
    assert json.dumps(QUICK.perturbations) == '["white", "image"]'


def test_figures_show_the_numbers() -> None:
    curve = ExplainedCurve([1, 2, 4], [0.1, 0.5, 0.9], ([0.0, 0.4, 0.8], [0.2, 0.6, 1.0]), [0.0, 0.3, 1.0])
    figure = explained_figure({"white": {"a": curve, "b": curve}, "image": {"a": curve}})
    white = next(axes for axes in figure.axes if axes.get_label() == "white")
    assert [list(line.get_ydata()) for line in white.get_lines()].count([0.1, 0.5, 0.9]) == 2
    layer = LayerCurves("stem", "Conv2d", 8, 4, [9.0, 2.0, 1.0], [9.0, 4.0, 2.0, 1.0, 0.5], 0.25)
    figure = layers_figure({"model": [layer] * 8})
    panels = [axes for axes in figure.axes if axes.get_label() == "model: stem"]
    assert len(panels) == 6
    assert list(panels[0].get_lines()[1].get_ydata()) == [1, 0.5, 0.25, 0.125]
    assert any("25% beyond" in text.get_text() for text in figure.texts)
    for draw in (explained_figure, layers_figure):
        with pytest.raises(ValueError, match="at least one"):
            draw({})
