"""Studies: they go on where they stopped, and what they report is what was scored."""

from __future__ import annotations

import copy
import importlib
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from fampe_fast import load_embedded_classifier
from fampe_fast.catalog import STUDIES
from fampe_fast.cli import DONE, SOME_FAILED, main
from fampe_fast.images import find_images
from fampe_fast.methods import create_method
from fampe_fast.methods.base import asks_for_gradients
from fampe_fast.metrics import Estimate, insertion_deletion
from fampe_fast.models.classifier import Classifier
from fampe_fast.plots.studies import StudyLine, study_figure
from fampe_fast.plots.times import TimePoint, times_figure
from fampe_fast.runs.measurement import Measurement
from fampe_fast.runs.study import StudyResult, as_json, as_table, report_files, run_study
from fampe_fast.runs.study_definitions import Budget, define_study
from fampe_fast.runs.study_design import Study, Variant

from ..images_for_tests import draw

QUICK = {"steps": 1, "samples": 2, "views": 0}
SMALL = Study(
    "small",
    "Does it run?",
    (
        Variant("attexplore", "attexplore", QUICK),
        Variant("alpha=0.2", "fampe", {**QUICK, "alpha": 0.2}, "alpha", 0.2, "fampe"),
        Variant("alpha=0.8", "fampe", {**QUICK, "alpha": 0.8}, "alpha", 0.8, "fampe"),
    ),
)


@pytest.fixture(scope="module")
def classifier():
    return load_embedded_classifier()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos", 3, seed=11, name="{}.png")


def areas(steps: int, **options) -> Measurement:
    return Measurement(options={"insertion_deletion": {"steps": steps, **options}})


def run(classifier, photos: Path, out: Path, *, measurement: Measurement | None = None, **options) -> StudyResult:
    paths = find_images([photos])
    return run_study(SMALL, classifier, paths, out, measurement=measurement or areas(4), **options)


def insertion_of(result: StudyResult, label: str) -> list[float]:
    return result.comparison.scores[label].values["insertion"]


@pytest.mark.slow
def test_scores_are_those_of_the_methods_and_the_metric(classifier, photos: Path, tmp_path: Path) -> None:
    (photos / "1.png").write_bytes(b"nothing")  # a bad image costs that image, and moves no other one's random numbers
    result = run(classifier, photos, tmp_path / "out", targets=[4, 5, 6], batch_size=2, measurement=areas(4, passes=3))
    found = result.comparison
    assert [path.name for path in found.paths] == ["0.png", "2.png"]
    assert found.targets == [4, 6]
    assert [failure.path.name for failure in found.failures] == ["1.png"]
    last = classifier.transform(Image.open(photos / "2.png").convert("RGB"))[None]
    for outcome in result.outcomes:
        method = create_method(outcome.variant.method, classifier, **outcome.variant.options)
        maps = method.attribute(last, [6], image_ids=[2])
        expected = insertion_deletion(classifier, last, maps, 6, steps=4, passes=3)
        scores = found.scores[outcome.variant.label].values
        assert scores["insertion"][1] == pytest.approx(float(expected.insertion), abs=2e-3)
        assert scores["deletion"][1] == pytest.approx(float(expected.deletion), abs=2e-3)
        assert outcome.passes == 2


@pytest.mark.slow
def test_an_interrupted_study_goes_on(classifier, photos: Path, tmp_path: Path, monkeypatch) -> None:
    whole = run(classifier, photos, tmp_path / "whole", batch_size=1)
    settled = []

    def stop(count: int) -> None:
        settled.append(count)
        if sum(settled) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(classifier, photos, tmp_path / "out", batch_size=1, on_scores=stop)
    assert json.loads((tmp_path / "out" / "study.json").read_text())["outcomes"][0]["insertion"]["n"] == 1
    with (tmp_path / "out" / "scores.jsonl").open("a") as file:
        file.write('{"context": "1", "resul')  # killed while it wrote
    scored = []
    module = importlib.import_module("fampe_fast.metrics.insertion_deletion")
    monkeypatch.setattr(
        module, "insertion_deletion", lambda *a, **k: scored.append(len(a[1])) or insertion_deletion(*a, **k)
    )
    again = run(classifier, photos, tmp_path / "out", batch_size=2, on_scores=settled.append)
    assert sum(scored) == 9 - 5  # each finished score once
    for label in again.comparison.scores:  # another batch size may move the model's last bits
        assert insertion_of(again, label) == pytest.approx(insertion_of(whole, label), abs=2e-3)
    assert run(classifier, photos, tmp_path / "out").comparison.scores == again.comparison.scores
    assert sum(scored) == 9 - 5


