"""A new metric is its module and its row in the catalog: both commands then measure, record, print and draw it.

This module is the metric's, as ``metrics/x.py`` would be: it has a function of the images and their maps.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image
from torch import Tensor

from fampe_fast.catalog import METRICS, MetricRow, Score
from fampe_fast.cli import DONE, main

from ..images_for_tests import draw


class Moment(NamedTuple):
    """How far a map's mass lies from the image's centre."""

    distances: Tensor
    """(B,), in the unit asked for."""


def moment(
    model: object,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    power: float = 1.0,
    absolute: bool = True,
    internal_batch_size: int | None = None,
) -> Moment:
    """Measure the mean distance of a map's mass from the centre, raised to a power.

    Args:
        model: not asked.
        images: (B, C, H, W).
        maps: (B, C, H, W).
        targets: (B,).
        power: exponent of the distance, above 0.
        absolute: take the map's magnitudes.
        internal_batch_size: not used.

    Raises:
        ValueError: a power of 0 or less.
    """
    if power <= 0:
        raise ValueError(f"power must be above 0, got {power}")
    height, width = maps.shape[-2:]
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    mass = (maps.abs() if absolute else maps).sum(1)
    total = mass.flatten(1).sum(1)
    return Moment((mass * torch.hypot(rows, columns) ** power).flatten(1).sum(1) / total)


ROW = MetricRow(
    f"{__name__}:moment",
    (Score("moment", "moment", "moment", "mom.", "low", "distances"),),
    ("power", "absolute"),
    "moment-",
    named=False,
    reading="moment: mean distance of the map's mass from the centre",
)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(METRICS, "moment", ROW)
    return draw(tmp_path / "photos", 2, seed=11, name="{}.png")


ROOT = Path(__file__).parents[2]
# The model file has no layers, and does not say its size.
QUICK = ["--steps", "1", "--samples", "1", "--views", "0", "--limit", "2", "--input-size", "64"]


def test_evaluate_measures_it(photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    words = ["evaluate", str(photos), "--model", str(model_file), "--out", str(out), *QUICK]
    assert main([*words, "--metric", "moment,insertion_deletion", "--metric-steps", "2"]) == DONE
    printed = capsys.readouterr().out
    for word in ("moment", "mom. vs fampe", ROW.reading, "ins. - del."):
        assert word in printed
    written = json.loads((out / "scores.json").read_text())
    assert written["metrics"]["moment"] == {"power": 1.0, "absolute": True}
    for image in written["images"]:
        assert 0 < image["moment"]["fampe"] < 2**0.5
    assert written["summary"]["attexplore"]["moment_minus_first"]["n"] == 2
    with Image.open(out / "contact_sheet.png") as sheet:
        sheet.verify()


def test_its_options_are_flags_of_both_commands(photos: Path, model_file: Path, tmp_path: Path) -> None:
    given = ["--model", str(model_file), "--metric", "moment", "--moment-power", "2", "--no-moment-absolute", *QUICK]
    study = ["study", "methods", "--variant", "fampe, path"]  # the model file, a program, has no layers
    for command, name in ((["evaluate"], "scores.json"), (study, "study.json")):
        out = tmp_path / command[0]
        assert main([*command, str(photos), *given, "--out", str(out)]) == DONE
        assert json.loads((out / name).read_text())["metrics"] == {"moment": {"power": 2.0, "absolute": False}}


def test_its_options_are_checked_before_work(photos: Path, tmp_path: Path) -> None:
    from fampe_fast.runs.measurement import Measurement

    assert Measurement(("moment",), {"moment": {"power": 2}}).options["moment"]["power"] == 2
    with pytest.raises(ValueError, match="moment: power must be above 0, got -1"):
        Measurement(("moment",), {"moment": {"power": -1}})
    with pytest.raises(TypeError, match="power must be a number, got 'two'"):
        Measurement(("moment",), {"moment": {"power": "two"}})
    with pytest.raises(ValueError, match=r"no option\(s\) exponent; known: power, absolute"):
        Measurement(("moment",), {"moment": {"exponent": 2}})
    with pytest.raises(ValueError, match="options of moment, but measured are insertion_deletion alone"):
        Measurement(options={"moment": {"power": 2}})


def test_a_metric_is_named_by_as_many_files_as_contributing_says() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().split("## Add a metric")[1].split("\n## ")[0]
    said = re.findall(r"^\d\. `(\S+)`", text, flags=re.MULTILINE)
    assert f"**{len(said)} files**" in text
    for name in ("mu_fidelity", "stability"):
        assert all((ROOT / path.replace("moment", name)).is_file() for path in said)
        # The rooms above the metrics, which measure, record, print and draw them, know none by name.
        above = [path for room in ("runs", "cli", "plots") for path in (ROOT / "fampe_fast" / room).rglob("*.py")]
        assert not [path.name for path in above if re.search(rf"\b{name}\b", path.read_text())]
