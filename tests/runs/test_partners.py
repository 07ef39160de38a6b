"""Images of a run that stand beside others: the same ones in every batch, order and resumed run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fampe_fast.cli import DONE, UNUSABLE, main
from fampe_fast.images import load_images
from fampe_fast.metrics import Partners, grid_pointing
from fampe_fast.models import Classifier
from fampe_fast.models.embedded import load_embedded_classifier
from fampe_fast.runs.comparison import Comparison
from fampe_fast.runs.evaluate import evaluate_files
from fampe_fast.runs.measurement import Measurement

from ..images_for_tests import draw

COUNT = 10
GRID = Measurement(("grid_pointing",))


class Squares:
    """A map of the image alone; counts the images it is asked for, and fails for one class where it is told to."""

    name, passes = "squares", 1

    def __init__(self, model: object, then: Callable[[], object] = lambda: None, refused: int = -1) -> None:
        self.forward_func, self.then, self.refused = model, then, refused
        self.asked = 0

    def describe(self) -> dict[str, object]:
        return {"method": self.name}

    def attribute(self, inputs: Tensor, target: Tensor, **options: object) -> Tensor:
        if (target == self.refused).any():
            raise RuntimeError("refused")
        self.asked += len(inputs)
        self.then()
        return (inputs.roll(5, -1) - 0.4) ** 3


Squares.__module__ = "fampe_fast.methods.squares"  # whose records are used again


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return load_embedded_classifier()


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return sorted(draw(tmp_path / "photos", COUNT).iterdir())


LABELS = [k % 5 for k in range(COUNT)]


def evaluate(classifier: Classifier, paths: list[Path], out: Path, **options: Any) -> tuple[Comparison, int]:
    method = options.pop("method", None) or Squares(classifier)
    given = {"targets": LABELS, "measurement": GRID, "image_ids": range(len(paths))} | options
    return evaluate_files(classifier, {"squares": method}, paths, out, **given), method.asked


def scores_of(result: Comparison) -> list[float]:
    return result.scores["squares"].values["grid_pointing"]


@pytest.mark.slow
def test_scores_are_those_of_the_library_in_every_batch_and_order(
    classifier: Classifier, photos: list[Path], tmp_path: Path
) -> None:
    images = torch.stack([image for _, image in load_images(photos, classifier.transform)])
    pool = Partners.of(images, LABELS)
    expected = grid_pointing(Squares(classifier), images, LABELS, partners=pool).scores.tolist()
    assert len(set(expected)) == COUNT
    for size in (1, 3, 8):
        result, _ = evaluate(classifier, photos, tmp_path / f"in {size}", batch_size=size)
        assert scores_of(result) == pytest.approx(expected, rel=1e-6)
    back, _ = evaluate(
        classifier, photos[::-1], tmp_path / "back", targets=LABELS[::-1], image_ids=range(COUNT - 1, -1, -1)
    )
    assert scores_of(back)[::-1] == pytest.approx(expected, rel=1e-6)


def test_without_labels_the_model_s_choices_are_the_classes(
    classifier: Classifier, photos: list[Path], tmp_path: Path
) -> None:
    result, _ = evaluate(classifier, photos, tmp_path / "out", targets=None, batch_size=3)
    assert len(set(result.targets)) >= 4
    labelled, _ = evaluate(classifier, photos, tmp_path / "labelled", targets=result.targets, batch_size=4)
    assert scores_of(result) == scores_of(labelled)


@pytest.mark.slow
def test_what_is_finished_is_used_again_beside_the_same_files_alone(
    classifier: Classifier, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first, asked = evaluate(classifier, photos, out)
    assert asked == 2 * COUNT  # the image, and its composite
    again, asked = evaluate(classifier, photos, out)
    assert (asked, again.earlier) == (0, COUNT)
    assert scores_of(again) == scores_of(first)
    photos[3].write_bytes(photos[4].read_bytes())  # a partner of others is another image now
    changed, asked = evaluate(classifier, photos, out)
    assert (asked, changed.earlier) == (2 * COUNT, 0)
    assert scores_of(changed) != scores_of(first)
    fresh, _ = evaluate(classifier, photos, tmp_path / "fresh")
    assert scores_of(changed) == scores_of(fresh)
    relabelled, asked = evaluate(classifier, photos, out, targets=[*LABELS[:-1], 6])
    assert (asked, relabelled.earlier) == (2 * COUNT, 0)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_same_partners(
    classifier: Classifier, photos: list[Path], tmp_path: Path
) -> None:
    whole, _ = evaluate(classifier, photos, tmp_path / "whole", batch_size=2)
    calls = iter(range(100))

    def stop() -> None:
        if next(calls) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(classifier, photos, tmp_path / "out", batch_size=2, method=Squares(classifier, stop))
    resumed, asked = evaluate(classifier, photos, tmp_path / "out", batch_size=2)
    assert (asked, resumed.earlier) == (2 * (COUNT - 6), 6)
    assert scores_of(resumed) == scores_of(whole)


def test_an_unreadable_file_is_no_partner_and_costs_no_other_image(
    classifier: Classifier, photos: list[Path], tmp_path: Path
) -> None:
    broken = photos[2]
    broken.write_bytes(b"no image")
    failures: list[object] = []
    result, _ = evaluate(classifier, photos, tmp_path / "out", on_failure=failures.append)
    assert [failure.path for failure in result.failures] == [broken]
    assert len(failures) == 1
    keep = [k for k in range(COUNT) if k != 2]
    without, _ = evaluate(
        classifier,
        [photos[k] for k in keep],
        tmp_path / "without",
        targets=[LABELS[k] for k in keep],
        image_ids=keep,
    )
    assert scores_of(result) == scores_of(without)


@pytest.mark.slow
def test_an_image_that_fails_costs_itself_and_stays_a_partner(
    classifier: Classifier, photos: list[Path], tmp_path: Path
) -> None:
    whole, _ = evaluate(classifier, photos, tmp_path / "whole")
    result, _ = evaluate(classifier, photos, tmp_path / "out", method=Squares(classifier, refused=4))
    assert [failure.reason for failure in result.failures] == ["RuntimeError: refused"] * 2
    assert scores_of(result) == [score for score, label in zip(scores_of(whole), LABELS, strict=True) if label != 4]


def test_a_partner_that_is_gone_meanwhile_costs_the_images_beside_it(
    classifier: Classifier, photos: list[Path], tmp_path: Path
) -> None:
    method = Squares(classifier, lambda: photos[0].unlink(missing_ok=True))
    result, _ = evaluate(classifier, photos, tmp_path / "out", batch_size=2, method=method)
    assert 0 < len(result.failures) < COUNT
    assert all("object_0.png" in failure.reason for failure in result.failures)
    assert len(result.paths) + len(result.failures) == COUNT


def test_too_few_classes_are_refused_before_work(classifier: Classifier, photos: list[Path], tmp_path: Path) -> None:
    method = Squares(classifier)
    message = "grid_pointing: an image needs 3 partners of .* for class 0 there are images of 2 others"
    with pytest.raises(ValueError, match=message):
        evaluate(classifier, photos, tmp_path / "out", targets=[k % 3 for k in range(COUNT)], method=method)
    nine = Measurement(("grid_pointing",), {"grid_pointing": {"grid": 3}})
    with pytest.raises(ValueError, match="an image needs 8 partners of different other classes"):
        evaluate(classifier, photos, tmp_path / "out", measurement=nine, method=method)
    assert method.asked == 0


def test_native_cells_that_the_model_does_not_take_are_refused_before_work(photos: list[Path], tmp_path: Path) -> None:

    fixed = Classifier(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 96 * 96, 8)).eval(), input_size=96)
    native = Measurement(("grid_pointing",), {"grid_pointing": {"cells": "native"}})
    method = Squares(fixed)
    with pytest.raises(ValueError, match="grid_pointing: cells='native' makes composites of 192 x 192"):
        evaluate(fixed, photos, tmp_path / "out", measurement=native, method=method)
    assert method.asked == 0
    result, _ = evaluate(fixed, photos, tmp_path / "out")
    assert len(result.paths) == COUNT


@pytest.mark.slow
def test_both_commands_play_it(
    photos: list[Path], model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = [str(photos[0].parent), "--model", str(model_file), "--metric", "grid_pointing", "--seed", "3"]
    given += ["--grid-pointing-cells", "native", "--input-size", "96", "--steps", "1", "--samples", "1", "--views", "0"]
    study = ["study", "methods", "--variant", "fampe, path"]  # the model file, a program, has no layers
    for command, name in ((["evaluate"], "scores.json"), (study, "study.json")):
        out = tmp_path / command[0]
        assert main([*command, *given, "--out", str(out)]) == DONE
        written = json.loads((out / name).read_text())
        assert written["metrics"] == {"grid_pointing": {"grid": 2, "cells": "native", "seed": 3}}
        assert all(0 <= image["grid_pointing"][next(iter(written["methods"]))] <= 1 for image in written["images"])
        assert "grid pointing" in capsys.readouterr().out
    # One class for all: there is nothing to tell apart.
    assert main(["evaluate", *given, "--target", "1", "--out", str(tmp_path / "one")]) == UNUSABLE
    printed = capsys.readouterr().err
    assert "for class 1 there are images of 0 others" in printed
    assert printed.strip().count("\n") == 0