@pytest.mark.slow
def test_other_images_models_and_settings_are_not_mixed_in(
    classifier, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that holds a study of something else gives what a new folder gives, and keeps what it held."""
    paths = find_images([photos])
    retrained, renormalised = copy.deepcopy(classifier), copy.deepcopy(classifier)
    next(retrained.parameters()).data[0].mul_(1.5)
    renormalised.mean.add_(0.1)
    other = Study("small", "?", (*SMALL.variants[:2], Variant("alpha=0.8", "fampe", {**QUICK, "alpha": 0.7})))
    runs = [
        (SMALL, classifier, paths[:2], [4, 5], 4),
        (SMALL, classifier, paths[:2], [4, 6], 4),
        (SMALL, classifier, paths[:2], None, 4),
        (SMALL, classifier, paths[::-1][:2], [6, 5], 4),
        (SMALL, classifier, paths[:2], [4, 5], 2),
        (SMALL, retrained, paths[:2], [4, 5], 4),
        (SMALL, renormalised, paths[:2], [4, 5], 4),
        (other, classifier, paths[:2], [4, 5], 4),
    ]
    monkeypatch.setattr("fampe_fast.runs.study.write_report", lambda *found: None)  # its pictures take most of the time
    seen = []
    for k, (study, model, files, targets, steps) in enumerate(runs):
        options = {"targets": targets, "measurement": areas(steps), "batch_size": 1}
        mixed = run_study(study, model, files, tmp_path / "out", **options)
        fresh = run_study(study, model, files, tmp_path / str(k), **options)
        found = [mixed.comparison.scores[label].values for label in mixed.comparison.scores]
        assert found == [fresh.comparison.scores[label].values for label in fresh.comparison.scores]
        assert found not in seen
        seen.append(found)
    study, model, files, targets, steps = runs[0]
    again = run_study(study, model, paths, tmp_path / "out", targets=[4, 5, 6], measurement=areas(4), batch_size=1)
    assert again.comparison.earlier == 2  # and a third one behind them
    assert len(again.comparison.paths) == 3


@pytest.mark.slow
def test_every_metric_can_be_studied(classifier, photos: Path, tmp_path: Path) -> None:
    measurement = Measurement(
        ("stability", "mu_fidelity"), {"stability": {"samples": 2}, "mu_fidelity": {"samples": 10}}, 3
    )
    result = run(classifier, photos, tmp_path / "out", measurement=measurement)
    assert [score.name for score in result.scores] == ["mu_fidelity", "stability"]
    written = json.loads((tmp_path / "out" / "study.json").read_text())
    assert written["outcomes"][1]["stability"]["n"] == 3
    assert "protocol" not in written
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| variant | passes | mu-fidelity | stability | mu-fidelity gained | stability gained |" in table
    with Image.open(tmp_path / "out" / "plot.png") as picture:
        assert min(picture.size) > 400


def test_what_a_filter_filters_is_on_record(classifier, photos: Path, tmp_path: Path) -> None:
    def study(cutoff: float, steps: int) -> Study:
        options = {"steps": steps, "samples": 1, "map_cutoff": cutoff}
        return Study("filters", "?", (Variant("filtered", "forgrad_fampe", options),))

    paths, out = find_images([photos])[:1], tmp_path / "out"
    for count, asked in enumerate((study(9, 1), study(8, 1), study(9, 2)), 1):
        assert not run_study(asked, classifier, paths, out, measurement=areas(2)).comparison.earlier
        contexts = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()[1:]]
        filters = [line["settings"]["method"] for line in contexts if line.get("settings", {}).get("method")]
        assert len(filters) == count
        assert filters[-1]["map_cutoff"] == asked.variants[0].options["map_cutoff"]
        assert filters[-1]["filtered"]["config"]["steps"] == asked.variants[0].options["steps"]


def test_the_table_pairs_the_images(classifier, photos: Path, tmp_path: Path) -> None:
    result = run(classifier, photos, tmp_path / "out")
    insertion = {
        label: torch.tensor(insertion_of(result, label), dtype=torch.float64) for label in ("attexplore", "alpha=0.8")
    }
    difference = insertion["alpha=0.8"] - insertion["attexplore"]
    gain = result.outcomes[2].gains["insertion"]
    assert gain.mean == pytest.approx(float(difference.mean()))
    assert gain.standard_error == pytest.approx(float(difference.std() / 3**0.5))
    assert as_table(result).splitlines()[4].endswith(" |  |  |")  # the first is compared with nothing
    row = as_table(result).splitlines()[-1]
    share = float(difference.mean() / insertion["attexplore"].mean())
    assert f"{gain.mean:+.3f} ± {gain.standard_error:.3f} ({share:+.1%})" in row
    data = json.loads(as_json(result))
    assert data["outcomes"][2]["insertion_gain"]["mean"] == gain.mean
    assert len(data["images"]) == 3


def test_a_gain_has_no_share_of_a_score_below_zero(classifier, photos: Path, tmp_path: Path) -> None:
    result = run(classifier, photos, tmp_path / "out")
    with_share = as_table(result).splitlines()[-1]
    assert with_share.count("%)") == 1  # of insertion; deletion is better where it is low
    scores = result.comparison.scores["attexplore"].values["insertion"]
    scores[:] = [score - 2 for score in scores]
    below = as_table(StudyResult(result.study, result.comparison)).splitlines()[-1]
    assert "%)" not in below
    assert below.split(" | ")[:4] == with_share.split(" | ")[:4]


@pytest.mark.slow
def test_a_report_is_a_table_a_plot_and_json(classifier, photos: Path, tmp_path: Path) -> None:
    result = run(classifier, photos, tmp_path / "out")
    written = report_files(result, tmp_path / "out")
    assert [path.name for path in written] == ["study.json", "table.md", "times.png", "plot.png", "choices.png"]
    for path in written[2:]:
        with Image.open(path) as picture:
            assert min(picture.size) > 400
    (photos / "a.png").write_bytes(b"nothing")
    lost = run_study(SMALL, classifier, [photos / "a.png"], tmp_path / "none")
    assert report_files(lost, tmp_path / "none") == []
    assert not (tmp_path / "none").exists()


def test_the_plot_shows_the_points(tmp_path: Path) -> None:
    points = [
        (value, Estimate(0.1 * value, 0.01, 4), Estimate(0.9 - 0.1 * value, None, 1)) for value in (3.0, 1.0, 2.0)
    ]
    figure = study_figure(
        [StudyLine("x", "one", points), StudyLine("y", "two", points)], title="t", reference=("r", 0.7, 0.2)
    )
    assert len(figure.axes) == 4
    for axes, row in ((figure.axes[0], [0.1, 0.2, 0.3]), (figure.axes[1], [0.8, 0.7, 0.6])):
        line = next(line for line in axes.lines if len(line.get_xdata()) == 3)
        assert list(line.get_xdata()) == [1.0, 2.0, 3.0]
        assert list(line.get_ydata()) == pytest.approx(row)
    with pytest.raises(ValueError, match="at least one"):
        study_figure([], title="t")


@pytest.mark.parametrize("name", [name for name in STUDIES if name not in ("shapes", "forgrad")])
def test_studies_vary_what_they_say_and_nothing_else(name: str, classifier) -> None:
    study = define_study(name, Budget(3, 4, 5, {"eps": 0.05}))
    reference, *others = study.variants
    assert reference.method == "attexplore"
    plain = create_method("fampe", classifier, steps=3, samples=4, views=0, seed=5, eps=0.05).config
    if name in ("methods", "peers", "tokens", "explorer"):
        if name in ("peers", "tokens"):
            pytest.importorskip("captum")
            pytest.importorskip("pytorch_grad_cam")
            passes = [create_method(v.method, classifier, **v.options).passes for v in study.variants]
            one_pass = [1, 1, 1, 1, 1, 1, 1, 1]
            peers = [12, 1, 2, 10, 12, 10, 10, *[12] * 7, *one_pass, 24, 0, 0]
            assert passes == (peers if name == "peers" else [12, 1, 10, 1, 1, 1, 1, 1, 0, 0])
        assert any(variant.label in ("fampe", "fampe, path", "fampe, 10 passes") for variant in others)
        assert any(variant.explored for variant in others) == (name == "explorer")
        for variant in others:
            create_method(variant.method, classifier, **variant.options)
        return
    varied = {"alpha": {"alpha", "mode"}, "cutoff": {"tau", "include_dc", "cutoff"}, "budget": {"steps", "samples"}}
    for variant in others:
        assert variant.axis
        config = create_method(variant.method, classifier, **variant.options).config
        changed = {field for field in vars(plain) if getattr(config, field) != getattr(plain, field)}
        assert changed <= varied.get(name, {"sigma", "rho"})
        if name == "budget":
            assert variant.value == config.steps * config.samples
        elif variant.axis in vars(config):
            assert variant.value == getattr(config, variant.axis)
    assert len({(v.axis, v.series, v.value) for v in others}) == len(others)


def test_the_shapes_are_compared_in_both_readings(classifier) -> None:
    reference, *others = define_study("shapes", Budget(3, 4, 5, {"eps": 0.05})).variants
    assert reference.method == "attexplore"
    plain = create_method("fampe", classifier, steps=3, samples=4, views=0, seed=5, eps=0.05).config
    compared = product(("mix", "modulate"), ("gaussian", "disc", "butterworth"))
    for variant, (mode, shape) in zip(others, compared, strict=True):
        config = create_method(variant.method, classifier, **variant.options).config
        assert config == replace(plain, mode=mode, mask_shape=shape)
        assert variant.label == f"{shape}, {mode}"


def test_forgrad_is_compared_with_what_it_filters_and_with_methods_without_gradients(classifier) -> None:
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    variants = define_study("forgrad", Budget(2, 5)).variants
    methods = [create_method(variant.method, classifier, **variant.options) for variant in variants]
    assert [asks_for_gradients(method) for method in methods] == [True] * 8 + [False] * 6
    assert [method.passes for method in methods] == [1, 1, 10, 10, 10, 10, 1, 1, 2, 10, 20, 100, 0, 0]
    for plain, filtered in zip(variants[:6:2], variants[1:6:2], strict=True):
        assert (filtered.method, filtered.options) == (f"forgrad_{plain.method}", plain.options)
    assert len(define_study("forgrad", Budget(1, 1)).variants) == 13  # RISE with no masks is none


@pytest.mark.slow
def test_the_scores_are_drawn_against_the_time(classifier, photos: Path, tmp_path: Path) -> None:
    points = [
        TimePoint("slow", 2.0, Estimate(0.5, 0.1, 4), False),
        TimePoint("fast", 0.01, Estimate(0.2, None, 1), True),
        TimePoint("worse", 0.5, Estimate(0.1, 0.1, 4), True),
    ]
    for high, best in ((True, [0.01, 2.0]), (False, [0.01, 0.5])):
        figure = times_figure(points, title="t", score="s", high=high)
        (axes,) = figure.axes
        assert list(axes.get_lines()[0].get_xdata()) == best
    words = [text.get_text() for text in figure.texts]
    assert "1 slow: 0.500, 2 s" in words
    assert "2 fast: 0.200, 10 ms" in words
    for wrong in ([], [TimePoint("x", 0.0, Estimate(0, None, 1), True)]):
        with pytest.raises(ValueError, match="at least one point, each of more than 0 seconds"):
            times_figure(wrong, title="t", score="s")
    result = run(classifier, photos, tmp_path / "out")
    assert all(outcome.seconds > 0 and outcome.gradients for outcome in result.outcomes)
    assert (tmp_path / "out" / "times.png").exists()


def test_a_number_of_passes_is_no_variant_twice() -> None:
    labels = [variant.label for variant in define_study("peers", Budget(5, 2)).variants]
    assert labels[1:4] == ["fampe, 1 pass", "fampe, 2 passes", "fampe, 10 passes"]


def test_fampe_as_it_is_used_has_its_own_views(classifier) -> None:
    """What every variant is given is held by those that do not vary it."""
    for variant in define_study("peers", Budget(5, 2, options={"views": 0, "alpha": 0.3})).variants[1:4]:
        method = create_method(variant.method, classifier, **variant.options)
        assert variant.label == f"fampe, {method.passes} {'pass' if method.passes == 1 else 'passes'}"
        assert method.config.views
        assert method.config.alpha == 0.3


def test_options_of_depths_are_for_variants_with_depths(classifier) -> None:
    variants = define_study("methods", Budget(1, 2, options={"gate_floor": 0.7, "layers": "a,b"})).variants
    configs = [create_method(variant.method, classifier, **variant.options).config for variant in variants]
    for config in configs:
        assert (config.gate_floor, config.layer_names) == ((0.7, ("a", "b")) if config.views else (0.5, ()))
    assert sum(bool(config.views) for config in configs) == 1
    with pytest.raises(ValueError, match="of the study 'alpha' has views.* leave out layers, gate_floor"):
        define_study("alpha", Budget(options={"gate_floor": 0.7, "layers": "a"}))
    _, *others = define_study("alpha", Budget(options={"gate_floor": 0.7, "views": 2})).variants
    assert all(variant.options["gate_floor"] == 0.7 for variant in others)


def test_bad_definitions_are_named() -> None:
    with pytest.raises(ValueError, match="unknown study 'beta'; known are methods"):
        define_study("beta")
    with pytest.raises(ValueError, match="no variants"):
        Study("s", "?", ())
    with pytest.raises(ValueError, match="labels must differ, got a"):
        Study("s", "?", (Variant("a", "fampe"), Variant("a", "attexplore")))


@pytest.mark.slow
def test_the_command(photos: Path, tmp_path: Path, capsys, classifier) -> None:
    model = tmp_path / "small.pt"
    torch.jit.trace(classifier, torch.rand(2, 3, 96, 96)).save(str(model))
    labels = tmp_path / "labels.csv"
    labels.write_text("".join(f"{k}.png,{k}\n" for k in range(3)))
    out = tmp_path / "out"
    base = ["study", "noise", str(photos), "--labels", str(labels), "--model", str(model), "--out", str(out)]
    base += ["--input-size", "64"]
    base += ["--steps", "1", "--samples", "1", "--views", "0", "--metric-steps", "2", "--alpha", "0.4"]
    assert main(base) == DONE
    table = capsys.readouterr().out
    for word in ("sigma=16/255", "rho=0.75", "ins. gained", "plot.png"):
        assert word in table
    before = (out / "scores.jsonl").read_text()
    assert json.loads((out / "study.json").read_text())["methods"]["rho=1"]["config"]["alpha"] == 0.4
    assert main(base) == DONE
    assert capsys.readouterr().out == table
    assert (out / "scores.jsonl").read_text() == before
    assert main([*base, "--alpha", "0.5"]) == DONE
    assert json.loads((out / "study.json").read_text())["methods"]["rho=1"]["config"]["alpha"] == 0.5
    assert (out / "scores.jsonl").read_text().startswith(before)
    (photos / "0.png").write_bytes(b"nothing")
    assert main([*base[:-2], "--out", str(tmp_path / "other")]) == SOME_FAILED


def test_another_model_explores(classifier, photos: Path, tmp_path: Path) -> None:
    study = define_study("explorer", Budget(1, 2))
    paths = find_images([photos])
    with pytest.raises(ValueError, match="needs another model"):
        run_study(study, classifier, paths, tmp_path / "none")
    size = classifier.input_size
    for other, message in (
        (Classifier(nn.Linear(3, 7), name="seven", num_classes=7, input_size=size), "classes and seven has 7"),
        (Classifier(nn.Linear(1, 4), name="grey", channels=1, input_size=size), "channels and grey takes 1"),
    ):
        with pytest.raises(ValueError, match=message):
            run_study(study, classifier, paths, tmp_path / "none", explorer=other)
    assert not (tmp_path / "none").exists()
    result = run_study(study, classifier, paths, tmp_path / "out", explorer=classifier, measurement=areas(4))
    by_label = {outcome.variant.label: outcome for outcome in result.outcomes}
    assert by_label["fampe, other explorer"].passes == 2 * by_label["fampe"].passes
    # The model as its own explorer walks its own path.
    assert by_label["fampe, other explorer"].means["insertion"].mean == pytest.approx(
        by_label["fampe"].means["insertion"].mean, abs=1e-3
    )
