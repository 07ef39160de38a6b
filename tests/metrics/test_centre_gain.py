"""Insertion and deletion beside the centre prior's, on a model whose curves are known."""

from __future__ import annotations

import inspect
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fampe_fast.cli import DONE, main
from fampe_fast.metrics import centre_gain, centre_prior, insertion_deletion
from fampe_fast.runs.measurement import Measurement

from ..images_for_tests import draw
from ..models_for_tests import Smooth, some_images


class OnePixel(nn.Module):
    """Sure of class 0 where one pixel is bright, and undecided where it is black."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.place = row, column
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        score = 1000 * pixels[:, 0, self.place[0], self.place[1]]
        return torch.stack([score, torch.zeros_like(score)], 1)


def test_its_arguments_are_those_of_the_metric_that_describes_them() -> None:
    own, other = (inspect.signature(metric).parameters for metric in (centre_gain, insertion_deletion))
    assert own.items() <= other.items()
    assert other.keys() - own.keys() == {"tolerance", "show_progress"}


def area(early: bool) -> float:
    """Under a curve of 8 steps that rises from 1/2 to 1 at its first or at its last step."""
    curve = [0.5] + ([1.0] * 8 if early else [0.5] * 7 + [1.0])
    return sum(a + b for a, b in pairwise(curve)) / 16


@pytest.mark.parametrize(("place", "sign"), [((0, 0), 1), ((7, 7), 1), ((4, 4), 0)])
def test_a_map_gains_where_what_matters_is_not_in_the_middle(place: tuple[int, int], sign: int) -> None:
    """Of 8 x 8 pixels in steps of 8 the centre prior shows the middle first and the corners last."""
    images = torch.ones(2, 1, 8, 8)
    maps = torch.zeros(2, 1, 8, 8)
    maps[:, :, place[0], place[1]] = 1
    found = centre_gain(OnePixel(*place), images, maps, 0, protocol="per_pixel")
    expected = torch.full((2,), sign * (area(True) - area(False)))
    torch.testing.assert_close(found.insertion, expected)
    torch.testing.assert_close(found.deletion, expected)
    # A map that marks it last loses what the middle has, and has what the corners have.
    worst = centre_gain(OnePixel(*place), images, -maps, 0, protocol="per_pixel")
    torch.testing.assert_close(worst.insertion, expected - (area(True) - area(False)))
    torch.testing.assert_close(worst.deletion, worst.insertion)


@pytest.mark.parametrize("protocol", ["rise", "attexplore", "per_pixel", "per_element"])
def test_the_prior_gains_nothing_over_itself(protocol: str) -> None:
    images = some_images(3, height=20, width=24)
    maps = 7 * centre_prior(20, 24).expand(3, 1, -1, -1)
    found = centre_gain(Smooth(), images, maps, [0, 1, 2], protocol=protocol, mean=0.5)
    assert found.insertion.tolist() == found.deletion.tolist() == [0, 0, 0]


@pytest.mark.parametrize("options", [{}, {"steps": 5}, {"passes": 6}])
def test_it_is_the_difference_of_the_two_scores_alone_and_in_company(options: dict) -> None:
    images, model = some_images(3), Smooth()
    maps = images.roll(4, -1) - 0.5
    found = centre_gain(model, images, maps, [0, 1, 2], protocol="per_pixel", **options)
    prior = centre_prior(24, 24)[None, None]
    for k in range(3):
        one = images[k : k + 1]
        own = insertion_deletion(model, one, maps[k : k + 1], k, protocol="per_pixel", **options)
        centre = insertion_deletion(model, one, prior, k, protocol="per_pixel", **options)
        assert float(found.insertion[k]) == pytest.approx(float(own.insertion - centre.insertion), abs=1e-6)
        assert float(found.deletion[k]) == pytest.approx(float(centre.deletion - own.deletion), abs=1e-6)
    assert found.of_maps.insertion_curves.shape == found.of_prior.deletion_curves.shape


def test_what_insertion_refuses_is_refused() -> None:
    images = some_images(2)
    for change, message in (
        ({"images": images * 3}, r"images must lie in \[0, 1\]"),
        ({"images": images[0]}, r"images must be \(B, C, H, W\)"),
        ({"maps": images[:, :, 1:]}, "maps must have the images' shape"),
        ({"targets": [0, 1, 2]}, "one entry per image"),
        ({"protocol": "other"}, "unknown protocol 'other'"),
        ({"passes": 1}, "passes must be at least 2"),
        ({"protocol": "rise"}, "mean"),
    ):
        arguments = {"model": Smooth(), "images": images, "maps": images, "targets": 0, "protocol": "per_pixel"}
        with pytest.raises(ValueError, match=message):
            centre_gain(**arguments | change)
    none = centre_gain(Smooth(), images[:0], images[:0], [], protocol="per_pixel")
    assert none.insertion.shape == none.deletion.shape == (0,)


def test_a_run_names_every_protocol_it_measures_in() -> None:
    both = ("insertion_deletion", "centre_gain")
    assert Measurement(both).protocol == Measurement(("centre_gain",)).protocol == "rise"
    mixed = Measurement(both, {"centre_gain": {"protocol": "per_pixel"}})
    assert mixed.protocol == "rise (insertion_deletion), per_pixel (centre_gain)"
    assert Measurement(("stability",)).protocol is None


def test_both_commands_measure_it(model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = [str(draw(tmp_path / "photos", 2)), "--model", str(model_file), "--steps", "1", "--samples", "1"]
    given += [
        "--input-size",
        "64",
        "--views",
        "0",
        "--metric",
        "insertion_deletion,centre_gain",
        "--metric-steps",
        "4",
        "--centre-gain-steps",
        "4",
    ]
    study = ["study", "methods", "--variant", "fampe, path"]  # the model file, a program, has no layers
    for command, name in ((["evaluate"], "scores.json"), (study, "study.json")):
        out = tmp_path / command[0]
        assert main([*command, *given, "--centre-gain-passes", "3", "--out", str(out)]) == DONE
        written = json.loads((out / name).read_text())
        assert written["metrics"]["centre_gain"] == {"protocol": "rise", "steps": 4, "passes": 3}
        for image in written["images"]:
            assert all(-1 < image["insertion_over_centre"][label] < 1 for label in written["methods"])
            assert all(-1 < image["deletion_under_centre"][label] < 1 for label in written["methods"])
        assert "centre" in capsys.readouterr().out
