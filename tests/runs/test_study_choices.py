"""The choice per image along a study's line: what it gains, and what it follows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fampe_fast import FAMPE, load_embedded_classifier
from fampe_fast.images import find_images
from fampe_fast.metrics.rank_correlation import rank_correlation
from fampe_fast.plots.choices import ChoicePanel, choices_figure
from fampe_fast.runs.comparison import Comparison
from fampe_fast.runs.measurement import Measurement, Scores
from fampe_fast.runs.study import StudyResult, run_study
from fampe_fast.runs.study_choices import (
    choices_json,
    choices_of,
    choices_rows,
    choices_table,
    correlation,
    image_cutoffs,
    tau_of,
)
from fampe_fast.runs.study_definitions import Budget, define_study
from fampe_fast.runs.study_design import Study, Variant

from ..images_for_tests import draw

VALUES = (0.5, 0.0, 1.0)  # not in order: ties go to the smallest value, not to the first variant


def study_of(insertion, deletion, metrics=("insertion_deletion",), **more) -> tuple[Study, Comparison]:
    """Make a study of one line, with made-up scores: a row per value of ``VALUES``, a column per image."""
    line = [Variant(f"x={value}", "fampe", {}, "x", value, "x") for value in VALUES]
    study = Study("made-up", "?", (Variant("first", "attexplore"), *line))
    count = len(insertion[0])
    scores = {"first": Scores({"insertion": [0.0] * count, "deletion": [0.0] * count})}
    for k, variant in enumerate(line):
        scores[variant.label] = Scores({"insertion": list(insertion[k]), "deletion": list(deletion[k])})
        for name, rows in more.items():
            scores[variant.label].values[name] = list(rows[k])
    paths = [Path(f"{k}.png") for k in range(count)]
    return study, Comparison(Measurement(metrics), {}, {}, paths, scores=scores)


def test_the_best_of_each_image_and_its_gain() -> None:
    #           images:  0    1    2    3
    insertion = [[0.5, 0.2, 0.5, 0.6], [0.5, 0.9, 0.1, 0.6], [0.1, 0.3, 0.8, 0.6]]
    deletion = [[0.1, 0.1, 0.1, 0.1], [0.1, 0.3, 0.1, 0.1], [0.1, 0.1, 0.4, 0.1]]
    (choice,) = choices_of(*study_of(insertion, deletion), {"a": [1, 2, 3, 4]})
    # Insertion − deletion: 0.4 0.1 0.4 0.5 at 0.5; 0.4 0.6 0.0 0.5 at 0; 0.0 0.2 0.4 0.5 at 1.
    assert (choice.axis, choice.series, choice.chosen_by.name) == ("x", "x", "faithfulness")
    assert choice.best == (0.0, 0.0, 0.5, 0.0)
    assert choice.single == 0.0  # means 0.35, 0.375, 0.275
    optimistic, by_insertion, by_deletion = choice.gains
    assert optimistic.judged_by is optimistic.chosen_by is choice.chosen_by
    assert optimistic.over_single.estimate.mean == pytest.approx(0.4 / 4)  # image 2 alone: 0.4 for 0
    # Insertion chooses 0, 0, 1, 0 against 0 for all; image 2 has deletion 0.4 for 0.1, which is worse.
    assert (by_insertion.chosen_by.name, by_insertion.judged_by.name) == ("insertion", "deletion")
    assert by_insertion.over_single.estimate.mean == pytest.approx(-0.3 / 4)
    # Deletion is best at 0.5 on average, chosen per image 0, 0.5, 0, 0: insertion 0.5 0.2 0.1 0.6 for 0.5 0.2 0.5 0.6.
    assert by_deletion.over_single.estimate.mean == pytest.approx(-0.4 / 4)
    low, high = by_deletion.over_single.interval
    assert low < by_deletion.over_single.estimate.mean < high <= 0
    # Insertion's 0, 0, 1, 0 dealt out: image 0 gets 0, 1, 0 from the others, all of deletion 0.1; image 1 gets 0.3, 0.1
    # and 0.3 for 0.3; image 2 0.1 three times for 0.4; image 3 0.1 for 0.1.
    assert by_insertion.over_dealt.estimate.mean == pytest.approx((0 - (0.3 - 0.7 / 3) - 0.3 + 0) / 4)
    assert (choice.score.mean, choice.score.n) == (pytest.approx(0.375), 4)


def test_what_only_looks_like_a_gain_is_told_by_the_other_score() -> None:
    """Scores of noise: picking the best of three gains by the score that picked, and nothing by the other."""
    noise = np.random.default_rng(3).normal(0.5, 0.1, (2, 3, 400))
    (choice,) = choices_of(*study_of(*noise.tolist()), {})
    optimistic, *honest = choice.gains
    assert optimistic.over_single.interval[0] > 0.08
    for gain in honest:
        for found in (gain.over_single, gain.over_dealt):
            assert found.interval[0] < 0 < found.interval[1]
            assert abs(found.estimate.mean) < 0.02
    low, high = choice.agreements["insertion", "deletion"].interval
    assert low < 0 < high


def test_a_choice_that_images_do_have_is_found_by_either_score() -> None:
    rng = np.random.default_rng(4)
    own = rng.integers(0, 3, 200)
    good = np.eye(3)[own].T * 0.3
    (choice,) = choices_of(
        *study_of(
            (good + rng.normal(0.4, 0.05, good.shape)).tolist(), (-good + rng.normal(0.6, 0.05, good.shape)).tolist()
        ),
        {"follows": np.asarray(VALUES)[own].tolist(), "does not": rng.permutation(200).tolist()},
    )
    for gain in choice.gains[1:]:
        assert gain.over_single.estimate.mean == pytest.approx(0.2, abs=0.03)
        assert gain.over_dealt.estimate.mean == pytest.approx(0.2, abs=0.03)
        assert min(gain.over_single.interval[0], gain.over_dealt.interval[0]) > 0.15
    assert choice.agreements["insertion", "deletion"].value > 0.9
    assert choice.relations["follows"].interval[0] > 0.9
    low, high = choice.relations["does not"].interval
    assert low < 0 < high


def test_what_the_values_differ_in_is_not_taken_for_the_images() -> None:
    """Insertion prefers a value with bad deletion, by a hair: any other choice is better, whoever's it is."""
    rng = np.random.default_rng(5)
    insertion = rng.normal(0.5, 0.1, (3, 400)) + np.array([[0.0], [0.0], [0.02]])
    deletion = rng.normal(0.1, 0.01, (3, 400)) + np.array([[0.0], [0.0], [0.2]])
    (choice,) = choices_of(*study_of(insertion.tolist(), deletion.tolist()), {})
    by_insertion = choice.gains[1]
    assert by_insertion.over_single.interval[0] > 0.1
    low, high = by_insertion.over_dealt.interval
    assert low < 0 < high


