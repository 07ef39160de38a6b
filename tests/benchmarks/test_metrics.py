"""The benchmarks of the metrics: their schemes are what they are called, their numbers are right, the commands work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.end_to_end import metric_speed
from benchmarks.quality import metric_passes, photographs
from fampe_fast.images import generated

from ..models_for_tests import Smooth, some_images

X = torch.linspace(0, 1, 225, dtype=torch.float64)


def shifted(error: Tensor, *, passes: int = 7, estimate: float | None = None) -> metric_passes.Scheme:
    """A scheme whose areas are wrong by (M, N, 2) known errors."""

    def scheme(curves: Tensor) -> metric_passes.Approximation:
        count = len(curves)
        own = None if estimate is None else torch.full((count,), estimate, dtype=torch.float64)
        return metric_passes.Approximation(curves + error.reshape(-1, 1), torch.full((count,), passes), own)

    return scheme


def test_errors_are_those_of_the_areas_means_and_differences() -> None:
    error = torch.tensor([[[0.01, 0.0], [0.03, -0.02]], [[0.0, 0.0], [-0.01, 0.05]]], dtype=torch.float64)
    full = torch.rand(2, 2, 2, 225, generator=torch.Generator().manual_seed(0))
    row = metric_passes.judge("known", shifted(error, estimate=0.02), full)
    values = error.numpy()
    assert row.passes == 7
    assert row.bias == pytest.approx(values.mean())
    assert row.rms == pytest.approx(np.sqrt((values**2).mean()))
    assert row.largest == pytest.approx(0.05)
    assert row.mean == pytest.approx(0.025)  # deletion of the second method: (0 + 0.05) / 2
    differences = np.array([0.01 - 0.0, 0.05 - -0.06])  # insertion minus deletion, first method minus second
    assert row.difference_rms == pytest.approx(np.sqrt((differences**2).mean()))
    assert row.difference_mean == pytest.approx(differences.mean())
    assert row.estimate == pytest.approx(0.02)
    assert row.covered == pytest.approx(6 / 8)
    assert metric_passes.judge("plain", shifted(error), full).covered is None


def test_grids_and_interpolations_are_what_they_are_called() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    curves = torch.stack([torch.exp(-5 * X), torch.sigmoid(40 * (X - 0.3))])
    number = np.arange(225)
    for power in (1.0, 1.5):
        grid = np.unique(np.round(np.linspace(0, 1, 17) ** power * 224).astype(int))
        linear = metric_passes.fixed_grid(17, power)(curves)
        cubic = metric_passes.fixed_grid(17, power, cubic=True)(curves)
        for made, curve in zip(linear.curves, curves, strict=True):
            np.testing.assert_allclose(made, np.interp(number, grid, curve[grid]), rtol=0, atol=1e-12)
        for made, curve in zip(cubic.curves, curves, strict=True):
            expected = interpolate.PchipInterpolator(grid, curve[grid])(number)
            np.testing.assert_allclose(made, expected, rtol=0, atol=1e-12)
        assert linear.passes.tolist() == cubic.passes.tolist() == [len(grid)] * 2


def test_the_last_budget_has_no_error() -> None:
    full = torch.rand(1, 3, 2, 225, generator=torch.Generator().manual_seed(0))
    row = metric_passes.judge("all", metric_passes.refined(225), full)
    assert row.largest == 0
    assert row.difference_rms == 0
    assert row.covered == 1
    assert row.passes == 225


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, image in enumerate(generated.generate(2, seed=3, size=64).images):
        array = (np.asarray(image).transpose(1, 2, 0) * 255).round().astype(np.uint8)
        Image.fromarray(array).save(folder / f"{k}.png")
    return folder


def test_the_study_measures_keeps_and_reads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures) -> None:
    from fampe_fast import load_embedded_classifier

    pytest.importorskip("scipy.interpolate")
    monkeypatch.setattr(photographs, "classifier_of", lambda arguments: load_embedded_classifier())
    options = ["--methods", "fampe", "attexplore", "--steps", "1", "--samples", "1", "--device", "cpu"]
    metric_passes.main([str(pictures), *options, "--out", str(tmp_path / "first")])
    kept = torch.load(tmp_path / "first" / "curves.pt", weights_only=True)
    assert kept["curves"].shape[:3] == (2, 2, 2)
    metric_passes.main(
        ["--curves", str(tmp_path / "first" / "curves.pt"), "--half", "second", "--out", str(tmp_path / "second")]
    )
    whole, half = (
        json.loads((tmp_path / name / "metric_passes.json").read_text(encoding="utf-8")) for name in ("first", "second")
    )
    assert (whole["images"], half["images"]) == (2, 1)
    assert [row["scheme"] for row in whole["schemes"]] == [row["scheme"] for row in half["schemes"]]
    table = (tmp_path / "second" / "metric_passes.md").read_text(encoding="utf-8").splitlines()
    assert len({line.count("|") for line in table[2:]}) == 1


def test_images_are_counted_and_bare_passes_are_as_many() -> None:
    model, images = Smooth(), some_images(2)
    row = metric_speed.measure_metric(model, images, None, "off", 5, "rise", 2)
    assert row.images == 2 * 2 * 23 + 2 * 2 + 1
    assert len(row.seconds) == len(row.bare_seconds) == 2
    assert row.share == row.share_of_plain > 0
    assert (
        metric_speed.measure_metric(model, images, None, "off", 5, "rise", 1, steps=6).images == 2 * 2 * 5 + 2 * 2 + 1
    )
    seen: list[int] = []

    def count(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return pixels

    metric_speed.bare_passes(count, torch.zeros(5, 1, 2, 2), 12)()
    assert seen == [5, 5, 2]


def test_shares_are_of_the_same_round() -> None:
    row = metric_speed.MetricRow(1, None, "on", 10, (2.0, 4.0, 10.0), (1.0, 3.0, 9.0), (4.0, 4.0, 4.0))
    assert row.share == 0.75
    assert row.share_of_plain == 1.0


def test_a_share_above_one_or_scattered_rounds_are_marked() -> None:
    def row(*shares: float) -> metric_speed.MetricRow:
        return metric_speed.MetricRow(1, None, "off", 10, (1.0,) * len(shares), shares, shares)

    steady, impossible, scattered = row(0.95, 0.96, 0.97), row(1.24, 1.41, 1.49), row(0.6, 0.9, 0.99)
    assert [found.disturbed for found in (steady, impossible, scattered, row(0.9))] == [False, True, True, False]
    assert steady.quartiles == pytest.approx((0.955, 0.965))
    table = metric_speed.markdown([steady, impossible]).splitlines()
    assert "disturbed" not in table[2]
    assert "141.0% (disturbed)" in table[3]
    assert len({line.count("|") for line in table}) == 1


def test_the_speed_command_writes_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "embedded", "--side", "32", "--batches", "1", "--passes", "0", "5", "--rounds", "1"]
    metric_speed.main([*options, "--device", "cpu", "--chunk", "32", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert [row["images"] for row in found["rows"]] == [2 * 31 + 3, 2 * 3 + 3]
    assert "share of the bound" in capsys.readouterr().out
    assert (tmp_path / "metrics.md").is_file()
