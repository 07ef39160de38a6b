"""``fampe-fast calibrate``, and the run below it: what it finds, what it keeps on disk, and the flag that reads it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fampe_fast import FAMPE, Classifier, DepthCalibration, calibrate_depths, load_classifier
from fampe_fast.cli import DONE, SOME_FAILED, UNUSABLE, main
from fampe_fast.methods.base import PathMethod
from fampe_fast.methods.calibration import read_calibrations
from fampe_fast.metrics import Estimate
from fampe_fast.models.identity import identity_of
from fampe_fast.runs.calibrate import Calibrating, calibrate_files

from ..images_for_tests import draw
from ..models_for_tests import Rolled

COUNT = 6
OPTIONS = {"protocol": "per_pixel", "metric_steps": 4, "targets": [0] * COUNT}


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def misled() -> Classifier:
    return Classifier(Rolled.misled(), name="rolled", input_size=64, transform=to_tensor, num_classes=2).eval()


@pytest.fixture
def classifier() -> Classifier:
    return misled()


def squares(folder: Path) -> list[Path]:
    """Draw images of squares of 4 pixels, each of one brightness."""
    folder.mkdir()
    for k in range(COUNT):
        drawn = torch.rand(16, 16, generator=torch.Generator().manual_seed(k))
        levels = (255 * (0.2 + 0.8 * drawn)).round().byte().repeat_interleave(4, 0).repeat_interleave(4, 1)
        Image.fromarray(levels[:, :, None].expand(-1, -1, 3).numpy()).save(folder / f"image_{k}.png")
    return sorted(folder.glob("*.png"))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return squares(tmp_path / "images")


def method_of(classifier: Classifier, **options: Any) -> FAMPE:
    return FAMPE(classifier, passes=1, layers="model.rolled,model.unrolled,model.coarse", **options)


def run(classifier: Classifier, paths: list[Path], out: Path, **options: Any) -> Calibrating:
    given = {**OPTIONS, "targets": [0] * len(paths), **options}
    return calibrate_files(classifier, method_of(classifier), paths, out, **given)


def found_by(classifier: Classifier, paths: list[Path], out: Path, **options: Any) -> DepthCalibration:
    found = run(classifier, paths, out, **options).found
    assert found is not None
    return found


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the images that evidence is collected of."""
    seen: list[int] = []
    attribute = PathMethod.attribute

    def counting(self: Any, inputs: Tensor, *rest: Any, **options: Any) -> Any:
        seen.extend(options["image_ids"])
        return attribute(self, inputs, *rest, **options)

    monkeypatch.setattr(PathMethod, "attribute", counting)
    return seen


# What is found --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_files_give_what_the_library_finds(classifier: Classifier, paths: list[Path], tmp_path: Path) -> None:
    stages: list[str] = []
    out = tmp_path / "deep" / "out"
    found = found_by(classifier, paths, out, on_stage=lambda stage, total: stages.append(stage))
    images = torch.stack([to_tensor(Image.open(path)) for path in paths])
    batches = [(images, torch.zeros(COUNT, dtype=torch.long))]
    expected = calibrate_depths(classifier, batches, method_of(classifier), protocol="per_pixel", metric_steps=4)
    assert found.layer_weights[0] == 0
    scores = ("score", "default_score", "held_out")
    assert {**asdict(found), **dict.fromkeys(scores)} == {**asdict(expected), **dict.fromkeys(scores)}
    for name in scores:
        assert asdict(getattr(found, name)) == pytest.approx(asdict(getattr(expected, name)), abs=1e-6)
    assert DepthCalibration.load(out / "calibrations.json", classifier) == found
    assert sorted(path.name for path in out.iterdir()) == ["calibrations.json", "calibrations.jsonl"]
    assert stages == ["evidence", "combinations"]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_do_not_matter(batch_size: int, classifier: Classifier, paths: list[Path], tmp_path: Path) -> None:
    whole = found_by(classifier, paths, tmp_path / "whole")
    parts = found_by(classifier, paths, tmp_path / "parts", batch_size=batch_size)
    assert parts.options == whole.options
    assert parts.score.mean == pytest.approx(whole.score.mean, abs=1e-5)
    assert parts.held_out is not None
    assert whole.held_out is not None
    assert parts.held_out.mean == pytest.approx(whole.held_out.mean, abs=1e-5)


