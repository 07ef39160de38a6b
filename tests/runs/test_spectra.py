"""The survey of energy cut-offs: what it measures is what theory says, where theory says something."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fampe_fast.cli import DONE, SOME_FAILED, UNUSABLE, main
from fampe_fast.files import mark_of
from fampe_fast.images import survey_images
from fampe_fast.plots.energy_cutoffs import KindRow, energy_cutoffs_figure
from fampe_fast.runs.spectra import TAUS, Kind, Spectra, as_json, as_table, survey_spectra, table_rows

from ..images_for_tests import draw

SIZE = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return draw(tmp_path_factory.mktemp("spectra") / "photos", 3, seed=3, name="{}.png")


@pytest.fixture(scope="module")
def survey(folder: Path, tmp_path_factory) -> tuple[Spectra, Path]:
    out = tmp_path_factory.mktemp("spectra") / "out"
    return survey_spectra([survey_images(folder)], out, size=SIZE, count=6), out


def kind_of(result: Spectra, start: str) -> Kind:
    return next(kind for kind in result.kinds if kind.name.startswith(start))


def brute_force(image: np.ndarray, tau: float, include_dc: bool) -> int:
    """Find the cut-off of an image (S, S) on the full spectrum, radius by radius."""
    power = np.abs(np.fft.fft2(image)) ** 2
    frequencies = np.fft.fftfreq(len(image), 1 / len(image))
    radius = np.hypot(frequencies[:, None], frequencies[None, :])
    if not include_dc:
        power[0, 0] = 0
    return next(k for k in range(1, len(image)) if power[radius <= k + 1e-9].sum() >= tau * power.sum())


def test_a_grating_has_its_cutoff_at_its_frequency(survey) -> None:
    for frequency in (3, 12, 15):
        kind = kind_of(survey[0], f"grating, {frequency} ")
        assert kind.cutoffs["without DC"] == [[frequency] * len(TAUS)] * 6
        assert kind.expected["without DC"] == [frequency] * len(TAUS)
        # The mean 0.5 holds 0.25 of 0.25 + 0.4^2 / 2, which is 0.76.
        assert kind.cutoffs["with DC"] == [[1, 1, frequency, frequency, frequency]] * 6


def test_white_noise_has_its_cutoff_at_the_share_of_the_area(survey) -> None:
    kind = kind_of(survey[0], "white")
    for tau, cutoff in zip(TAUS[:2], kind.expected["without DC"], strict=False):  # discs inside the square
        assert cutoff == pytest.approx(SIZE * math.sqrt(tau / math.pi), abs=1)
    assert kind.expected["without DC"][-1] > SIZE / 2  # in the corners
    # The mean 1/2 holds 3/4 of the energy of pixels drawn evenly from [0, 1]: of the rest, 0.9 takes 0.6.
    assert kind.expected["with DC"][:2] == [1, 1]
    frequencies = np.fft.fftfreq(SIZE, 1 / SIZE)
    radius = np.hypot(frequencies[:, None], frequencies[None, :])
    inside = next(k for k in range(1, SIZE) if ((radius > 0) & (radius <= k)).sum() >= 0.6 * (SIZE**2 - 1))
    assert kind.expected["with DC"][2] == inside
    for name, found in kind.cutoffs.items():
        assert (torch.tensor(found) - torch.tensor(kind.expected[name])).abs().max() <= 2


def test_a_checkerboard_has_its_cutoffs_at_odd_harmonics(survey) -> None:
    kind = kind_of(survey[0], "checkerboard, 3 ")
    assert kind.cutoffs["without DC"] == [kind.expected["without DC"]] * 6
    # (8 / pi^2)^2 = 0.66 at the square's diagonal, then a ninth of it, twice, on each side.
    assert kind.expected["without DC"][0] == math.ceil(3 * math.sqrt(2))
    assert kind.expected["without DC"][1] == math.ceil(3 * math.sqrt(10))


def test_sloped_noise_has_as_much_in_each_octave(survey) -> None:
    kind = kind_of(survey[0], "noise, power")
    middle = kind.expected["without DC"][0]
    # Half of the logarithm from 1/2 to the mean radius of the border, 0.57 S.
    assert middle == pytest.approx(math.sqrt(0.5 * 0.57 * SIZE), abs=2)
    assert abs(kind.spread("without DC")[2][0] - kind.expected["without DC"][2]) <= 3


def test_photographs_are_measured_as_models_see_them(survey, folder: Path) -> None:
    kind = kind_of(survey[0], "photos")
    assert kind.files == ["0.png", "1.png", "2.png"]
    assert not kind.expected
    pixels = np.asarray(
        Image.open(folder / "1.png").convert("RGB").resize((109, 109), Image.Resampling.BICUBIC).crop((6, 6, 102, 102))
    )
    for name, include_dc in (("with DC", True), ("without DC", False)):
        # Channels add up: side by side along a third axis their powers do.
        spectrum = sum(np.abs(np.fft.fft2(pixels[..., k] / 255)) ** 2 for k in range(3))
        same = np.fft.ifft2(np.sqrt(spectrum))  # one image of that power
        assert kind.cutoffs[name][1] == [brute_force(same, tau, include_dc) for tau in TAUS]


def test_the_files_hold_everything(survey) -> None:
    result, out = survey
    assert [kind.name for kind in result.kinds][-2:] == ["head phantom with grain", "chest radiograph, low contrast"]
    written = json.loads((out / "spectra.json").read_text())
    assert written == json.loads(as_json(result))
    grating = next(kind for kind in written["kinds"] if kind["kind"] == "grating, 3 cycles")
    assert grating["without DC"]["median"] == grating["without DC"]["expected"] == [3] * 5
    assert len(grating["with DC"]["cutoffs"]) == grating["images"] == 6
    table = (out / "spectra.md").read_text()
    assert as_table(result) in table
    assert "| grating, 3 cycles | 6 | 3 (3 to 3); 3 |" in table
    assert ";" not in table_rows(result, "with DC")[1][2]
    with Image.open(out / "spectra.png") as picture:
        assert min(picture.size) > 600
    assert all(mark_of(path) for path in out.iterdir())


def test_a_seed_gives_one_survey(survey, folder: Path, tmp_path: Path) -> None:
    again = survey_spectra([survey_images(folder)], tmp_path / "a", size=SIZE, count=6)
    assert as_json(again) == as_json(survey[0])
    other = survey_spectra([], tmp_path / "b", size=SIZE, count=6, seed=1)
    assert other.kinds[0].name == "white noise"
    assert other.kinds[-1].cutoffs != again.kinds[-1].cutoffs


def test_bad_numbers_are_refused(tmp_path: Path) -> None:
    for wrong, message in (
        ({"size": 100}, "multiple of 32"),
        ({"count": 0}, "count must be"),
        ({"seed": -1}, "seed must be"),
        ({"taus": (0.5, 1.5)}, "taus must be"),
        ({"taus": ()}, "at least one share"),
    ):
        with pytest.raises(ValueError, match=message):
            survey_spectra([], tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command(folder: Path, tmp_path: Path, capsys) -> None:
    base = ["spectra", "--size", "64", "--count", "2", "--out", str(tmp_path / "out")]
    assert main([*base, str(folder)]) == DONE
    shown = capsys.readouterr().out
    for word in ("photos", "grating, 10 cycles", "without DC", "with DC", "spectra.png"):
        assert word in shown
    assert main(base) == DONE
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "bad.png").write_bytes(b"nothing")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "some" / "good.png")
    assert main([*base, str(tmp_path / "some")]) == SOME_FAILED
    assert "bad.png" in capsys.readouterr().err
    assert main([*base, str(tmp_path / "nowhere")]) == UNUSABLE
    assert main([*base, "--size", "60"]) == UNUSABLE
    assert "multiple of 32" in capsys.readouterr().err
    assert main([*base, str(folder), str(folder)]) == UNUSABLE
    assert "'photos'" in capsys.readouterr().err


def test_the_picture_has_a_row_for_each_kind() -> None:
    spread = {"a": [(2.0, 1.0, 3.0)], "b": [(4.0, 4.0, 4.0)]}
    rows = {
        "one": KindRow(torch.zeros(1, 8, 8), spread, {"a": [2.0], "b": [4.0]}),
        "two": KindRow(torch.zeros(3, 8, 8), spread, {}),
    }
    figure = energy_cutoffs_figure(rows, [0.9], title="t", highest=32)
    panels = {axes.get_label(): axes for axes in figure.axes if axes.get_label() in ("a", "b")}
    points = [line.get_xydata().tolist() for line in panels["a"].lines]
    assert points[:5] == [[[1, 0], [3, 0]], [[2, 0]], [[2, 0]], [[1, 1], [3, 1]], [[2, 1]]]
    with pytest.raises(ValueError, match="at least one kind"):
        energy_cutoffs_figure({}, [0.9], title="t", highest=32)