def test_one_image_has_no_intervals() -> None:
    (choice,) = choices_of(*study_of([[0.1], [0.2], [0.3]], [[0.1], [0.1], [0.1]]), {"a": [3.0]})
    assert choice.best == (choice.single,) == (1.0,)
    assert all(gain.over_dealt.interval is gain.over_single.interval is None for gain in choice.gains)
    assert choice.relations["a"].value is None
    assert choices_rows([choice], 0.9)[2] == ["insertion − deletion of that", "0.200"]


def test_other_metrics_choose_where_insertion_is_not_measured() -> None:
    rows = [[0.1, 0.5], [0.2, 0.4], [0.3, 0.1]]
    made = study_of(rows, rows, ("mu_fidelity",), mu_fidelity=rows)
    (choice,) = choices_of(*made, {})
    assert choice.chosen_by.name == "mu_fidelity"
    assert choice.best == (1.0, 0.5)
    assert [gain.judged_by.name for gain in choice.gains] == ["mu_fidelity"]
    made = study_of(rows, rows, ("stability",), stability=rows)  # low is better
    assert choices_of(*made, {})[0].best == (0.5, 1.0)


def test_a_line_needs_two_variants_and_images() -> None:
    rows = [[0.1], [0.2], [0.3]]
    study, comparison = study_of(rows, rows)
    assert choices_of(study.only(["x=1.0"]), comparison, {}) == []
    assert len(choices_of(study.only(["x=1.0", "x=0.0"]), comparison, {})) == 1
    assert choices_of(study, Comparison(Measurement(), {}, {}), {}) == []