@pytest.mark.slow
def test_without_halves_there_is_nothing_held_out(classifier: Classifier, paths: list[Path], tmp_path: Path) -> None:
    assert found_by(classifier, paths, tmp_path / "off", held_out=False).held_out is None
    assert found_by(classifier, paths[:3], tmp_path / "few").held_out is None
    with_halves = found_by(classifier, paths[:4], tmp_path / "four").held_out
    assert with_halves is not None
    assert with_halves.n == 4


@pytest.mark.slow
def test_what_fails_costs_itself(
    classifier: Classifier, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fampe_fast.methods.tuning import Faithfulness

    broken = tmp_path / "images" / "image_9.png"
    broken.write_bytes(b"nothing")
    judge = Faithfulness.__call__
    refused = to_tensor(Image.open(paths[1]))

    def fails(self: Any, images: Tensor, targets: Tensor, maps: Tensor, radius: int | None) -> list[float]:
        scores: list[float] = judge(self, images, targets, maps, radius)
        if asked[0] > 3 and any(torch.equal(image, refused) for image in images):
            raise ValueError("not this one with those weights")
        asked[0] += 1
        return scores

    asked = [0]
    monkeypatch.setattr(Faithfulness, "__call__", fails)
    outcome = run(classifier, [*paths, broken], tmp_path / "out")
    assert [failure.path for failure in outcome.failures] == [broken, paths[1]]
    assert "not this one with those weights" in outcome.failures[1].reason
    monkeypatch.setattr(Faithfulness, "__call__", judge)
    assert outcome.found is not None
    assert outcome.found.images == COUNT - 1
    assert outcome.found.held_out is not None
    # The other images alone, in the same halves: 0, 2, 4 and 3, 5.
    others = [paths[0], paths[3], paths[2], paths[5], paths[4]]
    expected = found_by(classifier, others, tmp_path / "others")
    assert outcome.found.options == expected.options
    assert outcome.found.score.mean == pytest.approx(expected.score.mean, abs=1e-5)
    assert outcome.found.held_out.mean == pytest.approx(expected.held_out.mean, abs=1e-5)  # type: ignore[union-attr]

    nothing = run(classifier, [paths[0], broken], tmp_path / "one")
    assert nothing.found is None
    assert not (tmp_path / "one" / "calibrations.json").exists()


# What is on disk ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process is gone: nothing catches this."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[DepthCalibration, Path]:
    """What a run of batches of two images finds that nothing disturbs, and its folder."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return found_by(misled(), squares(folder / "images"), folder / "out", batch_size=2), folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2, 3, 4, 9, 30])
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(
    after: int,
    classifier: Classifier,
    paths: list[Path],
    tmp_path: Path,
    undisturbed: tuple[DepthCalibration, Path],
    counted: list[int],
) -> None:
    (expected, whole), out = undisturbed, tmp_path / "out"
    calls = 0

    def done(count: int) -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise Killed

    with pytest.raises(Killed):
        run(classifier, paths, out, batch_size=2, on_done=done)
    before = (out / "calibrations.jsonl").read_bytes()
    assert not (out / "calibrations.json").exists()
    assert list((out / "evidence").iterdir())
    assert found_by(classifier, paths, out, batch_size=2) == expected
    assert sorted(counted) == list(range(COUNT))  # none twice
    assert (out / "calibrations.jsonl").read_bytes().startswith(before)
    assert files_in(out) == files_in(whole)


def test_a_finished_run_is_not_done_again(
    classifier: Classifier, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    expected = found_by(classifier, paths, out)
    kept = files_in(out)

    def gone(*given: object, **options: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(PathMethod, "attribute", gone)
    monkeypatch.setattr("fampe_fast.methods.tuning.insertion_deletion", gone)
    assert found_by(classifier, paths, out) == expected
    assert files_in(out) == kept


@pytest.mark.slow
def test_more_images_cost_themselves(
    classifier: Classifier, paths: list[Path], tmp_path: Path, counted: list[int]
) -> None:
    out = tmp_path / "out"
    found_by(classifier, paths[:4], out, batch_size=1, held_out=False)
    assert counted == [0, 1, 2, 3]
    first = (out / "calibrations.jsonl").read_bytes()
    found = found_by(classifier, paths, out, batch_size=1, held_out=False)
    assert counted[4:6] == [4, 5]
    assert len(counted) <= 10  # once more at most for what other combinations are asked of
    assert (out / "calibrations.jsonl").read_bytes().startswith(first)
    assert found == found_by(classifier, paths, tmp_path / "fresh", batch_size=1, held_out=False)


@pytest.mark.slow
def test_other_combinations_cost_the_evidence_once_more(
    classifier: Classifier, paths: list[Path], tmp_path: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was removed with the outcome, and is kept again while other combinations are sought."""
    out = tmp_path / "out"
    found_by(classifier, paths, out)
    monkeypatch.setattr("fampe_fast.methods.depth_search.GATE_FLOORS", (0.2, 0.4, 0.5, 0.7))
    found_by(classifier, paths, out)
    assert sorted(counted) == sorted([*range(COUNT)] * 2)
    assert not (out / "evidence").exists()


@pytest.mark.slow
def test_images_keep_their_ids_in_halves_and_batches(
    classifier: Classifier, paths: list[Path], tmp_path: Path, counted: list[int]
) -> None:
    ids = [7, 3, 9, 1, 4, 2]
    run(classifier, paths, tmp_path / "out", image_ids=ids, batch_size=2)
    assert counted == [*ids[0::2], *ids[1::2]]
    again = dict(zip(paths, ids, strict=True))
    other = [paths[k] for k in (2, 3, 0, 1, 4, 5)]
    counted.clear()
    run(classifier, other, tmp_path / "out", image_ids=[again[path] for path in other], held_out=False, batch_size=1)
    assert len(counted) <= COUNT  # what was found is found again, but for combinations that were not asked for


@pytest.mark.slow
@pytest.mark.parametrize("change", ["model", "settings", "images"])
def test_what_is_reused_is_what_would_be_computed(
    change: str, classifier: Classifier, paths: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    earlier = found_by(classifier, paths, out)
    more: dict[str, Any] = {}
    if change == "model":
        classifier.model.weight.data.mul_(0.7)
    elif change == "settings":
        more = {"metric_steps": 7}
    else:
        paths[0].write_bytes(paths[1].read_bytes())
    found = found_by(classifier, paths, out, **more)
    assert found == found_by(classifier, paths, tmp_path / "fresh", **more)
    assert found != earlier
    assert len(read_calibrations(out / "calibrations.json")) == (2 if change == "model" else 1)


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (lambda out, options: options.update(metric_steps=0), ValueError, "metric_steps must be at least 1"),
        (lambda out, options: options.update(protocol="magic"), ValueError, "magic"),
        (lambda out, options: options.update(held_out="yes"), TypeError, "held_out must be True or False"),
        (lambda out, options: options.update(image_ids=[1] * COUNT), ValueError, "image ids must be unique"),
        (lambda out, options: (out / "calibrations.json").write_text("[1]"), ValueError, "not a file of calibrations"),
        (lambda out, options: (out / "calibrations.jsonl").write_text("mine"), ValueError, "was not written by"),
    ],
)
def test_what_cannot_start_says_so_and_touches_nothing(
    spoil: Callable[[Path, dict[str, Any]], object],
    error: type[Exception],
    said: str,
    classifier: Classifier,
    paths: list[Path],
    tmp_path: Path,
) -> None:
    out, options = tmp_path / "out", {}
    out.mkdir()
    spoil(out, options)
    before = files_in(out)
    with pytest.raises(error, match=said):
        run(classifier, paths, out, **options)
    assert files_in(out) == before


