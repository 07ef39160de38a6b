"""Files: written whole, marked as this package's, and never over those of the user."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fampe_fast import TunedCutoff
from fampe_fast.cli import DONE, SOME_FAILED, UNUSABLE, main
from fampe_fast.files import (
    FIGURE,
    FOLDER,
    IMAGE,
    Mark,
    Output,
    check_outputs,
    json_content,
    json_text,
    mark_of,
    markdown_content,
    npz_content,
    png_content,
    remove_leftovers,
    write_atomically,
)
from fampe_fast.images import find_images, survey_images
from fampe_fast.images.generated import generate
from fampe_fast.metrics import Estimate
from fampe_fast.runs.settings import unique_names

SMALL = ["--input-size", "64"]
PATH = ["--steps", "1", "--samples", "1", "--views", "0"]  # the model file, a program, has no layers
QUICK = {
    "explain": PATH,
    "evaluate": ["--method", "fampe", *PATH, "--metric-steps", "2"],
    "attack": ["--bands", "low", "--steps", "1"],
    "occlude": ["--bands", "4"],
    "frequency": ["--parts", "attribution", "--passes", "1"],
    "tune": ["--method", "fampe", *PATH, "--metric-steps", "2"],
    "study": [*PATH, "--metric-steps", "2"],
}
OUTPUTS = {
    "explain": ["object_0.npz"],
    "evaluate": ["scores.json", "contact_sheet.png", "scores.jsonl"],
    "attack": ["attack.json", "attack.png", "attack.jsonl"],
    "occlude": ["occluded_frequency.json", "occluded_frequency.png", "occluded_frequency.jsonl"],
    "frequency": ["frequency.json", "frequency.png", "reliance.png", "places.png", "frequency.jsonl"],
    "tune": ["cutoffs.json", "cutoffs.png", "cutoffs.jsonl"],
    "study": ["study.json", "table.md", "plot.png", "choices.png", "scores.jsonl"],
    "demo": ["demo.png"],
    "defend": ["defence.json", "reliance.png"],
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos")


def draw(folder: Path, suffix: str = "png") -> Path:
    folder.mkdir(parents=True)
    for k, image in enumerate(generate(2, seed=5).images):
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / f"object_{k}.{suffix}")
    return folder


def words(command: str, photos: Path | str, model: Path, out: Path | str, *more: str) -> list[str]:
    if command in ("demo", "defend"):
        return [command, "--out", str(out)]
    named = ["study", "noise"] if command == "study" else [command]
    return [*named, str(photos), "--model", str(model), *SMALL, "--out", str(out), *QUICK[command], *more]


def contents(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert main(arguments) == UNUSABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fampe-fast: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come before the model is loaded."""

    def loaded(*given: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("fampe_fast.cli.model_and_methods.load_classifier", loaded)
    monkeypatch.setattr("fampe_fast.runs.demo.load_embedded_classifier", loaded)
    monkeypatch.setattr("fampe_fast.runs.defence_data.generate", loaded)


# Inputs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_work")
def test_photographs_are_not_replaced_by_what_is_made_of_them(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(photos)
    one = photos / "object_1.png"
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.chdir(photos)
    ways = [
        (photos, photos),
        (photos, tmp_path / "link"),
        (tmp_path / "link", photos),
        (one, photos),
        (one, "."),
        ("object_1.png", "../photos"),
        ("./object_1.png", f"{photos}/../photos/."),
    ]
    for given, out in ways:
        said = refused(words("explain", given, model_file, out), capsys)
        assert "is one of the inputs, and would be replaced by an output" in said
        assert "choose another place for the outputs (--out)" in said
        assert ("object_0.png" in said) == ("object_1" not in str(given))
        assert ("the first of 2 such files" in said) == ("object_1" not in str(given))
    os.link(one, tmp_path / "object_1.png")  # another name of the same file
    assert "is one of the inputs" in refused(words("explain", one, model_file, tmp_path), capsys)
    assert contents(photos) == before
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "object_1.png").symlink_to(one)
    assert "is one of the inputs" in refused(words("explain", one, model_file, tmp_path / "linked"), capsys)
    assert (tmp_path / "linked" / "object_1.png").is_symlink()


@pytest.mark.usefixtures("no_work")
def test_what_bears_the_name_of_an_output_is_not_replaced_where_it_is_an_input(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = (photos / "object_0.png").read_bytes()
    for command, name in (
        ("evaluate", "contact_sheet.png"), ("attack", "attack.png"), ("occlude", "occluded_frequency.png"),
        ("tune", "cutoffs.png"), ("study", "plot.png"),
    ):  # fmt: skip
        (photos / name).write_bytes(image)
        assert f"{name} is one of the inputs" in refused(words(command, photos, model_file, photos), capsys)
        (photos / name).unlink()
    low = tmp_path / "data" / "images" / "low"
    draw(low)
    said = refused(words("attack", low, model_file, tmp_path / "data", "--save-images"), capsys)
    assert "low/object_0.png is one of the inputs" in said
    # Whatever else is read is an input too.
    labels = photos / "cutoffs.json"
    labels.write_text('{"object_0.png": 1, "object_1.png": 1}')
    arguments = words("tune", photos, model_file, photos, "--labels", str(labels))
    assert "cutoffs.json is one of the inputs" in refused(arguments, capsys)
    names = photos / "scores.json"
    names.write_text("a\nb\n")
    arguments = words("evaluate", photos, model_file, photos, "--class-names", str(names))
    assert "scores.json is one of the inputs" in refused(arguments, capsys)
    weights = photos / "object_0.npz"
    weights.write_bytes(b"weights")
    arguments = words("explain", photos, weights, photos / ".." / "photos")
    assert "object_0.png is one of the inputs" in refused(arguments, capsys)
    assert (photos / "object_0.png").read_bytes() == image


# Files of others ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", OUTPUTS)
def test_a_file_of_another_s_is_not_replaced(
    command: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in OUTPUTS[command]:
        for content in (
            b"mine",
            b"",
            b'{"mine": 1}\n',
            b"\x89PNG\r\n\x1a\n",
            b"PK\x03\x04",
            (photos / "object_0.png").read_bytes(),
        ):
            if command == "tune" and name == "cutoffs.json" and content != b'{"mine": 1}\n':
                continue  # not even JSON: another message
            out = tmp_path / "out"
            out.mkdir()
            (out / name).write_bytes(content)
            said = refused(words(command, photos, model_file, out), capsys)
            assert f"{name} exists already and was not written by fampe_fast" in said
            assert contents(out) == {out / name: content}
            (out / name).unlink()
            (out / name).symlink_to(tmp_path / "nowhere")
            assert "is a broken link" in refused(words(command, photos, model_file, out), capsys)
            (out / name).unlink()
            (out / name).mkdir()
            said = refused(words(command, photos, model_file, out), capsys)
            assert "is a folder" in said or "Is a directory" in said
            (out / name).rmdir()
            out.rmdir()


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("command", OUTPUTS)
def test_a_folder_that_cannot_be_is_named_before_any_work(
    command: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for place in ("file", "file/deeper"):
        said = refused(words(command, photos, model_file, tmp_path / place), capsys)
        assert str(tmp_path / "file") in said
        assert "a file exists where a folder is needed" in said or "is a file, where a folder is needed" in said
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.slow
@pytest.mark.parametrize("command", QUICK)
def test_a_second_run_replaces_what_the_first_has_written(
    command: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Also where somebody has copied it in the meantime; and the kinds are told apart."""
    out, copy = tmp_path / "out", tmp_path / "copy"
    more = ["--save-images"] if command == "attack" else []
    assert main(words(command, photos, model_file, out, *more)) == DONE
    for path in out.rglob("*"):
        assert path.is_dir() or mark_of(path) is not None, path
    copy.mkdir()
    for path, content in contents(out).items():
        (copy / path.relative_to(out)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(out)).write_bytes(content)
    assert main(words(command, photos, model_file, copy, *more)) == DONE
    first = OUTPUTS[command][0]
    (out / first).write_bytes(json_content("something else", {"a": 1}).encode())
    assert f"{first} holds what fampe_fast calls 'something else'" in refused(
        words(command, photos, model_file, out, *more), capsys
    )


def test_tuned_cut_offs_of_others_are_kept_and_other_json_is_not_added_to(tmp_path: Path) -> None:
    found = TunedCutoff("m", "n", 3, {3: Estimate(0.5, None, 1)}, Estimate(math.nan, None, 1), "rise", 10)
    path = tmp_path / "cutoffs.json"
    found.save(path)
    assert "NaN" not in path.read_text()
    TunedCutoff("m", "other", 3, {3: Estimate(0.5, None, 1)}, Estimate(0.1, None, 1), "rise", 10).save(path)
    assert TunedCutoff.load(path, "m", "n").cutoff == 3
    assert set(json.loads(path.read_text())) == {"fampe_fast", "m | n", "m | other"}
    path.write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="was not written by fampe_fast"):
        found.save(path)
    assert path.read_text() == '{"mine": 1}'


# Own outputs are no inputs --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "explain", "occlude", "study", "tune", "attack"])
def test_a_command_does_not_look_at_its_own_figures(
    command: str, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photos = draw(tmp_path / "photos", "jpg")
    for _ in range(2):
        assert main(words(command, photos, model_file, photos)) == DONE
    errors = capsys.readouterr().err
    assert "left out of" in errors
    assert "that fampe_fast wrote" in errors
    assert [path.name for path in find_images(photos)] == ["object_0.jpg", "object_1.jpg"]


@pytest.mark.slow
def test_a_figure_that_is_named_is_left_out_with_a_word(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(words("explain", photos, model_file, out)) == DONE
    figure = out / "object_0.png"
    capsys.readouterr()
    assert main(["explain", str(figure), *words("explain", photos, model_file, tmp_path / "more")[1:]]) == DONE
    assert f"left out of {figure}: 1 figure that fampe_fast wrote" in capsys.readouterr().err
    assert len(list((tmp_path / "more").glob("*.npz"))) == 2
    said = refused(words("explain", figure, model_file, tmp_path / "third"), capsys)
    assert "no images were given" in said
    assert "1 figure that fampe_fast wrote" in said
    said = refused(words("evaluate", out, model_file, tmp_path / "third"), capsys)
    assert "no images in the directory" in said
    assert "2 figures that fampe_fast wrote" in said


def test_attacked_images_are_images(photos: Path, model_file: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert main(words("attack", photos, model_file, data, "--save-images")) == DONE
    assert mark_of(data / "images" / "low" / "object_0.png").kind == IMAGE
    assert main(words("explain", data / "images" / "low", model_file, tmp_path / "out")) == DONE
    assert main(words("attack", data / "images" / "low", model_file, tmp_path / "twice", "--save-images")) == DONE


# Names ----------------------------------------------------------------------------------------------------------------


def test_names_differ_for_every_file_system_and_are_found_fast() -> None:
    given = [Path(name) for name in ("a/x.png", "b/x.png", "b/x_2.png", "c/X.jpg", "caf\u00e9.png", "cafe\u0301.jpg")]
    names = unique_names(given)
    assert names[:3] == ["x", "x_2", "x_2_2"]
    assert names[3:] == ["X_3", "caf\u00e9", "cafe\u0301_2"]
    assert unique_names([Path("x.png"), Path("x_2.png"), Path("x.jpg")]) == ["x", "x_2", "x_3"]
    calls = 0

    class Counted(type(Path())):  # type: ignore[misc]
        @property
        def stem(self) -> str:
            nonlocal calls
            calls += 1
            return "image"

    many = unique_names([Counted(f"{k}/image.png") for k in range(6000)])
    assert len(set(many)) == 6000
    assert many[-1] == "image_6000"
    assert calls < 10 * 6000  # and not 6000 squared


# Marks ----------------------------------------------------------------------------------------------------------------


def test_marks_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    image = Image.new("RGB", (9, 9), "red")
    files = {
        "a.png": (png_content(image, FIGURE, "key"), Mark(FIGURE, "key")),
        "b.png": (png_content(image, IMAGE), Mark(IMAGE)),
        "c.json": (json_content("scores", {"a": [1, 2]}).encode(), Mark("scores")),
        "d.npz": (npz_content("map", "key", map=np.ones(3)), Mark("map", "key")),
        "e.md": (markdown_content("table", "| a |").encode(), Mark("table")),
        "f.jsonl": (b'{"fampe_fast": "records"}\n{"a": 1}\n', Mark("records")),
        "g.json": (b'{"a": 1, "fampe_fast": "scores"}', Mark("scores")),  # sorted by another program
        "h.json": (b'{"a": "fampe_fast"}', None),
        "i.json": (b'["fampe_fast"]', None),
        "j.json": (b'{"fampe_fast": 1}', None),
        "k.png": (b"\x89PNG\r\n\x1a\nfampe_fast", None),
        "l.npz": (b"PK\x03\x04fampe_fast", None),
        "m.txt": (b"fampe_fast", None),
        "n.txt": (b"", None),
    }
    for name, (content, mark) in files.items():
        (tmp_path / name).write_bytes(content)
        assert mark_of(tmp_path / name) == mark, name
    other = PngImagePlugin.PngInfo()
    other.add_text("Software", "a camera")
    image.save(tmp_path / "o.png", pnginfo=other)
    assert mark_of(tmp_path / "o.png") is None
    assert mark_of(tmp_path) is None
    assert mark_of(tmp_path / "gone") is None
    assert png_content(image, FIGURE) == png_content(image, FIGURE)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        assert mark_of(tmp_path / "pipe.png") is None  # and does not wait


def test_json_is_json_whatever_the_numbers() -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = json_text({"a": math.nan, "b": [math.inf, (-math.inf, 1.5)], "c": {"d": np.float64("nan")}})
    found = json.loads(text, parse_constant=refuse)
    assert found == {"a": None, "b": ["inf", ["-inf", 1.5]], "c": {"d": None}}


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from fampe_fast import files\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "files.write_atomically(Path(sys.argv[1]), b'half')"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "scores.json")], check=False)
    left = list(tmp_path.iterdir())
    assert len(left) == 1
    assert left[0].name.startswith(".scores.json.")
    ours = tmp_path / left[0].name.replace(left[0].name.split("-")[0].split(".")[-1] + "-", "0000-")  # another host's
    alive = tmp_path / f".a.{left[0].name.split('.')[-2].split('-')[0]}-{os.getpid()}-00000000.tmp"
    for path in (ours, alive, tmp_path / ".mine.tmp", tmp_path / "a.tmp"):
        path.write_bytes(b"mine")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "gone")
    assert not left[0].exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in (ours, alive, tmp_path / ".mine.tmp", tmp_path / "a.tmp")
    )


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target = tmp_path / "deep" / "scores.json"
    target.write_text(json_content("scores", {}))
    link = tmp_path / "latest.json"
    link.symlink_to(target)
    check_outputs([Output(link, "scores")], [])
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_the_guard_names_the_first_and_counts(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"{k}.png").write_bytes(b"mine")
    outputs = [Output(tmp_path / f"{k}.png", FIGURE) for k in range(3)]
    with pytest.raises(ValueError, match=r"0\.png exists already and was not written .*\(the first of 3 such files\)"):
        check_outputs(outputs, [])
    with pytest.raises(ValueError, match=r"1\.png is one of the inputs, .* by an output; choose"):
        check_outputs(outputs[1:2], [tmp_path / "1.png", tmp_path / "gone"])
    check_outputs([Output(tmp_path / "new" / "a.png", FIGURE), Output(tmp_path / "new", FOLDER)], [])
    assert not (tmp_path / "new").exists()


# What is left out -----------------------------------------------------------------------------------------------------


def test_what_is_left_out_of_a_folder_is_counted(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a.HEIC", "b.heic", "c.jxl", "notes.txt", "README", ".hidden.heic"):
        (photos / name).write_bytes(b"x")
    (photos / "sub").mkdir()
    (photos / "broken.png").symlink_to(tmp_path / "nowhere")
    (photos / "labels.json").write_text('{"object_0.png": 1, "object_1.png": 1}')
    arguments = words("occlude", photos, model_file, tmp_path / "out", "--labels", str(photos / "labels.json"))
    assert main(arguments) == DONE
    errors = capsys.readouterr().err
    assert errors.count("left out of") == 1
    line = next(line for line in errors.splitlines() if "left out of" in line)
    assert line.endswith("2 .heic, 1 .jxl, 1 .txt, 1 broken link, 1 file without an ending, 1 folder")
    found = survey_images(photos)
    assert sum(found.left_out[photos].values()) == 8  # the labels too
    assert survey_images(photos / "object_0.png").left_out_text() == ""


@pytest.mark.slow
def test_a_folder_of_class_folders_says_so(model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("cats", "dogs", "eels", "foxes"):
        draw(tmp_path / "photos" / name)
    said = refused(words("explain", tmp_path / "photos", model_file, tmp_path / "out"), capsys)
    assert "no images in the directory" in said
    assert "it holds 4 folders: images are looked for in the directory itself" in said
    assert "name what is in it (cats, dogs, eels, ...)" in said
    arguments = words("explain", tmp_path / "photos" / "cats", model_file, tmp_path / "out")[1:]
    assert main(["explain", str(tmp_path / "gone.png"), str(tmp_path / "photos" / "dogs"), *arguments]) == SOME_FAILED
