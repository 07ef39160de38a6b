"""The images a command is given: their classes, their ids, their number; several methods at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fampe_fast import create_method
from fampe_fast.cli import DONE, SOME_FAILED, UNUSABLE, main
from fampe_fast.files import mark_of
from fampe_fast.models.embedded import load_embedded_classifier
from fampe_fast.runs.attack import attack_files
from fampe_fast.runs.batches import check_run_ids
from fampe_fast.runs.explain import explain_files
from fampe_fast.runs.labels import image_ids_of, read_image_ids

from ..images_for_tests import draw

# Enough noise that other random numbers make another map.
SMALL = ["--batch-size", "1", "--input-size", "64"]
PATH = ["--steps", "2", "--samples", "2", "--sigma", "0.5", "--rho", "1", *SMALL]
QUICK = [*PATH, "--views", "0"]  # the model file, a program, has no layers


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos", 3)


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert main(arguments) == UNUSABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def ids_file(path: Path, ids: dict[str, int]) -> str:
    if path.suffix == ".csv":
        path.write_text("file,id\n" + "".join(f"{name},{image_id}\n" for name, image_id in ids.items()))
    else:
        path.write_text(json.dumps(ids))
    return str(path)


# Ids ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["json", "csv"])
def test_a_file_with_its_id_has_the_same_map_in_any_order_and_part(
    ending: str, photos: Path, model_file: Path, tmp_path: Path
) -> None:
    ids = {f"object_{k}.png": image_id for k, image_id in enumerate((7, 2**32 - 2, 0))}
    given = ["--model", str(model_file), *QUICK, "--image-ids", ids_file(tmp_path / f"ids.{ending}", ids)]
    orders = {"forward": (0, 1, 2), "backward": (2, 1, 0), "part": (1,)}
    for name, order in orders.items():
        files = [str(photos / f"object_{k}.png") for k in order]
        assert main(["explain", *files, *given, "--out", str(tmp_path / name)]) == DONE
    for name, order in orders.items():
        for k in order:
            found, expected = (tmp_path / out / f"object_{k}.npz" for out in (name, "forward"))
            assert np.array_equal(np.load(found)["map"], np.load(expected)["map"])
            assert int(np.load(found)["image_id"]) == ids[f"object_{k}.png"]
            assert mark_of(found).key == mark_of(expected).key
    # By their places they are explained with other random numbers.
    for name, order in (("forward by place", (0, 1)), ("backward by place", (1, 0))):
        files = [str(photos / f"object_{k}.png") for k in order]
        assert main(["explain", *files, "--model", str(model_file), *QUICK, "--out", str(tmp_path / name)]) == DONE
    first, second = (
        np.load(tmp_path / name / "object_1.npz")["map"] for name in ("forward by place", "backward by place")
    )
    assert not np.allclose(first, second, rtol=0.05)
    assert (
        mark_of(tmp_path / "forward" / "object_1.npz").key
        != mark_of(tmp_path / "forward by place" / "object_1.npz").key
    )


COMMANDS = {
    "attack": ["--gradients", "fampe", "--bands", "all", "--cutoff", "12", *PATH],
    "occlude": ["--bands", "4", *SMALL],
    "frequency": ["--parts", "attribution", "--passes", "1", *SMALL],
    "tune": ["--metric-steps", "2", "--limit", "2", *QUICK],
    "evaluate": [
        "--method", "fampe,attexplore", "--metric", "insertion_deletion,stability", "--metric-steps", "2",
        "--stability-samples", "2", *QUICK,
    ],
    "study methods": ["--metric-steps", "2", "--variant", "fampe, path", *QUICK],
}  # fmt: skip
RECORDS = {
    "attack": "attack.jsonl",
    "occlude": "occluded_frequency.jsonl",
    "frequency": "frequency.jsonl",
    "tune": "cutoffs.jsonl",
    "evaluate": "scores.jsonl",
    "study methods": "scores.jsonl",
}


def results(path: Path) -> dict[tuple[Any, ...], Any]:
    found = {}
    for line in map(json.loads, path.read_text().splitlines()[1:]):
        for entry in line.get("results", ()):
            found[line["context"], line["part"], entry["file"], entry["id"], entry["image"]] = entry["result"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_with_its_id_has_the_same_record_in_any_order_and_part(
    command: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Folders are sorted by name: what was first is second beside a new file, and is not worked on again."""
    ids = {"object_0.png": 11, "object_1.png": 5, "object_2.png": 8, "a_new_one.png": 3}
    given = ["--model", str(model_file), "--image-ids", ids_file(tmp_path / "ids.json", ids), *COMMANDS[command]]
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(photos / "object_0.png", other)
    shutil.copy(photos / "object_2.png", other / "a_new_one.png")
    assert main([*command.split(), str(photos), *given, "--out", str(tmp_path / "first")]) == DONE
    assert main([*command.split(), str(other), *given, "--out", str(tmp_path / "second")]) == DONE
    first, second = (results(tmp_path / out / RECORDS[command]) for out in ("first", "second"))
    shared = {key for key in first if key[2] == "object_0.png"}
    assert shared
    assert {key[3] for key in shared} == {11}
    for key in shared & second.keys():
        assert {**second[key], "seconds": 0} == {**first[key], "seconds": 0}
    assert shared & second.keys()
    if command != "tune":
        (written,) = (tmp_path / "second").glob("*.json")
        listed = {image["file"]: image["id"] for image in json.loads(written.read_text())["images"]}
        assert listed == {"a_new_one.png": 3, "object_0.png": 11}
    capsys.readouterr()
    assert main([*command.split(), str(other), *given, "--out", str(tmp_path / "first")]) == DONE
    if command != "tune":
        assert "1 of 2 images were finished by an earlier run" in capsys.readouterr().err