def test_methods_and_numbers_that_make_no_search_are_named(
    classifier: Classifier, paths: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="needs at least 2 images, got 1"):
        run(classifier, paths[:1], tmp_path / "out")
    with pytest.raises(ValueError, match="without views has no depths to weigh"):
        calibrate_files(classifier, FAMPE(classifier, views=0, steps=1), paths, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The command ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that choose a small classifier of timm's."""
    import timm

    file = tmp_path_factory.mktemp("model") / "small.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(timm.create_model("test_resnet").state_dict(), file)
    return ["--model", "test_resnet", "--weights", str(file), "--input-size", "64"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos", 4)


@pytest.mark.slow
def test_calibrate_prints_a_table_and_a_line_that_works(
    model: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (photos / "broken.png").write_bytes(b"nothing")
    out = tmp_path / "my calibration"
    words = ["calibrate", str(photos), *model, "--passes", "1", "--loss", "softmax_twice", "--gate-floor", "0.2"]
    assert main([*words, "--metric-steps", "4", "--target", "1", "--out", str(out)]) == SOME_FAILED
    captured = capsys.readouterr()
    assert "1 of 5 images failed" in captured.err
    ((_, found),) = read_calibrations(out / "calibrations.json").items()
    assert found.images == 4
    assert found.held_out is not None
    for text in (
        f"{found.score.mean:.3f} ± {found.score.standard_error:.3f}",
        f"{found.default_score.mean:.3f} ± {found.default_score.standard_error:.3f}",
        f"{found.held_out.mean:+.3f} ± {found.held_out.standard_error:.3f}",
        f"{found.evaluations} combinations",
        *found.layers,
    ):
        assert text in captured.out
    (line,) = [line for line in captured.out.splitlines() if line.startswith("fampe-fast explain")]
    # Weights in the line would hold against those of the file.
    assert "--gate-floor" not in line
    odd = replace(found, layer_weights=tuple(0.25 * k for k in range(len(found.layers))), gate_floor=0.7)
    odd.save(out / "calibrations.json")
    assert main([*shlex.split(line)[1:], "--out", str(tmp_path / "explained")]) == SOME_FAILED
    with np.load(tmp_path / "explained" / "object_0.npz") as archive:
        config = json.loads(str(archive["settings"]))["config"]
    assert config["layer_weights"] == list(odd.layer_weights)
    assert (config["gate_floor"], config["loss"], config["views"]) == (0.7, "softmax_twice", 1)


def a_calibration(model: list[str], file: Path) -> DepthCalibration:
    classifier = load_classifier("test_resnet", weights=Path(model[3]), input_size=64)
    _, details = FAMPE(classifier, passes=1).attribute(torch.rand(1, 3, 64, 64), 0, return_details=True)
    assert details.depths is not None
    names = details.depths.names
    weights = tuple(0.5 * k for k in range(len(names)))
    own, score = identity_of(classifier), Estimate(0.5, 0.1, 4)
    found = DepthCalibration(
        str(own["model"]), str(own["fingerprint"]), names, 0.75, weights, 0.6, score, score, None, "rise", 4, 30, 1
    )
    found.save(file)
    return found


@pytest.mark.slow
def test_evaluate_and_study_take_the_file(
    model: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "calibrations.json"
    found = a_calibration(model, file)
    replace(found, passes=2).save(file)  # what evaluate makes: a view, and a path of one sample
    rest = [*model, "--calibration", str(file), "--metric-steps", "2", "--limit", "2"]
    words = ["evaluate", str(photos), *rest, "--method", "fampe,attexplore", "--passes", "1", "--pixel-weight", "3"]
    assert main([*words, "--steps", "1", "--samples", "1", "--out", str(tmp_path / "e")]) == DONE
    methods = json.loads((tmp_path / "e" / "scores.json").read_text())["methods"]
    config = methods["fampe"]["config"]
    assert config["layer_weights"] == list(found.layer_weights)
    assert (config["pixel_weight"], config["gate_floor"]) == (3.0, 0.6)  # what is given holds
    assert methods["attexplore"]["config"]["layer_weights"] is None

    words = ["study", "methods", str(photos), *rest, "--steps", "1", "--samples", "1", "--out", str(tmp_path / "s")]
    assert main([*words, "--variant", "fampe, path and depths", "--variant", "fampe_published"]) == DONE
    methods = json.loads((tmp_path / "s" / "study.json").read_text())["methods"]
    config = methods["fampe, path and depths"]["config"]
    assert config["layer_weights"] == list(found.layer_weights)
    assert (config["pixel_weight"], config["gate_floor"]) == (0.75, 0.6)
    assert methods["fampe_published"]["config"]["views"] == 0


@pytest.mark.parametrize("command", [["explain"], ["evaluate"], ["study", "methods"]])
def test_a_file_that_does_not_fit_is_refused(
    command: list[str], model: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "calibrations.json"
    found = a_calibration(model, file)
    out = tmp_path / "out"
    words = [*command, str(photos), *model, "--calibration", str(file), "--out", str(out)]

    def refused(more: list[str], said: str) -> None:
        assert main([*words, *more]) == UNUSABLE
        captured = capsys.readouterr()
        assert said in captured.err
        assert captured.err.count("\n") == 1
        assert not out.exists()

    refused(["--layers", found.layers[0]], f"is of the layers {', '.join(found.layers)}, but the chosen layers are")
    refused(["--mean", "0.1"], f"it has test_resnet ({found.fingerprint})")
    file.write_text("[1]")
    refused(["--model", "no_such_model"], "is not a file of calibrations")  # before the model is loaded


def test_calibrate_refuses_what_it_cannot_use(
    model: list[str], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["calibrate", str(photos), *model, "--out", str(tmp_path / "out")]
    for more, said in (
        (["--views", "0", "--steps", "1"], "without views has no depths to weigh"),
        (["--limit", "1"], "needs at least 2 images, got 1"),
        (["--tau", "2"], "tau must be in"),
    ):
        assert main([*words, *more]) == UNUSABLE
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