@pytest.mark.slow
def test_correlations_have_intervals_that_hold() -> None:
    a = torch.arange(20.0)
    assert correlation(a, a**3).value == 1.0
    assert correlation(a, a**3).interval == (1.0, 1.0)
    assert correlation(a, -a).value == -1.0
    assert correlation(a, torch.ones(20)).value is None
    assert correlation(a[:1], a[:1]).value is None
    assert correlation(a[:3], a[:3]).interval is None
    # Of 100 samples of a correlated pair, tied as eleven values are, nearly 95 intervals hold the truth.
    rng = np.random.default_rng(0)

    def pair(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = rng.multivariate_normal([0, 0], [[1, 0.4], [0.4, 1]], count).T
        return torch.from_numpy(np.clip(np.round(2 * x + 5), 0, 10)), torch.from_numpy(np.round(8 * y))

    truth = float(rank_correlation(*(values[None] for values in pair(20000))))
    intervals = [correlation(*pair(50)).interval for _ in range(100)]
    assert 88 <= sum(low <= truth <= high for low, high in intervals) <= 99


def test_the_cutoffs_are_those_of_the_method(tmp_path: Path) -> None:
    classifier = load_embedded_classifier()
    paths = find_images([draw(tmp_path / "photos", 3, seed=5, name="{}.png")])
    images = torch.stack([classifier.transform(Image.open(path).convert("RGB")) for path in paths])
    found = image_cutoffs(classifier, [*paths, tmp_path / "lost.png"], 0.8)
    for name, include_dc in {"with DC": True, "without DC": False}.items():
        _, details = FAMPE(classifier, steps=1, samples=1, views=0, tau=0.8, include_dc=include_dc).attribute(
            images, 0, return_details=True
        )
        assert found[name][:3] == details.cutoff.tolist()
        assert np.isnan(found[name][3])


def test_the_share_is_the_variants_own() -> None:
    assert tau_of(define_study("alpha", Budget(options={"tau": 0.8}))) == 0.8
    assert tau_of(define_study("alpha")) == tau_of(define_study("cutoff")) == 0.9


@pytest.mark.slow
def test_the_report_has_the_choices(tmp_path: Path) -> None:
    classifier = load_embedded_classifier()
    photos = draw(tmp_path / "photos", 4, seed=5, name="{}.png")
    out = tmp_path / "out"
    labels = [f"alpha={alpha}, {mode}" for mode in ("mix", "modulate") for alpha in ("0", "0.5", "1")]
    study = define_study("alpha", Budget(1, 1)).only(labels)
    options = {"insertion_deletion": {"steps": 2}}
    result = run_study(study, classifier, find_images([photos]), out, measurement=Measurement(options=options))
    assert [choice.series for choice in result.choices] == ["mix", "modulate"]
    written = json.loads((out / "study.json").read_text())["choices"]
    assert written == json.loads(json.dumps(choices_json(result.choices, result.cutoffs, 0.9)))
    assert len(written["lines"][1]["best"]) == len(written["cutoffs"]["without DC"]) == 4
    table = (out / "table.md").read_text()
    assert choices_table(result.choices, 0.9) in table
    assert "| chosen per image | alpha, mix | alpha, modulate |" in table
    assert [row[0] for row in choices_rows(result.choices, 0.9)][3:10] == [
        "best per image, quartiles",
        "insertion − deletion better by, chosen by insertion − deletion (optimistic)",
        "deletion better by, chosen by insertion",
        "… than dealt to other images",
        "insertion better by, chosen by deletion",
        "… than dealt to other images",
        "rank correlation of the choices by insertion and by deletion",
    ]
    again = run_study(study, classifier, find_images([photos]), out, measurement=Measurement(options=options))
    assert again.choices == result.choices
    assert StudyResult(study, Comparison(Measurement(), {}, {})).choices == []


def test_the_picture_has_a_dot_for_each_image() -> None:
    panel = ChoicePanel([1.0, 1.0, 2.0, float("nan")], [0.5, 0.5, 0.1, 0.3], 0.5, "with DC", "+0.10")
    figure = choices_figure({"one": [panel], "two": [panel]}, title="t")
    assert len(figure.axes) == 2
    (dots,) = figure.axes[0].collections
    assert dots.get_offsets().tolist() == [[1.0, 0.5], [2.0, 0.1]]
    assert dots.get_sizes()[0] == 2 * dots.get_sizes()[1]
    for wrong in ({}, {"one": []}, {"one": [panel], "two": []}):
        with pytest.raises(ValueError, match="at least one"):
            choices_figure(wrong, title="t")
    with pytest.raises(ValueError, match="'one': 1 best values for 2 cut-offs"):
        choices_figure({"one": [ChoicePanel([1, 2], [1], 1, "", "")]}, title="t")
