"""``fampe-fast attack --gradients none``, middle bands and smooth steps, on models whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from fampe_fast.cli import DONE, UNUSABLE, main
from fampe_fast.plots.queries import queries_figure
from fampe_fast.robustness import BandLimitedAttack, SimBA
from fampe_fast.runs.attack import attack_files
from fampe_fast.runs.attack_results import AttackSettings, attack_config

from .test_cli_attack_tune import high_reader, low_reader, two_waves

QUERIES = AttackSettings(
    ("low", "middle", "high"), 4.0, attack_config("none", step_size=0.5, max_queries=1200), 4, upper_cutoff=7.0
)


@pytest.mark.slow
def test_a_model_that_reads_one_band_is_fooled_in_that_band_alone_by_queries(tmp_path: Path) -> None:
    """Radius 2.2 is low; 9.2, which the other reader reads, is high: in the middle there is nothing for either."""
    paths, truth = two_waves(tmp_path / "images", 4)
    out = tmp_path / "out"
    study = attack_files(low_reader(), paths, out, QUERIES, targets=truth, transfer_to=high_reader())
    low, high = study.models
    assert study.fooled("low", low, low).mean == 1
    assert study.fooled("high", high, high).mean == 1
    assert study.fooled("high", low, low).mean == study.fooled("low", high, high).mean == 0
    for record in study.records:
        alone = SimBA(low_reader(), "low", 4.0, QUERIES.config, upper_cutoff=7.0)
        assert record.attacks["low"][low].queries < 1200 == record.attacks["high"][low].queries
        assert record.attacks["low"][low].norm <= 0.5 * record.attacks["low"][low].queries ** 0.5
    image = low_reader().transform(Image.open(paths[2]))[None]
    assert int(alone(image, truth[2:3], image_ids=[2]).queries) == study.records[2].attacks["low"][low].queries

    found = json.loads((out / "attack.json").read_text())
    assert found["settings"]["config_type"] == "SimBAConfig"
    assert found["settings"]["upper_cutoff"] == 7
    bands = found["summary"]["bands"]
    assert bands["high"]["queries"]["mean"] == 1200
    assert bands["high"]["queries_where_fooled"] is None
    counts = [record.attacks["low"][low].queries for record in study.records]
    assert bands["low"]["queries"]["mean"] == pytest.approx(sum(counts) / 4)
    assert bands["low"]["queries_where_fooled"] == bands["low"]["queries"]
    assert bands["low"]["norm"]["mean"] > 0
    for name in ("attack.png", "queries.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
    again = attack_files(low_reader(), paths, out, QUERIES, targets=truth, transfer_to=high_reader())
    assert again.earlier == 4
    assert again.records == study.records


def test_the_settings_make_the_attack(tmp_path: Path) -> None:
    assert isinstance(QUERIES.attack(low_reader(), "low"), SimBA)
    attack = AttackSettings(("middle",), 3.0, upper_cutoff=5.0, smoothness=0.9).attack(low_reader(), "middle")
    assert isinstance(attack, BandLimitedAttack)
    assert (attack.limit.inner, attack.limit.outer, attack.smoothness) == (3, 5, 0.9)


@pytest.mark.parametrize("smoothness", [None, "0.9"])
def test_a_command_line_attacks_three_bands(
    smoothness: str | None, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths, _ = two_waves(tmp_path / "images", 2)
    out = tmp_path / "out"
    line = ["attack", str(paths[0].parent), "--model", str(model_file), "--out", str(out), "--rings", "4"]
    line += ["--bands", "low,middle,high", "--cutoff", "6", "--upper-cutoff", "12", "--input-size", "64"]
    line += (
        ["--steps", "2", "--smoothness", smoothness] if smoothness else ["--gradients", "none", "--max-queries", "20"]
    )
    assert main([*line, "--save-images"]) == DONE
    told = " ".join(capsys.readouterr().out.split())
    assert "cut-off 6 and 12" in told
    assert ("SimBA, steps of 0.2, 20 queries at most" in told) == (smoothness is None)
    assert ("smoothness 0.9" in told) == (smoothness is not None)
    assert ("queries.png" in told) == (out / "queries.png").exists() == (smoothness is None)
    assert len(list((out / "images" / "middle").iterdir())) == 2
    found = json.loads((out / "attack.json").read_text())
    assert found["settings"]["smoothness"] == float(smoothness or 0)
    passes = found["summary"]["bands"]["middle"]["queries"]["mean"]
    assert passes == 2 if smoothness else passes <= 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gradients", "none", "--eps", "1/255"], "--gradients none: no such option(s): --eps; known are --bounds"),
        (["--max-queries", "9"], "--gradients plain: no such option(s): --max-queries"),
        (["--gradients", "none", "--max-queries", "0"], "max_queries must be at least 1, got 0"),
        (["--gradients", "none", "--smoothness", "0.5"], "smoothness must be 0, got 0.5"),
        (["--smoothness", "1"], "smoothness must be at least 0 and at most 0.9999, got 1"),
        (["--bands", "middle"], "the middle band is empty: give an upper_cutoff above the cut-off of 30"),
        (["--upper-cutoff", "20"], "upper_cutoff must be at least the cut-off of 30, got 20"),
    ],
)
def test_what_makes_no_attack_is_said_in_a_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paths, _ = two_waves(tmp_path / "images", 1)
    assert main(["attack", str(paths[0].parent), *options, "--out", str(tmp_path / "out")]) == UNUSABLE
    told = capsys.readouterr().err.strip()
    assert message in " ".join(told.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("gradients", ["plain", "none"])
def test_a_band_without_frequencies_is_refused_before_any_work(gradients: str, tmp_path: Path) -> None:
    paths, truth = two_waves(tmp_path / "images", 1)
    settings = AttackSettings(("low", "high"), 40.0, attack_config(gradients))
    with pytest.raises(ValueError, match="the high band is empty for 24 x 24 pixels"):
        attack_files(low_reader(), paths, tmp_path / "out", settings, targets=truth)
    assert not (tmp_path / "out").exists()


def test_a_figure_of_queries_rises_where_images_are_fooled() -> None:
    figure = queries_figure({"low": [5, None, 2, 9], "high": [None, None, None, None]}, 20)
    (axes,) = (axes for axes in figure.axes if axes.get_label() == "queries")
    low, high = axes.get_lines()
    assert list(low.get_xdata()) == [0, 2, 5, 9, 20]
    assert list(low.get_ydata()) == [0, 0.25, 0.5, 0.75, 0.75]
    assert list(high.get_ydata()) == [0, 0]
    for found, message in (
        ({}, "at least one band"),
        ({"low": []}, "at least one image"),
        ({"low": [30]}, "at most 20"),
    ):
        with pytest.raises(ValueError, match=message):
            queries_figure(found, 20)
