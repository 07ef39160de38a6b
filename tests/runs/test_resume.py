"""What is finished stays finished: through SIGKILL, a lost terminal and a full disk; and it is known by its content."""

from __future__ import annotations

import functools
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fampe_fast import FAMPE
from fampe_fast.cli import DONE, INTERRUPTED, UNUSABLE, main
from fampe_fast.files import FIGURE, mark_of, png_content
from fampe_fast.methods import create_method
from fampe_fast.methods.settings import everything_of
from fampe_fast.models.embedded import load_embedded_classifier
from fampe_fast.runs.evaluate import evaluate_files
from fampe_fast.runs.explain import explain_files
from fampe_fast.runs.measurement import Measurement
from fampe_fast.runs.records import Item, Journal, Records

from ..images_for_tests import draw
from .forked import start

pytestmark = pytest.mark.slow
COUNT = 4
SMALL = ["--input-size", "48"]  # half of what the model was trained on
PATH = ["--views", "0"]  # the model file, a program, has no layers
PATHS = [*PATH, "--variant", "fampe, path", "--variant", "fampe_published"]
# What each command is given, the file that grows while it works, and what it leaves behind.
COMMANDS: dict[str, tuple[list[str], str, list[str]]] = {
    "explain": (["--steps", "8", "--samples", "8", *PATH], "object_0.npz", []),
    "evaluate": (
        ["--method", "fampe,attexplore", "--steps", "3", "--samples", "8", *PATH, "--metric-steps", "4"],
        "scores.jsonl",
        ["scores.json", "contact_sheet.png"],
    ),
    "attack": (
        ["--bands", "low,all", "--cutoff", "12", "--steps", "20", "--save-images"],
        "attack.jsonl",
        ["attack.json", "attack.png"],
    ),
    "occlude": (
        ["--bands", "60", "--input-size", "224"],
        "occluded_frequency.jsonl",
        ["occluded_frequency.json", "occluded_frequency.png"],
    ),
    "frequency": (
        ["--parts", "attribution", "--passes", "48"],
        "frequency.jsonl",
        ["frequency.json", "frequency.png", "reliance.png", "places.png"],
    ),
    "tune": (
        ["--method", "fampe", "--steps", "2", "--samples", "8", *PATH, "--metric-steps", "3"],
        "cutoffs.jsonl",
        ["cutoffs.json", "cutoffs.png"],
    ),
    "study": (
        ["--steps", "4", "--samples", "4", *PATHS, "--metric-steps", "4"],
        "scores.jsonl",
        ["study.json", "table.md"],
    ),
}
RECORDED = [name for name in COMMANDS if name != "explain"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("given") / "photos", COUNT)


def words(command: str, photos: Path, model: Path, out: Path, *more: str, batch: int = 1) -> list[str]:
    options, _, _ = COMMANDS[command]
    named = [command, "methods"] if command == "study" else [command]
    return [
        *named, str(photos), "--model", str(model), *SMALL, "--out", str(out), "--batch-size", str(batch), *options,
        *more,
    ]  # fmt: skip


def wait_for(there: Callable[[], bool], process: BaseProcess, errors: Path) -> None:
    deadline = time.monotonic() + 240
    while not there() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.is_alive(), errors.read_text()


def results(path: Path) -> list[str]:
    """The finished lines that hold results."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [line for line in lines[1:] if '"settings"' not in line]


def without_times(path: Path) -> Any:
    found = json.loads(path.read_text())
    found.pop("seconds_per_image", None)
    return found


def maps_of(out: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path)["map"] for path in sorted(out.glob("*.npz"))}


def hidden(out: Path) -> list[Path]:
    return [path for path in out.rglob(".*") if path.is_file()]


ALONE = ["--batch-size", "1"]  # beside another image, a model's last bits may differ
ONE_BY_ONE = ["--limit", "3", *ALONE]


@pytest.fixture(scope="module")
def undisturbed(photos: Path, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a command's quick run that nothing disturbs; each command runs once for all tests."""
    folder = tmp_path_factory.mktemp("undisturbed")

    @functools.cache
    def results_of(command: str) -> Path:
        assert main(quick(command, photos, model_file, folder / command, *ONE_BY_ONE)) == DONE
        return folder / command

    return results_of


