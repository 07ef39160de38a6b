"""What a person gives the command line: labels, class names, devices, terminals; and the line that it gives back."""

from __future__ import annotations

import argparse
import fnmatch
import io
import json
import os
import shlex
import struct
import subprocess
import sys
import unicodedata
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fampe_fast.cli import DONE, UNUSABLE, main
from fampe_fast.cli.arguments import add_batches, add_images, add_model
from fampe_fast.cli.commands.tune import usage
from fampe_fast.cli.flags import given as options_given
from fampe_fast.cli.parser import parse
from fampe_fast.errors import FampeWarning
from fampe_fast.images import read_image
from fampe_fast.methods.registry import options_of
from fampe_fast.runs.labels import labels_of, read_labels

from ..images_for_tests import draw

# The model file, a program, has no layers, and does not say its size.
QUICK = ["--steps", "1", "--samples", "1", "--views", "0", "--input-size", "64"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos", 2)


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert main(arguments) == UNUSABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fampe-fast: ")
    assert captured.err.count("\n") == 1
    return captured.err


# The line that tune gives back ----------------------------------------------------------------------------------------

FULL = (
    "tune 'my photos' --method fampe,saliency --protocol per_pixel --metric-steps 3 --out x "
    "--model ./net.pt --weights 'a b.safetensors' --model-arg pad_type=same --model-arg depth=3 "
    "--model-arg name='3' --model-arg names='(1, 2)' --mean 0.4,0.5,0.6 --std 0.25 --input-size 160 "
    "--class-names names.txt --interpolation bilinear --keep-batch-norm --device cpu --alpha 0.3 --steps 2 --samples 4 "
    "--seed -1 --mode modulate --no-include-dc --eps 8/255 --area-cutoff none --bounds=-1,2 --no-absolute "
    "--batch-size 3 --internal-batch-size 5 --limit 7 --labels l.json --image-ids ids.csv"
)


@pytest.mark.parametrize(
    "line", [FULL, "tune photos", "tune photos --method attexplore --loss softmax_twice --target 3"]
)
def test_the_line_explains_with_every_option_of_the_model_and_the_method(line: str) -> None:
    given = parse(shlex.split(line))
    for method in given.method:
        chosen = {k: v for k, v in options_given(given, "method").items() if k in options_of(method)}
        words = shlex.split(usage(given, method, 11, chosen))
        assert words[:2] == ["fampe-fast", "explain"]
        found = parse(words[1:])
        assert found.images == [given.images]
        assert found.method == [f"forgrad_{method}"]
        assert options_given(found, "method") == chosen | {"map_cutoff": 11}
        for add in (add_model, add_batches, add_images):
            parser = argparse.ArgumentParser(add_help=False)
            add(parser)
            for action in parser._actions:
                assert getattr(found, action.dest) == getattr(given, action.dest), action.dest


def test_the_line_has_an_option_for_every_argument_that_a_parser_may_get() -> None:
    """One that is added to the model's arguments is in the line without anybody thinking of it."""
    every = parse(shlex.split(FULL))
    parser = argparse.ArgumentParser(add_help=False)
    add_model(parser)
    line = usage(every, "fampe", 9, {})
    named = [action for action in parser._actions if getattr(every, action.dest) not in (None, action.default)]
    assert len(named) >= 9
    for action in named:
        assert action.option_strings[-1] in line


def test_tune_prints_the_size_and_the_names(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"kind {k}\n" for k in range(8)))
    arguments = ["tune", str(photos), "--model", str(model_file), "--class-names", str(names)]
    assert main([*arguments, *QUICK, "--metric-steps", "2", "--out", str(tmp_path / "cut")]) == DONE
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("fampe-fast explain"))
    assert main([*shlex.split(line)[1:], "--out", str(tmp_path / "out")]) == DONE
    assert "kind " in capsys.readouterr().out
    assert np.load(tmp_path / "out" / "object_0.npz")["map"].shape == (3, 64, 64)