BAD_IDS = [
    ({"object_0.png": 1, "object_1.png": 2}, "1 of 3 images have no id, 'object_2.png' first"),
    ({f"object_{k}.png": min(k, 1) for k in range(3)}, "unique; 'object_1.png' and 'object_2.png' have 1"),
    ({f"object_{k}.png": 2**32 - 3 + k for k in range(3)}, "must lie in [0, 2^32 - 2], got 4294967293 to 4294967295"),
    ({f"object_{k}.png": -k for k in range(3)}, "must lie in [0, 2^32 - 2], got -2 to 0"),
    ({f"object_{k}.png": "first" for k in range(3)}, "expected an image id or"),
]


@pytest.mark.parametrize(("ids", "message"), BAD_IDS)
def test_ids_that_name_nothing_are_refused_before_the_model_is_loaded(
    ids: dict[str, int], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def loaded(*given: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("fampe_fast.cli.model_and_methods.load_classifier", loaded)
    path = ids_file(tmp_path / "ids.json", ids)
    for command in ("explain", *COMMANDS):
        assert message in refused([*command.split(), str(photos), "--image-ids", path], capsys)


def test_ids_are_checked_in_python_too(photos: Path, tmp_path: Path) -> None:
    classifier, paths = load_embedded_classifier(), sorted(photos.glob("*.png"))
    method = create_method("fampe", classifier, steps=1, samples=1)
    with pytest.raises(ValueError, match="one entry per image"):
        explain_files(classifier, method, paths, tmp_path / "out", image_ids=[1, 2])
    with pytest.raises(ValueError, match="unique; 'object_0.png' and 'object_2.png' have 1"):
        attack_files(classifier, paths, tmp_path / "out", image_ids=[1, 2, 1])
    with pytest.raises(ValueError, match="unique"):
        check_run_ids([paths[0], paths[0]], [4, 4])
    with pytest.raises(TypeError, match="must be integers"):
        check_run_ids(paths, [0, 1.5, 2])  # type: ignore[list-item]
    assert check_run_ids(paths, None) == [0, 1, 2]
    assert not (tmp_path / "out").exists()


def test_ids_are_found_by_name(tmp_path: Path) -> None:
    path = Path(ids_file(tmp_path / "ids.csv", {"b.png": 9, "a.png": 4}))
    assert image_ids_of([Path("x/a.png"), Path("b.png")], read_image_ids(path)) == [4, 9]
    path.write_text("a.png,4\na.png,5\n")
    with pytest.raises(ValueError, match=r"the image ids .*ids\.csv give 'a\.png' twice, as 4 and as 5"):
        read_image_ids(path)


# Classes --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_target_is_the_class_of_every_image_of_every_command(photos: Path, model_file: Path, tmp_path: Path) -> None:
    given = ["--model", str(model_file), "--target", "3", "--limit", "2"]
    for command, options in COMMANDS.items():
        assert main([*command.split(), str(photos), *given, *options, "--out", str(tmp_path / command)]) == DONE
        found = results(tmp_path / command / RECORDS[command]).values()
        assert {result["target"] for result in found if "target" in result} == {3}
    assert main(["explain", str(photos), *given, *QUICK, "--out", str(tmp_path / "explain")]) == DONE
    assert [int(np.load(path)["target"]) for path in sorted((tmp_path / "explain").glob("*.npz"))] == [3, 3]


@pytest.mark.parametrize("command", ["explain", *COMMANDS])
def test_a_target_that_is_no_class_is_refused(
    command: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["--model", str(model_file), "--target", "8", "--out", str(tmp_path / "out")]
    assert "--target 8 is out of range: small has 8 classes" in refused([*command.split(), str(photos), *given], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_labels_are_what_is_explained(photos: Path, model_file: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({f"object_{k}.png": 5 - k for k in range(3)}))
    given = ["--model", str(model_file), "--labels", str(labels), *QUICK, "--out", str(tmp_path / "out")]
    assert main(["explain", str(photos), *given]) == DONE
    assert [int(np.load(tmp_path / "out" / f"object_{k}.npz")["target"]) for k in range(3)] == [5, 4, 3]


# Several methods ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_several_methods_explain_into_a_folder_each(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    given = ["--model", str(model_file), "--limit", "2", *QUICK, "--alpha", "0.3"]
    assert main(["explain", str(photos), *given, "--method", "fampe,forgrad_attexplore", "--out", str(out)]) == DONE
    table = capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["fampe", "forgrad_attexplore"]
    for name in ("fampe", "forgrad_attexplore"):
        assert name in table
        assert sorted(path.name for path in (out / name).glob("*.npz")) == ["object_0.npz", "object_1.npz"]
        with np.load(out / name / "object_0.npz") as archive:
            settings = json.loads(str(archive["settings"]))
        config = settings.get("config") or settings["filtered"]["config"]
        assert config["samples"] == 2
        assert config.get("alpha") == (0.3 if name == "fampe" else None)
    # One stays in the folder itself.
    assert main(["explain", str(photos), *given, "--method", "fampe", "--out", str(tmp_path / "one")]) == DONE
    assert (tmp_path / "one" / "object_0.npz").exists()
    (photos / "object_1.png").write_bytes(b"nothing")
    assert main(["explain", str(photos), *given, "--method", "fampe,attexplore", "--out", str(out)]) == SOME_FAILED
    assert "1 of 2 images failed" in capsys.readouterr().err