# Killed ---------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="processes are ended by a signal")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(
    command: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, grows, leaves = COMMANDS[command]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(words(command, photos, model_file, whole)) == DONE
    process = start(words(command, photos, model_file, out), tmp_path / "errors")
    if command == "explain":
        wait_for((out / "object_1.npz").exists, process, tmp_path / "errors")
    else:
        wait_for(lambda: len(results(out / grows)) >= 2, process, tmp_path / "errors")
    process.kill()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    before = (out / grows).read_bytes()
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    assert not any((out / name).exists() for name in leaves)

    capsys.readouterr()
    assert main(words(command, photos, model_file, out)) == DONE
    assert not hidden(out)
    if command == "explain":
        assert "images were finished by an earlier run" in capsys.readouterr().err
        assert all(path.stat().st_mtime_ns == when for path, when in times.items())
        expected, found = maps_of(whole), maps_of(out)
        assert list(found) == list(expected)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        assert {path.name: path.read_bytes() for path in whole.glob("*.png")} == {
            path.name: path.read_bytes() for path in out.glob("*.png")
        }
        return
    finished = before[: before.rfind(b"\n") + 1]
    assert (out / grows).read_bytes().startswith(finished)  # nothing of it was done again
    assert len(results(out / grows)) == len(results(whole / grows))
    for name in leaves:
        if name.endswith(".json"):
            assert without_times(out / name) == without_times(whole / name)
        else:
            assert (out / name).read_bytes() == (whole / name).read_bytes()
    if command == "attack":
        for path in sorted((whole / "images").rglob("*.png")):
            assert (out / path.relative_to(whole)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_finished_run_is_not_done_again(
    command: str, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one gradient or score is computed: what would compute it is gone."""
    arguments = quick(command, draw(tmp_path / "photos", 2), model_file, tmp_path / "out")
    assert main(arguments) == DONE
    kept = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}

    def gone(*given: object, **options: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("fampe_fast.methods.base.PathMethod.attribute", gone)
    monkeypatch.setattr("fampe_fast.robustness.occluded_frequency.OccludedFrequency.__call__", gone)
    monkeypatch.setattr("fampe_fast.robustness.frequency_attribution.FrequencyAttribution.__call__", gone)
    monkeypatch.setattr("fampe_fast.robustness.band_limited.BandLimitedAttack.__call__", gone)
    monkeypatch.setattr("fampe_fast.methods.tuning.insertion_deletion", gone)
    assert main(arguments) == DONE
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == kept
    assert kept


@pytest.mark.parametrize("command", RECORDED)
def test_half_a_line_is_dropped_and_spoils_nothing_that_follows(
    command: str, photos: Path, model_file: Path, tmp_path: Path, undisturbed: Callable[[str], Path]
) -> None:
    _, grows, leaves = COMMANDS[command]
    whole, out = undisturbed(command), tmp_path / "out"
    shutil.copytree(whole, out)
    for name in leaves:
        (out / name).unlink()
    lines = (out / grows).read_bytes().split(b"\n")
    keep = max(2, len(lines) // 2)  # of which the last one is cut
    (out / grows).write_bytes(b"\n".join(lines[:keep]) + b"\n" + lines[keep][: len(lines[keep]) // 2])
    assert main(quick(command, photos, model_file, out, *ONE_BY_ONE)) == DONE
    assert len(results(out / grows)) == len(results(whole / grows))
    for line in (out / grows).read_text().splitlines():
        json.loads(line)
    json_file = next(name for name in leaves if name.endswith(".json"))
    assert without_times(out / json_file) == without_times(whole / json_file)


# The terminal ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
@pytest.mark.parametrize("command", ["evaluate", "occlude", "study"])
def test_a_hangup_sums_up_what_is_finished(command: str, photos: Path, model_file: Path, tmp_path: Path) -> None:
    _, grows, leaves = COMMANDS[command]
    out = tmp_path / "out"
    process = start(
        words(command, photos, model_file, out),
        tmp_path / "errors",
        functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
    )
    enough = 6 if command == "study" else 3  # every variant has an image, and the model has answered for it
    wait_for(lambda: len(results(out / grows)) >= enough, process, tmp_path / "errors")
    os.kill(process.pid, signal.SIGHUP)
    process.join(120)
    errors = (tmp_path / "errors").read_text()
    assert process.exitcode == INTERRUPTED, errors
    assert "interrupted; completed results were saved" in errors
    assert "Traceback" not in errors
    for name in leaves:
        assert (out / name).stat().st_size
    written = json.loads((out / leaves[0]).read_text())
    assert 1 <= len(written["images"]) < COUNT
    assert not hidden(out)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_a_hangup_that_nohup_ignores_stays_ignored(photos: Path, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(
        words("occlude", photos, model_file, out),
        tmp_path / "errors",
        functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for(lambda: len(results(out / "occluded_frequency.jsonl")) >= 1, process, tmp_path / "errors")
    os.kill(process.pid, signal.SIGHUP)
    process.join(120)
    assert process.exitcode == DONE, (tmp_path / "errors").read_text()
    assert len(json.loads((out / "occluded_frequency.json").read_text())["images"]) == COUNT


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_a_terminal_that_is_gone_takes_nothing_with_it(photos: Path, model_file: Path, tmp_path: Path) -> None:
    """The other end of the terminal is closed: the system sends SIGHUP, and every line that is printed fails."""
    out = tmp_path / "out"
    ours, theirs = pty.openpty()

    def have_a_terminal() -> None:
        import fcntl
        import termios

        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "fampe_fast", *words("evaluate", photos, model_file, out)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=have_a_terminal,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    deadline = time.monotonic() + 240
    while len(results(out / "scores.jsonl")) < 3 and process.poll() is None and time.monotonic() < deadline:
        try:
            os.read(ours, 65536)  # else a full terminal makes the process wait
        except BlockingIOError:
            time.sleep(0.01)
    os.close(ours)
    assert process.wait(timeout=120) == INTERRUPTED
    assert 1 <= len(json.loads((out / "scores.json").read_text())["images"]) < COUNT
    with Image.open(out / "contact_sheet.png") as sheet:
        sheet.verify()


# A full disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_ends_with_one_line_and_keeps_what_is_finished(
    command: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch, undisturbed: Callable[[str], Path],
) -> None:  # fmt: skip
    """Half of a write goes through, and from then on nothing does, until there is room again."""
    _, grows, leaves = COMMANDS[command]
    whole, out = undisturbed(command), tmp_path / "out"
    capsys.readouterr()
    real_write, real_sync, room = os.write, os.fsync, [6 if command in ("explain", "attack") else 3]

    def full() -> bool:
        return room[0] <= 0

    def write(handle: int, content: bytes) -> int:
        if full():
            raise OSError(28, "No space left on device")
        room[0] -= 1
        if full():
            return real_write(handle, bytes(content)[: len(content) // 2])
        return real_write(handle, content)

    def sync(handle: int) -> None:
        if full():
            raise OSError(28, "No space left on device")
        if command in ("explain", "attack"):
            room[0] -= 1
        real_sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        patch.setattr(os, "fsync", sync)
        assert main(quick(command, photos, model_file, out, *ONE_BY_ONE)) == UNUSABLE
    errors = capsys.readouterr().err
    assert errors.count("fampe-fast: ") == 1
    assert "No space left on device" in errors
    assert str(out) in errors
    assert "picture" not in errors.replace(str(out), "")
    assert "Traceback" not in errors
    assert not hidden(out)
    if grows.endswith(".jsonl"):
        for line in (out / grows).read_text().split("\n")[:-1]:
            json.loads(line)
        assert (out / grows).read_bytes().endswith(b"\n")
    for path in out.rglob("*.npz"):
        assert np.load(path)["map"].size
    assert main(quick(command, photos, model_file, out, *ONE_BY_ONE)) == DONE
    for name in leaves:
        if name.endswith(".json"):
            assert without_times(out / name) == without_times(whole / name)
    if command == "explain":
        assert all(np.array_equal(a, b) for a, b in zip(maps_of(out).values(), maps_of(whole).values(), strict=True))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of this kind")
def test_a_limit_on_files_is_a_full_disk(photos: Path, model_file: Path, tmp_path: Path) -> None:
    import resource

    out = tmp_path / "out"
    process = start(
        words("explain", photos, model_file, out, "--steps", "1", "--samples", "1", "--input-size", "96"),
        tmp_path / "errors",
        functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    process.join(240)
    errors = (tmp_path / "errors").read_text()
    assert process.exitcode == UNUSABLE
    assert errors.count("\n") == 1
    assert "cannot write the file: File too large" in errors
    assert "object_0.npz" in errors
    assert not list(out.glob("*"))


# Known by content -----------------------------------------------------------------------------------------------------


def scores_of(command: str, out: Path) -> Any:
    """What a command says of its images, in order."""
    if command == "explain":
        return [float(np.load(out / f"object_{k}.npz")["map"].sum(dtype=np.float64)) for k in range(2)]
    written = json.loads((out / COMMANDS[command][2][0]).read_text())
    if command == "tune":
        return [entry for name, entry in written.items() if name != "fampe_fast"]
    return written["images"]


QUICK = {
    "explain": ["--steps", "1", "--samples", "2", *PATH],
    "evaluate": ["--method", "fampe", "--steps", "1", "--samples", "2", *PATH, "--metric-steps", "4"],
    "attack": ["--bands", "all", "--steps", "2", "--save-images"],
    "occlude": ["--bands", "6"],
    "frequency": ["--parts", "attribution", "--passes", "2"],
    "tune": ["--method", "fampe", "--steps", "1", "--samples", "2", *PATH, "--metric-steps", "3"],
    "study": ["--steps", "1", "--samples", "1", *PATHS, "--metric-steps", "3"],
}


def quick(command: str, photos: Path, model: Path, out: Path, *more: str) -> list[str]:
    named = [command, "methods"] if command == "study" else [command]
    return [*named, str(photos), "--model", str(model), *SMALL, "--out", str(out), *QUICK[command], *more]


def settled(command: str, arguments: list[str], out: Path) -> Any:
    """Run a command to its end, and give what it says of its images."""
    assert main(arguments) == DONE
    return scores_of(command, out)


@pytest.fixture(scope="module")
def finished(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a command's results for the two images of ``draw``; each command runs once for all tests."""
    folder = tmp_path_factory.mktemp("finished")
    photos = draw(folder / "photos", 2)

    @functools.cache
    def results_of(command: str) -> Path:
        out = folder / command
        assert main(quick(command, photos, model_file, out, *ALONE)) == DONE
        return out

    return results_of


CHANGES = ["other folder", "replaced", "renamed", "reordered", "relabelled", "model", "settings"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_reused_is_what_would_be_computed(
    command: str, change: str, model_file: Path, finished: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In a folder of results of something else that bears the same names, a run finds what it finds in a new folder."""
    dot = Image.new("RGB", (1, 1))  # for each figure, as numbers alone are compared, and figures take longer than they
    monkeypatch.setattr("fampe_fast.plots.saving.png_bytes", lambda figure, key="": png_content(dot, FIGURE, key))
    if command == "explain" and change == "relabelled":
        change = "target"
    photos, model, more = draw(tmp_path / "photos", 2), model_file, ALONE
    labels = tmp_path / "labels.json"
    if change == "relabelled":
        labels.write_text('{"object_0.png": 1, "object_1.png": 2}')
        more = [*ALONE, "--labels", str(labels)]
    if change == "target":
        more = [*ALONE, "--target", "1"]
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    if more is not ALONE:
        assert main(quick(command, photos, model, out, *more)) == DONE
    else:
        shutil.copytree(finished(command), out)
    earlier = scores_of(command, out)
    if change == "other folder":
        photos = draw(tmp_path / "others", 2, seed=77)
    elif change == "replaced":
        other = draw(tmp_path / "others", 2, seed=77)
        shutil.copy(other / "object_1.png", photos / "object_1.png")
    elif change == "renamed":  # the same images under each other's names
        os.rename(photos / "object_0.png", photos / "x")
        os.rename(photos / "object_1.png", photos / "object_0.png")
        os.rename(photos / "x", photos / "object_1.png")
    elif change == "reordered":
        shutil.copy(photos / "object_0.png", photos / "a_new_first.png")
    elif change == "relabelled":
        labels.write_text('{"object_0.png": 3, "object_1.png": 2}')
    elif change == "target":
        more = [*ALONE, "--target", "2"]
    elif change == "model":
        changed = load_embedded_classifier()
        with torch.no_grad():
            next(changed.parameters()).mul_(1.05)
        (tmp_path / "model").mkdir()
        model = tmp_path / "model" / model_file.name  # of the same name
        torch.jit.trace(changed, torch.rand(2, 3, 96, 96)).save(str(model))
    else:
        others = {"occlude": ["--bands", "7"], "frequency": ["--passes", "3"], "attack": ["--eps", "4/255"]}
        more = [*ALONE, *others.get(command, ["--seed", "3"])]
    found = settled(command, quick(command, photos, model, out, *more), out)
    expected = settled(command, quick(command, photos, model, fresh, *more), fresh)
    assert found == expected
    assert found != earlier
    assert main(quick(command, photos, model, out, *more)) == DONE
    assert scores_of(command, out) == expected  # and is found again


def test_a_file_that_is_renamed_keeps_its_results(model_file: Path, tmp_path: Path, capsys) -> None:
    photos, out = draw(tmp_path / "photos", 2), tmp_path / "out"
    assert main(quick("occlude", photos, model_file, out)) == DONE
    before = results(out / "occluded_frequency.jsonl")
    (photos / "object_1.png").rename(photos / "something_else.png")
    assert main(quick("occlude", photos, model_file, out)) == DONE
    assert results(out / "occluded_frequency.jsonl") == before
    written = json.loads((out / "occluded_frequency.json").read_text())
    assert [image["file"] for image in written["images"]] == ["object_0.png", "something_else.png"]
    assert "2 of 2 images were finished by an earlier run" in capsys.readouterr().err


def test_attacked_images_are_the_ones_of_the_record(model_file: Path, tmp_path: Path) -> None:
    """One that is lost, or replaced by that of other settings, is made again."""
    photos, out = draw(tmp_path / "photos", 2), tmp_path / "out"
    arguments = quick("attack", photos, model_file, out)
    assert main(arguments) == DONE
    kept = {path: path.read_bytes() for path in (out / "images").rglob("*.png")}
    assert main([*arguments, "--eps", "2/255"]) == DONE
    assert {path: path.read_bytes() for path in kept} != kept
    assert main(arguments) == DONE
    assert {path: path.read_bytes() for path in kept} == kept
    next(iter(kept)).unlink()
    assert main(arguments) == DONE
    assert {path: path.read_bytes() for path in kept} == kept


def test_an_explanation_whose_picture_is_another_s_is_drawn_again(model_file: Path, tmp_path: Path, capsys) -> None:
    photos, out = draw(tmp_path / "photos", 1), tmp_path / "out"
    arguments = quick("explain", photos, model_file, out)
    assert main(arguments) == DONE
    archive, picture = (out / "object_0.npz").read_bytes(), (out / "object_0.png").read_bytes()
    assert "replaced" not in capsys.readouterr().err
    assert main([*arguments, "--target", "3"]) == DONE
    assert "1 earlier results" in capsys.readouterr().err
    (out / "object_0.npz").write_bytes(archive)  # as if the second run had been killed between the two
    assert main(arguments) == DONE
    assert (out / "object_0.png").read_bytes() == picture
    (out / "object_0.png").unlink()
    assert main(arguments) == DONE
    assert (out / "object_0.png").read_bytes() == picture
    (out / "object_0.npz").write_bytes(archive[: len(archive) // 2])  # a damaged one has lost its mark
    assert main(arguments) == UNUSABLE
    assert "was not written by fampe_fast" in capsys.readouterr().err


def test_a_picture_is_drawn_again_where_its_class_has_another_name(model_file: Path, tmp_path: Path, capsys) -> None:
    photos, out, names = draw(tmp_path / "photos", 1), tmp_path / "out", tmp_path / "names.txt"
    pictures = []
    for word in ("first", "second", "second"):
        names.write_text("".join(f"{word} {k}\n" for k in range(load_embedded_classifier().num_classes)))
        assert main([*quick("explain", photos, model_file, out), "--class-names", str(names)]) == DONE
        pictures.append((out / "object_0.png").read_bytes())
    assert pictures[0] != pictures[1] == pictures[2]
    assert "1 of 1 images were finished by an earlier run" in capsys.readouterr().err


def test_more_images_and_more_methods_cost_themselves(model_file: Path, tmp_path: Path) -> None:
    photos, out = draw(tmp_path / "photos", 3), tmp_path / "out"
    arguments = quick("evaluate", photos, model_file, out)
    assert main([*arguments, "--limit", "2"]) == DONE
    first = results(out / "scores.jsonl")
    assert main(arguments) == DONE
    assert results(out / "scores.jsonl")[: len(first)] == first
    assert len(results(out / "scores.jsonl")) == 2 * len(first)  # of the batch with the third one
    assert main([*arguments, "--method", "fampe,attexplore"]) == DONE
    assert len(results(out / "scores.jsonl")) == 2 * len(first) + 1
    assert len(json.loads((out / "scores.json").read_text())["images"]) == 3


def test_a_method_of_others_is_never_taken_for_what_it_was(tmp_path: Path) -> None:
    """Nobody knows what it is set to."""
    classifier = load_embedded_classifier()
    inner = create_method("fampe", classifier, steps=1, samples=1)

    class Theirs:
        calls = 0

        def attribute(self, inputs: torch.Tensor, target: object = None, **options: object) -> torch.Tensor:
            self.calls += 1
            return inner.attribute(inputs, target, **options)

    method, paths = Theirs(), sorted(draw(tmp_path / "photos", 1).glob("*.png"))
    two_steps = Measurement(options={"insertion_deletion": {"steps": 2}})
    for expected in (1, 2):
        evaluate_files(classifier, {"theirs": method}, paths, tmp_path / "out", measurement=two_steps)
        assert method.calls == expected
    for expected in (3, 4):
        explain_files(classifier, method, paths, tmp_path / "explained")
        assert method.calls == expected
    # Nor is one of ours on another model than the one that is asked.
    other = create_method("fampe", lambda pixels: classifier(pixels) * 2, steps=1, samples=1)
    for _ in range(2):
        assert not explain_files(classifier, other, paths, tmp_path / "explained")[0].earlier
    assert explain_files(classifier, inner, paths, tmp_path / "ours")[0].earlier is False
    assert explain_files(classifier, inner, paths, tmp_path / "ours")[0].earlier is True


def test_settings_tell_methods_apart() -> None:
    pytest.importorskip("captum")
    classifier = load_embedded_classifier()

    def known(name: str, **options: object) -> dict[str, object]:
        return everything_of(create_method(name, classifier, **options), classifier)

    assert known("saliency")["config"]["passes"] == 1
    for name, one, other in (
        ("smoothgrad", {"seed": 1}, {"seed": 2}),
        ("smoothgrad", {"noise": 0.1}, {"noise": 0.2}),
        ("smoothgrad", {"passes": 3}, {"passes": 4}),
        ("forgrad_smoothgrad", {"seed": 1}, {"seed": 2}),
        ("forgrad_fampe", {"map_cutoff": 9}, {"map_cutoff": 8}),
        ("fampe", {"alpha": 0.1}, {"alpha": 0.2}),
        ("integrated_gradients", {"passes": 5}, {"passes": 6}),
    ):
        assert known(name, **one) == known(name, **one)
        assert known(name, **one) != known(name, **other)
    assert known("fampe") != known("fampe_published")
    explored = everything_of(FAMPE(classifier, explorer=classifier), classifier)
    assert explored == everything_of(FAMPE(classifier, explorer=classifier), classifier)
    assert explored != known("fampe")
    foreign = FAMPE(classifier, explorer=lambda pixels: classifier(pixels))
    assert everything_of(foreign, classifier) != everything_of(foreign, classifier)


# The records themselves -----------------------------------------------------------------------------------------------


def test_two_runs_do_not_write_into_one_file(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "records.jsonl"
    with Journal(path, {}, "a test") as journal:
        journal.append({"a": 1})
        with pytest.raises(OSError, match="another run of fampe_fast is writing to it"):
            Journal(path, {}, "a test")
    with Journal(path, {}, "a test") as journal:
        assert journal.lines == [{"a": 1}]


def test_records_of_one_command_are_not_another_s(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with Records(path, "evaluate") as records:
        context = records.context({"alpha": float("nan"), "eps": float("inf")})
        records.add(context, [Item(Path("a"), 0, 0, "00", None)], [{"score": float("nan")}])
        assert records.get(context, Item(Path("b"), 7, 0, "00", None)) == {"score": None}  # of any name and place
        assert records.get(context, Item(Path("a"), 0, 1, "00", None)) is None
        assert records.get(context, Item(Path("a"), 0, 0, "01", None)) is None
        assert records.get(context, Item(Path("a"), 0, 0, "00", 0)) is None
        assert records.get(context, Item(Path("a"), 0, 0, None, None)) is None
    mark = mark_of(path)
    assert mark is not None
    assert mark.kind == "records"
    assert "NaN" not in path.read_text()
    with pytest.raises(ValueError, match="records of another command than attack: give another folder"):
        Records(path, "attack")
    path.write_text(path.read_text() + '{"context": "x"}\n')
    with pytest.raises(ValueError, match="line 4 is not a record"):
        Records(path, "evaluate")
    path.write_text("my diary\n")
    with pytest.raises(ValueError, match="holds no records of evaluate"):
        Records(path, "evaluate")
