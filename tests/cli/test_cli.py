"""The command line as a person and a shell script meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fampe_fast import create_method, insertion_deletion, load_classifier
from fampe_fast.cli import DONE, INTERRUPTED, SOME_FAILED, UNUSABLE, main
from fampe_fast.images import read_image
from fampe_fast.images.generated import generate
from fampe_fast.models.embedded import load_embedded_classifier
from fampe_fast.runs import doctor
from fampe_fast.runs.measurement import Measurement

FOUR_STEPS = Measurement(options={"insertion_deletion": {"steps": 4}})
# The model file, a program, has no layers, and does not say its size.
QUICK = ["--steps", "1", "--samples", "2", "--views", "0", "--input-size", "64"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    drawn = generate(3, seed=5)
    for k in range(3):
        pixels = (drawn.images[k].permute(1, 2, 0) * 255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"object_{k}.png")
    (tmp_path / "labels.json").write_text(json.dumps({f"object_{k}.png": int(drawn.labels[k]) for k in range(3)}))
    return folder


@pytest.mark.slow
def test_the_demo_explains_what_it_generated(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["demo", "--out", str(tmp_path / "new" / "demo"), "--images", "2"]) == DONE
    output = capsys.readouterr().out
    for word in ("probability", "cut-off", "insertion", "deletion", "mass inside"):
        assert word in output
    with Image.open(tmp_path / "new" / "demo" / "demo.png") as picture:
        assert min(picture.size) > 500


def test_demo_maps_lie_on_the_object() -> None:
    """What the demo reports, on more images: the object holds far more of the map than its share of the image."""
    from fampe_fast import FAMPE
    from fampe_fast.metrics import relevance_mass

    drawn = generate(8, seed=31)
    maps = FAMPE(load_embedded_classifier(), steps=4, samples=8).attribute(drawn.images, drawn.labels)
    share = drawn.masks.float().mean((1, 2))
    assert (relevance_mass(maps, drawn.masks) > 1.3 * share).all()


def test_explain_writes_a_picture_and_an_archive_for_each(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    code = main(["explain", str(photos), "--model", str(model_file), "--out", str(out), "--alpha", "0.3", *QUICK])
    assert code == DONE
    captured = capsys.readouterr()
    for k in range(3):
        assert f"object_{k}.png" in captured.out
        with Image.open(out / f"object_{k}.png") as picture:
            picture.verify()
        with np.load(out / f"object_{k}.npz") as archive:
            assert archive["map"].shape == archive["image"].shape
            assert archive["map"].shape[0] == 3
            assert np.isfinite(archive["map"]).all()
            assert archive["map"].sum() > 0
            assert 0 < archive["probability"] <= 1
            assert archive["cutoff"] >= 1
            settings = json.loads(str(archive["settings"]))
    assert settings["config"]["alpha"] == 0.3
    assert settings["config"]["steps"] == 1
    assert not list(out.glob("*.tmp"))


@pytest.mark.slow
def test_a_map_does_not_depend_on_the_batch_it_was_made_in(photos: Path, model_file: Path, tmp_path: Path) -> None:
    maps = []
    for size in ("1", "3"):
        out = tmp_path / size
        arguments = ["explain", str(photos), "--model", str(model_file), "--out", str(out), "--batch-size", size]
        assert main([*arguments, *QUICK]) == DONE
        maps.append(np.load(out / "object_2.npz")["map"])
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] > 0.999


def test_a_bad_file_costs_itself(photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not really")
    out = tmp_path / "out"
    missing = str(tmp_path / "nowhere.png")
    code = main(["explain", str(photos), missing, "--model", str(model_file), "--out", str(out), *QUICK])
    captured = capsys.readouterr()
    assert code == SOME_FAILED
    assert sorted(path.name for path in out.glob("*.npz")) == [f"object_{k}.npz" for k in range(3)]
    assert "broken.jpg" in captured.err
    assert "nowhere.png: no such file" in captured.err
    assert "2 of 5 images failed" in captured.err
    assert main(["explain", missing, "--model", str(model_file), "--out", str(out), *QUICK]) == UNUSABLE


def test_files_of_one_name_do_not_overwrite_each_other(photos: Path, model_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "object_0.png").write_bytes((photos / "object_1.png").read_bytes())
    files = [str(photos / "object_0.png"), str(other / "object_0.png")]
    out = tmp_path / "out"
    assert main(["explain", *files, "--model", str(model_file), "--out", str(out), *QUICK]) == DONE
    assert {path.name for path in out.glob("*.npz")} == {"object_0.npz", "object_0_2.npz"}


def test_evaluate_prints_a_table_and_writes_scores_and_a_sheet(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("captum")
    (photos / "broken.png").write_bytes(b"nothing")
    labels = json.loads((tmp_path / "labels.json").read_text()) | {"broken.png": 0}
    rows = [f"{name},{index}\n" for name, index in labels.items()]
    (tmp_path / "labels.csv").write_text("file,index\n" + "".join(rows))
    out = tmp_path / "out"
    arguments = ["evaluate", str(photos), "--labels", str(tmp_path / "labels.csv"), "--model", str(model_file)]
    arguments += ["--method", "fampe,saliency,smoothgrad,integrated_gradients", "--passes", "3", "--metric-steps", "8"]
    assert main([*arguments, "--protocol", "per_pixel", "--out", str(out), *QUICK]) == SOME_FAILED
    table = capsys.readouterr().out
    assert "±" in table
    scores = json.loads((out / "scores.json").read_text())
    assert scores["protocol"] == "per_pixel"
    assert [image["file"] for image in scores["images"]] == [f"object_{k}.png" for k in range(3)]
    assert scores["failures"][0]["file"] == "broken.png"
    assert [method["passes"] for method in scores["methods"].values()] == [2, 1, 3, 3]
    assert len(str(scores["fingerprint"])) == 16
    for name in ("fampe", "saliency", "smoothgrad", "integrated_gradients"):
        areas = [image["insertion"][name] for image in scores["images"]]
        summary = scores["summary"][name]["insertion"]
        assert summary["mean"] == pytest.approx(np.mean(areas))
        assert summary["standard_error"] == pytest.approx(np.std(areas, ddof=1) / 3**0.5)
        assert f"{summary['mean']:.3f}" in table
    with Image.open(out / "contact_sheet.png") as sheet:
        assert min(sheet.size) > 300


def test_evaluate_takes_other_metrics_where_they_are_asked_for(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("captum")
    from fampe_fast.methods import create_method
    from fampe_fast.metrics import mu_fidelity, stability
    from fampe_fast.models import load_classifier

    (photos / "also_broken.png").write_bytes(b"nothing")
    out = tmp_path / "out"
    arguments = ["evaluate", str(photos), "--model", str(model_file), "--method", "fampe,saliency", "--out", str(out)]
    arguments += ["--metric", "stability,mu_fidelity", "--mu-fidelity-samples", "12", "--stability-samples", "2"]
    assert main([*arguments, "--seed", "4", "--batch-size", "2", *QUICK]) == SOME_FAILED
    table = capsys.readouterr().out
    for word in ("mu-fidelity", "stability", "mu-f. vs fampe", "stab. vs fampe"):
        assert word in table
    assert "insertion" not in table
    scores = json.loads((out / "scores.json").read_text())
    assert scores["metrics"]["mu_fidelity"]["samples"] == 12
    assert scores["metrics"]["stability"] == {
        "samples": 2, "radius": 0.02, "reduce": "mean", "distance": "l2", "normalise": True, "seed": 4,
    }  # fmt: skip
    assert "insertion" not in scores["images"][0]
    assert [failure["file"] for failure in scores["failures"]] == ["also_broken.png"]
    with Image.open(out / "contact_sheet.png") as sheet:
        sheet.verify()

    classifier = load_classifier(str(model_file), input_size=64)
    last = scores["images"][2]
    image = classifier.transform(Image.open(photos / last["file"]).convert("RGB"))[None]
    options = {"seed": 4, "image_ids": [3]}  # its place among the four files
    for name, settings in (("fampe", {"steps": 1, "samples": 2, "views": 0, "seed": 4}), ("saliency", {})):
        method = create_method(name, classifier, **settings)
        maps = method.attribute(image, [last["target"]], image_ids=[3])
        fidelity = mu_fidelity(classifier, image, maps, last["target"], samples=12, **options)
        change = stability(method, image, last["target"], samples=2, **options)
        assert last["mu_fidelity"][name] == pytest.approx(float(fidelity.scores), abs=0.03)
        assert last["stability"][name] == pytest.approx(float(change.scores), rel=0.05)
        for metric in ("mu_fidelity", "stability"):
            summary = scores["summary"][name]
            values = [found[metric][name] for found in scores["images"]]
            first = [found[metric]["fampe"] for found in scores["images"]]
            assert summary[metric]["mean"] == pytest.approx(np.mean(values))
            assert summary[f"{metric}_minus_first"]["mean"] == pytest.approx(np.subtract(values, first).mean())


def test_doctor_finds_a_healthy_installation(capsys: pytest.CaptureFixture) -> None:
    assert main(["doctor"]) == DONE
    output = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in output
    assert "one image explained" in output


def test_doctor_reports_a_backend_that_cannot_run(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "nonsense")
    assert main(["doctor"]) == SOME_FAILED
    assert "'nonsense': unknown" in capsys.readouterr().out


@pytest.mark.parametrize("variable", ["TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"])
def test_doctor_finds_a_folder_that_a_compiler_cannot_write(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file" / "cache"))
    (found,) = [finding for finding in doctor._compilers(gpu=True) if finding.topic == variable]
    assert not found.healthy
    assert f"set {variable} to a writable folder" in found.text
    monkeypatch.setenv(variable, str(tmp_path / "new" / "cache"))
    (found,) = [finding for finding in doctor._compilers(gpu=True) if finding.topic == variable]
    assert (found.healthy, found.text) == (True, str(tmp_path / "new" / "cache"))
    assert not (tmp_path / "new").exists()


def test_doctor_wants_a_c_compiler_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert "no no-such-compiler found" in doctor._c_compiler(gpu=True).text
    assert [doctor._c_compiler(gpu=gpu).healthy for gpu in (True, False)] == [False, True]
    monkeypatch.setenv("CC", sys.executable)
    assert doctor._c_compiler(gpu=True) == doctor.Finding("C compiler", sys.executable)


def test_doctor_compares_triton_with_what_torch_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    own = ".".join(triton.__version__.split(".")[:2])
    for wanted, healthy in ((f"triton~={own}.0; python_version < '3.15'", True), ("pytorch-triton-rocm==2.1.0", False)):
        monkeypatch.setattr(doctor, "_requirements", lambda package, wanted=wanted: ["numpy==9.9", wanted])
        assert doctor._triton(gpu=True).healthy is healthy
    assert "this torch was built for 2.1: install triton==2.1.*" in doctor._triton(gpu=False).text
    assert doctor._triton(gpu=False).healthy
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "pip install triton" in doctor._triton(gpu=True).text
    assert [doctor._triton(gpu=gpu).healthy for gpu in (True, False)] == [False, True]


def test_a_backend_that_cannot_run_ends_a_command_before_its_images(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "nonsense")
    out = tmp_path / "out"
    assert main(["explain", str(photos), "--model", str(model_file), "--out", str(out), *QUICK]) == UNUSABLE
    assert capsys.readouterr().err.count("'nonsense': unknown") == 1
    assert not out.exists()


def test_an_own_models_classes_and_size_can_be_told(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = [f"kind {k}" for k in range(8)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    out = tmp_path / "out"
    told = ["--class-names", str(tmp_path / "names.txt"), "--input-size", "72"]
    assert main(["explain", str(photos), "--model", str(model_file), "--out", str(out), *QUICK, *told]) == DONE
    assert "kind " in capsys.readouterr().out
    assert np.load(out / "object_0.npz")["image"].shape == (3, 72, 72)


UNUSABLE_ARGUMENTS = [
    (["explain", "{photos}", "--model", "{model}", "--alpha", "1.5"], r"alpha must be in [0, 1], got 1.5"),
    (["explain", "{photos}", "--model", "{model}", "--steps=-1"], "steps must be at least 0, got -1"),
    (
        ["explain", "{photos}", "--model", "{model}", "--steps", "0", "--views", "0"],
        "steps and views are both 0, but a map needs a path (steps=5) or a view of the image (views=1)",
    ),
    (["explain", "{photos}", "--model", "{model}", "--noise", "9"], "no such option(s): --noise; known are --alpha"),
    (["explain", "{photos}", "--model", "{model}", "--eps", "0/255"], "eps must be in (0, inf], got 0.0"),
    (["explain", "{photos}", "--model", "{model}", "--class-names", "{photos}/names.txt"], "names.txt"),
    (
        ["explain", "{photos}", "--model", "{model}", "--method", "saliency", "--alpha", "1"],
        "no such option(s): --alpha",
    ),
    (["explain", "{photos}", "--model", "no_such_net", "--weights", "{model}"], "no_such_net"),
    (["explain", "{photos}", "--model", "{photos}/nothing.pt"], "nothing.pt"),
    (["evaluate", "{photos}/object_0.png", "--model", "{model}"], "is not a folder"),
    (
        ["evaluate", "{photos}", "--model", "{model}", "--metric", "mu_fidelity", "--mu-fidelity-samples", "1"],
        "must be at least 2, got 1",
    ),
    (
        ["evaluate", "{photos}", "--model", "{model}", "--stability-radius", "0.1"],
        "but only insertion_deletion will be measured",
    ),
    (["evaluate", "{photos}", "--model", "{model}", "--labels", "{photos}/object_0.png"], "cannot read the labels"),
]


@pytest.mark.parametrize(("arguments", "message"), UNUSABLE_ARGUMENTS, ids=[case[1] for case in UNUSABLE_ARGUMENTS])
def test_what_cannot_start_says_so_in_one_line_and_writes_nothing(
    arguments: list[str], message: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    filled = [part.format(photos=photos, model=model_file) for part in arguments]
    assert main([*filled, "--out", str(out)]) == UNUSABLE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.startswith("fampe-fast: ")
    assert "Traceback" not in captured.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["explain"], "IMAGE"),
        (["explain", "x.png", "--model-arg", "pad_type"], "expected KEY=VALUE, got 'pad_type'"),
        (["explain", "x.png", "--mean", "grey"], "expected a number or three"),
        (["explain", "x.png", "--batch-size", "0"], "must be at least 1"),
        (["explain", "x.png", "--method", "magic"], "unknown method(s) 'magic'"),
        (["explain", "x.png", "--mode", "mixed"], "invalid choice: 'mixed'"),
        (["explain", "x.png", "--speed", "9"], "unrecognized arguments: --speed"),
        (["explain", "x.png", "--area-cutoff", "much"], "a number or a fraction such as 8/255, got 'much'; or none"),
        (["explain", "x.png", "--bounds", "0"], "expected two numbers, comma-separated, got '0'"),
        (["explain", "x.png", "--steps", "2.5"], "expected a whole number, got '2.5'"),
        (["explain", "x.png", "--target", "1", "--labels", "l.json"], "not allowed with argument --target"),
        (["evaluate", "x", "--method", "fampe,magic"], "unknown method(s) 'magic'"),
        (["evaluate", "x", "--metric", "stability,magic"], "unknown metric(s) 'magic'"),
    ],
)
def test_typing_errors_exit_with_two(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == UNUSABLE
    assert message in capsys.readouterr().err


def test_labels_that_do_not_fit_are_named(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for content, message in (
        ({"object_0.png": 1}, "2 of 3 images have no label"),
        ({f"object_{k}.png": "cat" for k in range(3)}, "expected a class index"),
        ([1, 2], "must be a JSON object"),
    ):
        labels = tmp_path / "bad.json"
        labels.write_text(json.dumps(content))
        assert main(["evaluate", str(photos), "--model", str(model_file), "--labels", str(labels)]) == UNUSABLE
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["per_element", "attexplore"])
def test_evaluate_and_study_score_in_the_protocol_that_is_named(
    protocol: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    clf = load_classifier(str(model_file), input_size=64)
    images = torch.stack([clf.transform(read_image(photos / f"object_{k}.png")) for k in range(3)])
    maps = create_method("attexplore", clf, steps=1, samples=2).attribute(images, clf(images).argmax(1))
    areas = insertion_deletion(clf, images, maps, clf(images).argmax(1), protocol=protocol, steps=4)
    others = {"per_element", "attexplore", "per_pixel"} - {protocol}
    for other in others:
        found = insertion_deletion(clf, images, maps, clf(images).argmax(1), protocol=other, steps=4)
        assert not torch.allclose(found.insertion, areas.insertion, atol=1e-3)
    given = ["--model", str(model_file), "--protocol", protocol, "--metric-steps", "4", "--input-size", "64"]
    out = tmp_path / "out"
    assert main(["evaluate", str(photos), "--method", "attexplore", *given, "--out", str(out), *QUICK]) == DONE
    assert f"protocol {protocol}" in capsys.readouterr().out.replace("\n", " ")
    scores = json.loads((out / "scores.json").read_text())
    assert scores["protocol"] == protocol
    measured = [image["insertion"]["attexplore"] for image in scores["images"]]
    assert measured == pytest.approx(areas.insertion.tolist(), abs=1e-4)
    out = tmp_path / "study"
    given += ["--variant", "fampe, path"]
    assert main(["study", "methods", str(photos), *given, "--out", str(out), *QUICK]) == DONE
    assert f"protocol {protocol}" in capsys.readouterr().out.replace("\n", " ")
    study = json.loads((out / "study.json").read_text())
    assert study["protocol"] == protocol
    assert f"{protocol} protocol" in (out / "table.md").read_text()
    assert study["outcomes"][0]["insertion"]["mean"] == pytest.approx(float(areas.insertion.mean()), abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a signal")
def test_ctrl_c_leaves_finished_results_whole(photos: Path, model_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fampe_fast", "explain", str(photos), "--model", str(model_file)]
    command += ["--out", str(out), "--steps", "150", "--samples", "2", "--views", "0", "--batch-size", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # A shell starts its background jobs, and with them these tests, deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 240
    while not (out / "object_0.npz").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted; completed results were saved" in errors
    assert "Traceback" not in errors
    assert not (out / "object_2.npz").exists()
    assert not list(out.glob(".*"))
    for archive in out.glob("*.npz"):
        with np.load(archive) as found:
            assert np.isfinite(found["map"]).all()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent as a signal")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("dropped", ["in a finaliser", "as another error"])
def test_ctrl_c_ends_the_command_where_its_exception_is_lost(
    dropped: str, photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Python ignores an exception in a finaliser; extension modules make others of it."""
    from fampe_fast.methods.base import PathMethod

    real, calls = PathMethod._explained, []

    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def interrupted(self: PathMethod, *given: object, **options: object) -> object:
        calls.append(given)
        if len(calls) == 2:
            if dropped == "in a finaliser":
                Finalised()
            else:
                try:
                    signal.raise_signal(signal.SIGINT)
                except KeyboardInterrupt as error:
                    raise ImportError("initialisation failed") from error
        return real(self, *given, **options)

    monkeypatch.setattr(PathMethod, "_explained", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        words = [
            "explain",
            str(photos),
            "--model",
            str(model_file),
            "--out",
            str(tmp_path / "out"),
            "--batch-size",
            "1",
        ]
        assert main([*words, *QUICK]) == INTERRUPTED
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert "interrupted; completed results were saved" in capsys.readouterr().err
    assert len(calls) == 2
    assert (tmp_path / "out" / "object_0.npz").is_file()
    assert not (tmp_path / "out" / "object_2.npz").exists()


def test_an_interrupted_evaluation_keeps_the_batches_it_finished(photos: Path, tmp_path: Path) -> None:
    from fampe_fast.methods import create_method
    from fampe_fast.runs.evaluate import evaluate_files

    classifier = load_embedded_classifier()
    inner = create_method("fampe", classifier, steps=1, samples=1)

    class Interrupted:
        calls = 0

        def attribute(self, inputs: torch.Tensor, target: object = None, **options: object) -> torch.Tensor:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return inner.attribute(inputs, target, **options)

    paths = sorted(photos.glob("*.png"))
    with pytest.raises(KeyboardInterrupt):
        evaluate_files(
            classifier, {"one": Interrupted()}, paths, tmp_path / "out", measurement=FOUR_STEPS, batch_size=1
        )
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert [image["file"] for image in scores["images"]] == ["object_0.png", "object_1.png"]
    assert scores["summary"]["one"]["insertion"]["n"] == 2
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        sheet.verify()


def test_a_failing_batch_is_tried_again_image_by_image(photos: Path, tmp_path: Path) -> None:
    from fampe_fast.methods import create_method
    from fampe_fast.runs.evaluate import evaluate_files

    classifier = load_embedded_classifier()
    inner = create_method("fampe", classifier, steps=1, samples=1)

    class Picky:
        def attribute(self, inputs: torch.Tensor, target: object = None, **options: object) -> torch.Tensor:
            if 1 in options["image_ids"]:
                raise RuntimeError("not this one")
            return inner.attribute(inputs, target, **options)

    paths = sorted(photos.glob("*.png"))
    result = evaluate_files(classifier, {"picky": Picky()}, paths, tmp_path / "out", measurement=FOUR_STEPS)
    assert [path.name for path in result.paths] == ["object_0.png", "object_2.png"]
    assert [(failure.path.name, failure.reason) for failure in result.failures] == [
        ("object_1.png", "RuntimeError: not this one")
    ]


@pytest.mark.slow
@pytest.mark.shared
def test_explain_runs_on_a_real_photograph_with_the_real_model(
    shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    photograph = shared_dir / "images" / "n02110958_pug.JPEG"
    weights = shared_dir / "models" / "mobilenetv2_100_same.imagenet.safetensors"
    model = ["--model", "mobilenetv2_100", "--model-arg", "pad_type=same", "--mean", "0.5", "--std", "0.5"]
    arguments = ["explain", str(photograph), "--weights", str(weights), *model, "--out", str(tmp_path), *QUICK]
    assert main([*arguments, "--input-size", "224"]) == DONE
    assert "254 pug" in capsys.readouterr().out
    with np.load(tmp_path / "n02110958_pug.npz") as archive:
        assert archive["map"].shape == (3, 224, 224)


def test_occlude_prints_the_drop_of_every_band(
    photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (photos / "broken.png").write_bytes(b"nothing")
    out = tmp_path / "out"
    arguments = ["occlude", str(photos), "--model", str(model_file), "--bands", "4", "--out", str(out)]
    assert main([*arguments, "--batch-size", "2", "--input-size", "64"]) == SOME_FAILED
    table = capsys.readouterr().out
    found = json.loads((out / "occluded_frequency.json").read_text())
    assert table.count(" to ") >= 2 * 4  # radii and intervals
    for drop in found["summary"]["mean_drop"]:
        assert f"{drop:+.4f}" in table
    with Image.open(out / "occluded_frequency.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.slow
def test_defend_reports_clean_and_attacked_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["defend", "--train-steps", "2", "--train-images", "16", "--test-images", "8", "--attack-steps", "1"]
    assert main([*arguments, "--out", str(tmp_path)]) == DONE
    table = capsys.readouterr().out
    for word in ("clean", "attacked, high", "low_pass", "band_mix", "defence.json"):
        assert word in table
