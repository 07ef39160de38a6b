"""The command ``batch`` as a person meets it."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from fampe_fast.batch import local, sources
from fampe_fast.batch.local import Progress, RunReport
from fampe_fast.batch.plan import read_back, read_rows
from fampe_fast.batch.storage import open_storage
from fampe_fast.cli import DONE, INTERRUPTED, SOME_FAILED, UNUSABLE, main
from fampe_fast.cli.progress_lines import ProgressLines, duration_text, stand_text
from fampe_fast.models.embedded import load_embedded_classifier

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
fsspec = pytest.importorskip("fsspec")
timm = pytest.importorskip("timm")

NAME = "test_efficientnet"  # timm's smallest
SMALL = ["--input-size", "32"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write two random checkpoints of a small model."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("weights")
    for seed in range(2):
        torch.manual_seed(seed)
        model = timm.create_model(NAME, pretrained=False, num_classes=10)
        save_file(model.state_dict(), folder / f"{seed}.safetensors")
    return [folder / f"{seed}.safetensors" for seed in range(2)]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Make a folder of ten images and a damaged one."""
    generator = np.random.default_rng(0)
    for k in range(10):
        folder = tmp_path / "photos" / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    (tmp_path / "photos" / "b" / "damaged.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.fixture
def batch(tmp_path: Path, weights: list[Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command with a small model and a method of one pass, in this process."""
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    monkeypatch.chdir(tmp_path)

    def call(*words: object, source: object = "photos", out: object = "out", seed: int = 0) -> int:
        model = ["--model", NAME, "--weights", str(weights[seed])]
        fixed = [
            *model,
            "--method",
            "smoothgrad",
            "--passes",
            "2",
            "--rows-per-shard",
            "4",
            "--batch-size",
            "3",
            *SMALL,
        ]
        given = [] if source is None else [str(source), *fixed]
        run = ["--decoders", "0", "--device", "cpu"]
        return main(["batch", *given, "--out", str(out), *run, *map(str, words)])

    return call


def digest(out: object) -> dict[str, str]:
    dest = open_storage(str(out))
    return {name: hashlib.sha256(dest.read(name)).hexdigest() for name in dest.names("maps/")}


def maps(out: object) -> dict[int, dict[str, Any]]:
    """Read the rows of all shards by their image id."""
    dest = open_storage(str(out))
    files = [pq.ParquetFile(pa.BufferReader(dest.read(name))) for name in dest.names("maps/")]
    rows = [row for file in files for row in file.read().to_pylist()]
    return {row["image_id"]: row for row in rows}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    found = capsys.readouterr()
    assert found.out == ""
    return found.err


def test_a_folder_becomes_maps(batch: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert batch() == SOME_FAILED
    text = said(capsys)
    assert f"planned 11 images in 3 shards of 4 in {Path('out').absolute()}" in text
    assert "all 3 shards are in" in text
    assert "10 of 11 images have a map" in text
    rows = maps("out")
    assert sorted(rows) == list(range(11))
    plan = read_back(open_storage("out"))
    assert [row.uri for k in range(3) for row in read_rows(open_storage("out"), plan, k)] == [
        rows[k]["uri"] for k in range(11)
    ]
    failed = [row for row in rows.values() if row["error"] is not None]
    assert [Path(row["uri"]).name for row in failed] == ["damaged.png"]
    assert failed[0]["error_kind"] == "permanent"
    # Done is done: the code stays, and nothing is computed again.
    before = digest("out")
    assert batch() == batch(source=None) == SOME_FAILED
    assert digest("out") == before


def test_a_plan_is_not_listed_again(
    batch: Callable[..., int], photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b" / "damaged.png").unlink()
    assert batch("--plan-only") == DONE
    assert digest("out") == {}
    (photos / "a" / "00_new.png").write_bytes((photos / "a" / "0.png").read_bytes())
    monkeypatch.setattr(sources, "list_rows", None)
    assert batch() == DONE
    assert "10 of 10 images have a map" in said(capsys)
    whole = digest("out")
    (Path("out") / "maps" / "000" / "000001.parquet").unlink()
    assert batch(source=None) == DONE
    assert digest("out") == whole
    monkeypatch.undo()


def test_parts_and_pieces_make_the_bytes_of_the_whole(
    batch: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch(out="whole")
    assert batch("--part", "0/2", out="parts") == UNUSABLE
    assert "--plan-only in place of --part" in said(capsys)
    assert not Path("parts").exists()
    batch("--plan-only", "--rows-per-plan-file", "3", out="parts")
    assert len(list(Path("parts/plan").iterdir())) == 4
    assert batch("--part", "1/2", source=None, out="parts") in (DONE, SOME_FAILED)
    assert "1 of 3 shards are finished; continue with: fampe-fast batch --out" in said(capsys)
    assert list(digest("parts")) == ["maps/000/000001.parquet"]
    assert batch("--part", "0/2", source=None, out="parts") == SOME_FAILED
    assert digest("parts") == digest("whole")


def test_a_sample_has_the_maps_of_the_whole(batch: Callable[..., int], photos: Path) -> None:
    batch(out="whole")
    assert batch("--sample", "4", "--batch-size", "1", out="few") in (DONE, SOME_FAILED)
    whole, few = maps("whole"), maps("few")
    assert len(few) == 4
    for image_id, row in few.items():
        assert row["uri"] == whole[image_id]["uri"]
        if row["error"] is None:
            # Of other company in the batch, so that the last bits may differ.
            np.testing.assert_allclose(
                row["map"], whole[image_id]["map"], rtol=2e-3, atol=2e-3 * max(map(abs, row["map"]))
            )


def test_tables_name_targets_and_ids(batch: Callable[..., int], photos: Path) -> None:
    lines = ["path,label,image_id", "photos/a/0.png,3,70", "photos/b/1.png,,5"]
    Path("table.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    assert batch(source="table.csv", out="given") == DONE
    rows = maps("given")
    assert sorted(rows) == [5, 70]
    assert rows[70]["target"] == 3
    assert rows[5]["target"] == rows[5]["predicted"]
    assert batch("--target", "model", source="table.csv", out="own") == DONE
    assert all(row["target"] == row["predicted"] for row in maps("own").values())
    assert batch("--target", "9", source="table.csv", out="nine") == DONE
    assert {row["target"] for row in maps("nine").values()} == {9}


def test_stores_are_read_and_written(batch: Callable[..., int], photos: Path, tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for path in sorted(photos.rglob("*.png")):
        store.pipe_file(f"/{tmp_path.name}/photos/{path.relative_to(photos).as_posix()}", path.read_bytes())
    address = f"memory://{tmp_path.name}"
    assert batch(source=f"{address}/photos", out=f"{address}/out") == SOME_FAILED
    batch(out="local")
    stored, here = maps(f"{address}/out"), maps("local")
    for image_id, row in stored.items():
        assert row["map"] == here[image_id]["map"]
        assert row["uri"] == f"memory://{Path('/') / tmp_path.name}/photos/" + row["uri"].partition("/photos/")[2]


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--passes", "3"], "everything.config.passes: 2 there, 3 now"),
        (["--seed", "7"], "seed: 0 there, 7 now"),
        (["--rows-per-shard", "5"], "rows_per_shard: 4 there, 5 now"),
        (["--internal-batch-size", "3"], "internal_batch_size: 8 there, 3 now"),
        (["--map-dtype", "float32"], 'map_dtype: "float16" there, "float32" now'),
        (["--target", "3"], "target: null there, 3 now"),
        (["--sample", "3"], "sample: null there, 3 now"),
        (["--method", "saliency"], 'method: "smoothgrad" there, "saliency" now'),
    ],
)
def test_another_configuration_in_the_same_place_is_refused(
    batch: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str], words: list[str], difference: str
) -> None:
    batch("--plan-only")
    before = (Path("out") / "plan.json").read_bytes()
    capsys.readouterr()
    if "saliency" in words:  # which has no --passes
        model = ["--model", NAME, "--weights", json.loads(before)["model"]["weights"]]
        shards = ["--rows-per-shard", "4", "--batch-size", "3", "--out", "out", "--device", "cpu", *SMALL]
        assert main(["batch", "photos", *model, *shards, *words]) == UNUSABLE
    else:
        assert batch(*words) == UNUSABLE
    text = said(capsys)
    assert text.count("\n") == 1
    assert " has another plan: " in text
    assert difference in text
    assert (Path("out") / "plan.json").read_bytes() == before


def test_another_model_is_refused(
    batch: Callable[..., int], photos: Path, weights: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    batch("--plan-only")
    capsys.readouterr()
    assert batch(seed=1) == UNUSABLE
    assert 'model: "' in said(capsys)
    content = weights[0].read_bytes()
    try:
        weights[0].write_bytes(weights[1].read_bytes())
        assert batch(source=None) == UNUSABLE
    finally:
        weights[0].write_bytes(content)
    text = said(capsys)
    assert "not the planned one" in text
    assert text.count("\n") == 1
    assert digest("out") == {}


def test_programs_are_loaded_only_where_they_are_trusted(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    model = load_embedded_classifier().model
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 96, 96)), "model.pt")
    words = ["photos", "--model", "model.pt", "--input-size", "96", "--method", "saliency", "--target", "0"]
    run = ["--out", "out", "--device", "cpu", "--decoders", "0"]
    loaded: list[str] = []
    real = torch.jit.load
    monkeypatch.setattr(torch.jit, "load", lambda *rest, **options: loaded.append("yes") or real(*rest, **options))
    assert main(["batch", *words, *run]) == UNUSABLE
    assert "is a program (TorchScript)" in said(capsys)
    assert not Path("out").exists()
    assert main(["batch", *words, *run, "--trust-model", "--plan-only"]) == DONE
    loaded.clear()
    assert main(["batch", *run]) == UNUSABLE
    assert "--trust-model" in said(capsys)
    assert loaded == []
    assert main(["batch", *run, "--trust-model"]) == SOME_FAILED
    assert len(maps("out")) == 11


def test_what_cannot_be_begun_is_said_in_a_line_before_there_is_anything(
    batch: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("thesis").mkdir()
    Path("thesis/thesis.txt").write_text("years of work")
    Path("names.csv").write_text("name,age\na,3\n")
    Path("high.csv").write_text("uri,label\na.png,10\n")
    Path("empty").mkdir()
    for words, options, reason in [
        ([], {"out": "thesis"}, "has other content (thesis.txt)"),
        ([], {"out": "names.csv"}, "is a file, where a folder is needed"),
        ([], {"out": "s3://me:password@bucket/out"}, "name or password"),
        ([], {"source": "s3://me:password@bucket/photos"}, "name or password"),
        ([], {"source": None}, "nothing is planned"),
        ([], {"source": "gone"}, "there is no "),
        ([], {"source": "empty"}, "there are no images in "),
        ([], {"source": "names.csv"}, "has the columns name, age; expected a column uri"),
        ([], {"source": "high.csv"}, "the model has 10 classes"),
        (["--sample", "12"], {}, "fewer than the sample of 12"),
        (["--mode", "mix"], {}, "no such option(s): --mode"),
        (["--devices", "cpu,cpu"], {}, "--device and --devices exclude each other"),
        (["--max-pixels", "178956971"], {}, "178956970 at most"),
    ]:  # fmt: skip
        assert batch(*words, **options) == UNUSABLE, reason
        text = said(capsys)
        assert reason in text
        assert text.count("\n") == 1
        assert "password@" not in text
        assert not list(Path().glob("out/**/*.*"))
    assert [path.name for path in Path("thesis").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--part", "2/2"], "from 0 to N - 1"),
        (["--part", "x"], "expected I/N"),
        (["--method", "smoothgrad,saliency"], "expected one method"),
        (["--method", "magic"], "unknown method"),
        (["--target", "-1"], "0 or more"),
        (["--target", "cat"], "or model"),
        (["--rows-per-shard", "0"], "at least 1"),
        (["--decoders", "-1"], "at least 0"),
        (["--devices", "cpu,"], "names separated by commas"),
    ],
)
def test_words_that_mean_nothing(capsys: pytest.CaptureFixture[str], words: list[str], reason: str) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["batch", "photos", *words])
    assert raised.value.code == UNUSABLE
    assert reason in capsys.readouterr().err


def test_options_of_a_plan_are_not_silently_left_aside(
    batch: Callable[..., int], photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch("--plan-only")
    capsys.readouterr()
    for words in (["--seed", "3"], ["--method", "rise"], ["--overlay"], ["--model", "resnet50d"]):
        assert batch(*words, source=None) == UNUSABLE
        text = said(capsys)
        assert text.startswith(f"fampe-fast: {words[0]}: without a SOURCE")
        assert text.count("\n") == 1


def test_a_missing_package_is_named_first(
    batch: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert batch(source="gone") == UNUSABLE
    assert said(capsys) == "fampe-fast: pyarrow is needed for data sets: pip install 'fampe_fast[batch]'\n"


def test_a_request_to_end_says_how_to_go_on(
    batch: Callable[..., int], photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    def stopped(dest: object, **options: Any) -> RunReport:
        given.update(options)
        options["on_progress"](Progress(1, 3, 4, 11, 1, 60.0, 2.0, 3.5, 0.96))
        options["on_stop"]()
        return RunReport(1, 4, 1, 0, 61.0, 0.96, True, 2)

    monkeypatch.setattr(local, "run_local", stopped)
    assert batch("--part", "0/1", "--retry-errors", "--trust-model") == INTERRUPTED
    text = said(capsys)
    assert "stopping after this shard" in text
    assert "4 of 11 images, 2.00/s, 4 s left, 1 errors, device 96% busy" in text
    assert f"1 of 3 shards are finished; continue with: fampe-fast batch --out {Path('out').absolute()}" in text
    assert (given["devices"], given["part"], given["workers"]) == (["cpu"], (0, 1), 0)
    assert given["retry_errors"] is given["trust_model"] is True
    assert given["classifier"] is not None


@pytest.mark.slow
def test_what_a_devices_process_says_of_its_end_is_said_in_a_line(
    batch: Callable[..., int], photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(dest: object, **options: Any) -> RunReport:
        raise RuntimeError("cpu: OSError: [Errno 28] No space left on device")

    batch("--plan-only")
    capsys.readouterr()
    monkeypatch.setattr(local, "run_local", failing)
    assert main(["batch", "--out", "out", "--devices", "cpu,cpu"]) == UNUSABLE
    assert said(capsys) == (
        "fampe-fast: cpu: OSError: [Errno 28] No space left on device; shards stored before are complete\n"
    )


# Progress -------------------------------------------------------------------------------------------------------------

STAND = Progress(1, 3, 400, 1000, 2, 60.0, 6.667, 90.0, 0.954)


def test_progress_is_a_line_now_and_then_in_a_log() -> None:
    now = [0.0]
    file = io.StringIO()
    with ProgressLines(Console(file=file, width=200), lambda: now[0]) as show:
        for seconds in (0, 10, 29, 30, 31, 59, 61, 62):
            now[0] = seconds
            show(STAND)
    line = "400 of 1000 images, 6.67/s, 1 min 30 s left, 2 errors, device 95% busy\n"
    assert file.getvalue() == 2 * line
    assert stand_text(STAND) == line.rstrip()


def test_progress_is_a_bar_on_a_terminal() -> None:
    file = io.StringIO()
    with ProgressLines(Console(file=file, width=200, force_terminal=True)) as show:
        show(STAND)
    assert "6.67/s" in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (61, "1 min 1 s"),
        (3600, "1 h 0 min"),
        (90061, "1 d 1 h"),
        (7, "7 s"),
    ],
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