# Class names and targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["explain", "evaluate", "occlude", "attack", "tune", "study"])
@pytest.mark.parametrize("count", [0, 1, 7, 9, 1000])
def test_another_number_of_names_than_classes_is_said_before_any_work(
    command: str, count: int, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"kind {k}\n" for k in range(count)))
    named = ["study", "alpha"] if command == "study" else [command]
    arguments = [*named, str(photos), "--model", str(model_file), "--class-names", str(names)]
    said = refused([*arguments, "--out", str(tmp_path / "out")], capsys)
    assert f"names.txt has {count} names, and small has 8 classes" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n \n"])
def test_names_are_read_as_they_are(
    encoding: str, ending: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = tmp_path / "names.txt"
    line_end = "\r\n" if ending == "\r\n" else "\n"
    names.write_bytes((line_end.join(f"caf\u00e9\u2028{k}" for k in range(8)) + ending).encode(encoding))
    arguments = ["explain", str(photos / "object_0.png"), "--model", str(model_file), "--class-names", str(names)]
    assert main([*arguments, *QUICK, "--target", "0", "--out", str(tmp_path / "out")]) == DONE
    output = capsys.readouterr().out
    assert "0 caf\u00e9" in output
    assert "\ufeff" not in output


def test_names_in_another_encoding_name_their_file(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for content in ("caf\u00e9\n".encode("latin-1"), "a\nb\n".encode("utf-16")):
        (tmp_path / "names.txt").write_bytes(content)
        arguments = ["explain", str(photos), "--model", str(model_file), "--class-names", str(tmp_path / "names.txt")]
        said = refused(arguments, capsys)
        assert f"cannot read the class names {tmp_path / 'names.txt'}: not UTF-8 text" in said


@pytest.mark.parametrize("target", ["-1", "8", "900"])
def test_a_target_that_is_no_class_is_said_before_any_work(
    target: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Although a TorchScript file does not say how many classes there are."""
    out = tmp_path / "out"
    said = refused(
        ["explain", str(photos), "--model", str(model_file), f"--target={target}", "--out", str(out)], capsys
    )
    assert f"--target {target} is out of range: small has 8 classes" in said
    assert not out.exists()


# Devices --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda:99", "meta", "gpu", "cuda:x", "cpu:77x", "xla", "-", "cuda"])
def test_a_device_that_cannot_compute_is_named_in_one_line(
    device: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    out = tmp_path / "out"
    for command in (["explain"], ["evaluate"], ["study", "alpha"]):
        arguments = [*command, str(photos), "--model", str(model_file), f"--device={device}", "--out", str(out)]
        said = refused(arguments, capsys)
        assert f"--device {device}: cannot be used here: " in said
    assert not out.exists()


# Labels ---------------------------------------------------------------------------------------------------------------

NFC, NFD = "caf\u00e9.png", unicodedata.normalize("NFD", "caf\u00e9.png")


@pytest.mark.parametrize("ending", ["json", "csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("written", "named"), [(NFC, NFC), (NFC, NFD), (NFD, NFC), (NFD, NFD)])
def test_labels_are_found_however_they_are_written(
    ending: str, encoding: str, written: str, named: str, tmp_path: Path
) -> None:
    path = tmp_path / f"labels.{ending}"
    text = json.dumps({written: 3, "b.png": {"index": 4}}) if ending == "json" else f"{written},3\r\nb.png,4\r\n"
    if ending == "json":
        text = text.replace(json.dumps(written), f'"{written}"')
    path.write_bytes(text.encode(encoding))
    assert labels_of([Path("x") / named, Path("b.png")], read_labels(path), 5) == [3, 4]


def test_two_spellings_are_two_files_where_both_are_there(tmp_path: Path) -> None:
    labels = {NFC: 1, NFD: 2}
    assert labels_of([Path(NFC), Path(NFD)], labels, None) == [1, 2]
    # A third spelling of a letter with two marks, of which the labels have two others.
    composed, decomposed, third = "\u1e69.png", "s\u0323\u0307.png", "s\u0307\u0323.png"
    with pytest.raises(ValueError, match="has the labels 1, 2; expected one"):
        labels_of([Path(third)], {composed: 1, decomposed: 2}, None)
    assert labels_of([Path(NFD)], {NFC: 7}, None) == [7]


TWICE = [
    ("labels.json", '{"a.png": 1, "b.png": 2, "a.png": 3}'),
    ("labels.json", '{"a.png": {"index": 1}, "a.png": 3}'),
    ("labels.json", '{"a.png": {"index": 1, "index": 3}}'),
    ("labels.csv", "a.png,1\nb.png,2\na.png,3\n"),
    ("labels.csv", "file,index\na.png,1\n a.png ,3\n"),
]


def test_more_bands_than_frequencies_are_refused_once(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["occlude", str(photos), "--model", str(model_file), "--out", str(tmp_path / "out"), "--bands", "5000"]
    assert "5000 bands of equal width are too many" in refused(arguments, capsys)


def test_memory_that_is_not_there_is_said_in_one_line(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*arguments: object, **options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory\nstack")

    monkeypatch.setattr("fampe_fast.cli.model_and_methods.load_classifier", none_left)
    arguments = ["occlude", str(photos), "--model", str(model_file), "--out", str(tmp_path / "out")]
    assert "out of memory" in refused(arguments, capsys)

    def a_fault(*arguments: object, **options: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("fampe_fast.cli.model_and_methods.load_classifier", a_fault)
    with pytest.raises(RuntimeError, match="something else"):
        main(arguments)


def test_whole_numbers_that_pandas_writes_as_fractions_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("file,index\na.png,1.0\nb.png,2.\nc.png,3\n")
    assert read_labels(tmp_path / "labels.csv") == {"a.png": 1, "b.png": 2, "c.png": 3}


def test_folders_in_the_labels_tell_images_of_one_name_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [Path("set/cat/1.png"), Path("set/dog/1.png"), tmp_path / "set" / "dog" / "2.png"]
    assert labels_of(paths, {"cat/1.png": 3, "set/dog/1.png": 4, "2.png": 5}, None) == [3, 4, 5]
    assert labels_of(paths, {"./cat/1.png": 3, str(paths[1].absolute()): 4, "2.png": 5}, None) == [3, 4, 5]
    assert labels_of(paths, {"cat/1.png": 3, "1.png": 4, "2.png": 5}, None) == [3, 4, 5]  # the longest end counts
    words = r"2 images are named '1\.png' and have the same label: .*, such as 'cat/1\.png'"
    with pytest.warns(FampeWarning, match=words):
        assert labels_of(paths, {"1.png": 3, "2.png": 5}, None) == [3, 3, 5]
    assert labels_of([paths[0], paths[0].absolute()], {"1.png": 3}, None) == [3, 3]  # one file, named twice
    with pytest.raises(ValueError, match=r"2 of 3 images have no label, '1\.png' first"):
        labels_of(paths, {"cow/1.png": 3, "2.png": 5}, None)


@pytest.mark.parametrize(("name", "text"), TWICE)
def test_a_file_that_is_labelled_twice_is_named(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} give 'a\.png' twice, as 1 and as 3"):
        read_labels(tmp_path / name)
    (tmp_path / name).write_text(text.replace("3", "1"))
    assert read_labels(tmp_path / name)["a.png"] == 1  # twice the same is the same


@pytest.mark.parametrize("index", ["1.5", "1_0", "9" * 5000, "-1.5", ".5", "1e3", ""])
@pytest.mark.parametrize("head", ["", "file,index\n"])
def test_an_index_that_is_no_whole_number_is_named(index: str, head: str, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(f"{head}a.png,{index}\nb.png,2\n")
    if not head and not index:  # as a head line may be
        assert read_labels(labels) == {"b.png": 2}
        return
    with pytest.raises(
        ValueError, match=rf"labels\.csv, line {2 if head else 1}: expected 'file name,class index'"
    ) as e:
        read_labels(labels)
    assert len(str(e.value)) < 300
    if index == "9" * 5000:
        (tmp_path / "labels.json").write_text(f'{{"a.png": {index}}}')
        with pytest.raises(ValueError, match=r"labels\.json"):
            labels_of([Path("a.png")], read_labels(tmp_path / "labels.json"), 10)


def test_labels_in_another_encoding_name_their_file(tmp_path: Path) -> None:
    for name in ("labels.json", "labels.csv"):
        (tmp_path / name).write_bytes("caf\u00e9.png,1".encode("latin-1"))
        with pytest.raises(ValueError, match=rf"cannot read the labels .*{name}: not UTF-8 text \(byte 0xe9"):
            read_labels(tmp_path / name)


def test_labels_that_lack_an_image_are_said_before_the_model_is_loaded(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*given: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("fampe_fast.cli.model_and_methods.load_classifier", loaded)
    labels = tmp_path / "labels.json"
    for text, message in (('{"object_0.png": 1}', "1 of 2 images have no label"), (
        '{"object_0.png": 1, "object_1.png": -2}', "the label -2 of 'object_1.png' is out of range",
    )):  # fmt: skip
        labels.write_text(text)
        for command in ("evaluate", "occlude", "attack", "tune"):
            assert message in refused([command, str(photos), "--labels", str(labels)], capsys)


# Terminals ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_name_that_cannot_be_printed_loses_nothing(
    encoding: str, photos: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a file's name that is no text at all."""
    (tmp_path / "names.txt").write_text("".join(f"\u732b \u00e9 {k}\n" for k in range(8)), encoding="utf-8")
    image = (photos / "object_0.png").read_bytes()
    (photos / "\u732b.png").write_bytes(image)
    strange = os.fsdecode(b"caf\xe9.png")
    try:
        (photos / strange).write_bytes(image)
    except OSError:  # a file system of Unicode names
        strange = ""
    words = ["explain", str(photos), "--model", str(model_file), *QUICK]
    words += ["--class-names", str(tmp_path / "names.txt"), "--out", str(tmp_path / "out")]
    printed, errors = io.BytesIO(), io.BytesIO()
    with monkeypatch.context() as terminal:  # as Python opens both on a terminal of this encoding
        terminal.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding, errors="strict"))
        terminal.setattr(sys, "stderr", io.TextIOWrapper(errors, encoding=encoding, errors="backslashreplace"))
        code = main(words)
        table, said = printed.getvalue().decode(encoding), errors.getvalue()
    assert code == DONE, said
    assert "object_0.png" in table
    assert "object_1.png" in table
    assert ("\u732b" in table) == (encoding == "utf-8")
    assert ("\\u732b" in table) == (encoding != "utf-8")
    assert b"Traceback" not in said
    assert len(list((tmp_path / "out").glob("*.npz"))) == 3 + bool(strange)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a shell's pipe")
def test_a_pipe_that_is_closed_changes_no_exit_code(photos: Path, model_file: Path, tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", "fampe_fast", "occlude", str(photos), "--model", str(model_file), "--bands", "4"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], stdout=theirs, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(theirs)
    assert done.returncode == DONE, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "out" / "occluded_frequency.json").exists()


# Images ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 13])
def test_few_bits_in_a_file_of_sixteen_are_said(bits: int, tmp_path: Path) -> None:
    values = np.linspace(0, 2**bits - 1, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "a.png")
    with pytest.warns(
        FampeWarning, match=rf"a\.png: the largest greyscale value is {2**bits - 1} of 65535.*{bits} bits"
    ):
        read_image(tmp_path / "a.png")


def _colours_of_sixteen_bits(path: Path, values: np.ndarray) -> None:
    """A PNG as scanners write it, which Pillow does not."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, channels = values.shape
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


@pytest.mark.parametrize("channels", [3, 4])
def test_few_bits_of_colour_are_said_too(channels: int, tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 256).reshape(16, 16, 1).repeat(channels, 2)
    ramp[..., 3:] = 1
    full = ramp * 65535
    dark = full.copy()
    dark[..., :3] /= 16
    _colours_of_sixteen_bits(tmp_path / "dark.png", dark)
    with pytest.warns(FampeWarning, match=r"dark\.png: the largest of its 16-bit values is below 4112 of 65535"):
        read_image(tmp_path / "dark.png")
    _colours_of_sixteen_bits(tmp_path / "full.png", full)
    assert read_image(tmp_path / "full.png").getextrema()[0] == (0, 255)


def test_other_images_are_read_without_a_word(tmp_path: Path) -> None:
    ramp = np.linspace(0, 1, 256).reshape(16, 16)
    Image.fromarray((ramp * 65535).astype(np.uint16)).save(tmp_path / "full.png")
    Image.fromarray((ramp * 16383).astype(np.uint16)).save(tmp_path / "dim.png")
    Image.fromarray(np.zeros((16, 16), np.uint16)).save(tmp_path / "black.png")
    Image.fromarray((ramp * 20).astype(np.uint8)).save(tmp_path / "eight.png")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "share.tif")
    Image.fromarray((ramp * 255).astype(np.float32)).save(tmp_path / "bytes.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in tmp_path.iterdir():
            read_image(path)
    Image.fromarray((ramp * 9).astype(np.float32)).save(tmp_path / "dark.tif")
    with pytest.warns(FampeWarning, match="9 of 255"):
        read_image(tmp_path / "dark.tif")


@pytest.mark.slow
def test_the_command_says_it_in_one_line(photos: Path, model_file: Path, tmp_path: Path) -> None:
    for path in photos.iterdir():
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        Image.fromarray(grey).save(path)
    command = [sys.executable, "-m", "fampe_fast", "occlude", str(photos), "--model", str(model_file), "--bands", "4"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == DONE
    said = [line for line in done.stderr.splitlines() if "nearly black" in line]
    assert len(said) == 2
    assert all(line.startswith(f"fampe-fast: {photos}") for line in said)
    assert len(done.stderr.splitlines()) == 2


# The project's own checkout -------------------------------------------------------------------------------------------


def test_what_the_commands_write_by_default_is_no_part_of_the_project() -> None:
    root = Path(__file__).parents[2]
    ignored = [line.strip("/") for line in (root / ".gitignore").read_text().splitlines() if line]
    of_images = ("explain", "evaluate", "attack", "frequency", "occlude", "tune")
    commands = [["demo"], ["defend"], *([name, "x"] for name in of_images)]
    for command in commands:
        written = [parse(command).out]
        for path in written:
            assert any(fnmatch.fnmatch(str(path), line) for line in ignored), path
    assert parse(["study", "noise", "x"]).out is None
    assert any(fnmatch.fnmatch("fampe_study_noise", line) for line in ignored)
    assert not any(fnmatch.fnmatch("fampe_fast", line) for line in ignored)


@pytest.mark.parametrize(("size", "sides"), [("4", "4 x 4"), ("7", "7 x 7")])
@pytest.mark.parametrize("command", ["explain", "evaluate", "frequency", "occlude"])
def test_a_size_that_no_method_explains_costs_one_line_before_work(
    command: str, size: str, sides: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    arguments = [command, str(photos), "--model", str(model_file), "--input-size", size, "--out", str(out)]
    told = refused(arguments, capsys).strip()
    assert f"at least 8 pixels high and wide, got {sides}" in told
    assert "\n" not in told
    assert not list(out.rglob("*.png"))
