"""Run every example offline, at small settings and with drawn weights, and check what it prints and writes."""

from __future__ import annotations

import json
import re
import runpy
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
Run = Callable[..., tuple[str, dict[str, Any]]]

pytestmark = pytest.mark.slow
pytest.importorskip("skimage", reason="scikit-image is not installed: pip install '.[examples]'")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run an example as a program in a folder of its own, without a network; give what it prints, and its names."""

    def refuse(*address: object) -> None:
        raise AssertionError(f"an example asks for {address}")

    def run_example(name: str, *options: object) -> tuple[str, dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out, names

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    state = np.random.get_state()  # noqa: NPY002 - Quantus draws from the global generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield run_example
    np.random.set_state(state)  # noqa: NPY002


def _timm_folder(folder: Path, architecture: str, side: int) -> Path:
    """Draw a small model and save it in timm's layout, as a fine-tuned one would be."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=10)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.1)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    settings = {"input_size": [3, side, side], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 10}
    config = {"architecture": architecture, "num_classes": 10, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _fill_statistics(network: torch.nn.Module, forward: Callable[[Tensor], object]) -> None:
    """Give batch normalisation the statistics of noise: without, the outputs of a drawn network hardly differ."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()
    with torch.no_grad():
        forward(torch.randn(2, 3, 320, 320))
    network.eval()


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _timm_folder(tmp_path_factory.mktemp("models") / "resnet", "test_resnet", 64)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _timm_folder(tmp_path_factory.mktemp("models") / "vit", "test_vit", 160)


def numbers_after(word: str, text: str) -> list[float]:
    return [float(number) for number in re.findall(rf"{word} (-?[\d.]+(?:e[+-]\d+)?)", text)]


def assert_picture(path: str, least_width: int = 300) -> None:
    """A picture, of more than one colour."""
    with Image.open(path) as picture:
        assert picture.width >= least_width
        assert len(np.unique(np.asarray(picture.convert("RGB").resize((32, 32))).reshape(-1, 3), axis=0)) > 10


def assert_scores(printed: str, count: int) -> None:
    for word in ("insertion", "deletion"):
        values = numbers_after(word, printed)
        assert len(values) == count
        assert all(0 <= value <= 1 for value in values)


def test_every_example_is_in_the_table_and_run() -> None:
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    table = re.findall(r"\| `examples/([\w.]+)` \|", (ROOT / "docs" / "guides" / "examples.md").read_text())
    assert sorted(table) == sorted(files)
    run_here = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {Path(file).stem for file in files} <= run_here


def test_ten_lines(run: Run, resnet: Path) -> None:
    printed, _ = run("ten_lines", "--model", resnet)
    assert_scores(printed, 1)
    (probability,) = numbers_after("probability", printed)
    assert 0.1 <= probability <= 1
    assert_picture("explained.png")


def test_compare_with_grad_cam(run: Run, resnet: Path) -> None:
    pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is not installed: pip install '.[examples]'")
    printed, _ = run("compare_with_grad_cam", "--model", resnet, "--repeats", 1, "--metric-passes", 5)
    assert_scores(printed, 4)
    (apart,) = numbers_after("largest difference", printed)
    assert apart < 1e-5
    assert_picture("compared.png")


def test_vision_transformer(run: Run, vit: Path) -> None:
    printed, _ = run("vision_transformer", "--model", vit, "--metric-passes", 3)
    assert printed.count("(10 x 10)") >= 2  # 160 pixels in patches of 16
    assert_scores(printed, 5)
    assert_picture("vision_transformer.png")


def test_own_module(run: Run) -> None:
    printed, _ = run("own_module", "--train-steps", 120)
    shares = [float(share) for share in re.findall(r": ([\d.]+) of the map in the object", printed)]
    (chance,) = numbers_after("share:", printed)
    assert len(shares) == 4
    assert max(shares) - min(shares) <= 0.01  # one network in four forms
    assert min(shares) > chance
    assert "refused: the model ends in a softmax" in printed


def test_segmentation(run: Run, tmp_path: Path) -> None:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    _fill_statistics(network, network)
    torch.save(network.state_dict(), tmp_path / "drawn.pth")
    printed, names = run("segmentation", "--weights", "drawn.pth", "--size", 96, "--metric-passes", 3)
    assert_scores(printed, 1)
    assert re.search(r"\d+% of the map in the region, \d+% of the image", printed)
    assert_picture("segmentation.png")
    images, region = torch.rand(2, 3, 64, 96), torch.zeros(64, 96, dtype=torch.bool)
    region[10:20, 30:50] = True
    with torch.no_grad():
        scores = names["RegionScores"](network, region)(images)
        expected = network(images)["out"][:, :, 10:20, 30:50].mean((2, 3))
    assert scores.shape == (2, 21)
    torch.testing.assert_close(scores, expected)


def test_detector(run: Run, tmp_path: Path) -> None:
    """The score explained is the detector's own for its best box of the class."""
    from skimage.data import chelsea
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large
    from torchvision.transforms.functional import resize, to_tensor

    every_box = {"score_thresh": 0.0, "detections_per_img": 100_000}
    network = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, **every_box).eval()
    _fill_statistics(network, lambda images: network.head(list(network.backbone(images).values())))
    torch.save(network.state_dict(), tmp_path / "drawn.pth")
    printed, names = run("detector", "--weights", "drawn.pth", "--metric-passes", 3)
    assert_scores(printed, 1)
    assert_picture("detector.png")
    image = resize(to_tensor(Image.fromarray(chelsea())), [320, 320], antialias=True)
    cat = names["WEIGHTS"].meta["categories"].index("cat")
    with torch.no_grad():
        (detected,) = network([image])
        of_cats = detected["labels"] == cat
        assert numbers_after("score", printed)[0] == pytest.approx(float(detected["scores"][of_cats].max()), abs=6e-4)
        left, top, right, bottom = map(int, re.search(r"box (\d+), (\d+) to (\d+), (\d+)", printed).groups())
        best = detected["boxes"][of_cats][detected["scores"][of_cats].argmax()]
        torch.testing.assert_close(best.round(), torch.tensor([left, top, right, bottom]).float(), rtol=0, atol=1)
        scores = names["AnchorScores"](network, 7)(torch.rand(2, 3, 320, 320))
    assert scores.shape == (2, 91)


def test_clip(run: Run, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed: pip install '.[examples]'")
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "head_width": 32, "layers": 4}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    clip = open_clip.CLIP(**config).eval()
    statistics = {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": statistics}))
    torch.save(clip.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    texts = ["a cat", "a dog", "a red car", "nothing"]
    printed, names = run("clip", "--model", f"local-dir:{tmp_path}", "--texts", *texts, "--metric-passes", 3)
    probabilities = [float(line.split()[0]) for line in printed.splitlines()[:4]]
    assert sum(probabilities) == pytest.approx(1, abs=0.003)
    assert_scores(printed, 1)
    assert_picture("clip.png")
    images, tokens = torch.rand(2, 3, 64, 64), open_clip.tokenize(texts)
    with torch.no_grad():
        scores = names["TextScores"](clip, tokens)(images)
        seen, read, scale = clip(images, tokens)
    assert scores.shape == (2, 4)
    torch.testing.assert_close(scores, scale * seen @ read.T)


def test_captum_and_quantus(run: Run) -> None:
    for package in ("captum", "quantus"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[examples]'")
    printed, names = run("captum_and_quantus", "--draws", 3)
    for word in ("infidelity:", "sensitivity:", "correlation with the map", "mean probability"):
        (value,) = numbers_after(word, printed)
        assert np.isfinite(value)
        assert value > 0
    taken, changed = names["take_squares_away"](torch.zeros(3, 3, 32, 32))
    assert taken.sum((1, 2, 3)).tolist() == [3 * 8 * 8] * 3
    assert torch.equal(changed, 0.5 * taken)


def test_tune_forgrad(run: Run) -> None:
    from fampe_fast import TunedCutoff

    printed, _ = run("tune_forgrad", "--images", 4, "--metric-steps", 3)
    tuned = TunedCutoff.load("forgrad.json", "embedded_classifier", "saliency")
    assert tuned.curve[tuned.cutoff].mean == max(score.mean for score in tuned.curve.values())
    rows = re.findall(r"^ +(\d+)   (-?[\d.]+) ±.*?(the best)?$", printed, re.MULTILINE)
    assert [int(radius) for radius, _, _ in rows] == list(tuned.curve)
    assert [int(radius) for radius, _, best in rows if best] == [tuned.cutoff]
    assert_picture("forgrad.png")


def test_robust_and_plain(run: Run) -> None:
    """A class's textures lie in two bands, and what the networks rely on is there or below, in the backgrounds."""
    printed, _ = run("robust_and_plain", "--train-steps", 25, "--images", 12)
    rows = re.findall(r"^ +([\d.]+) to +([\d.]+) +(-?[\d.]+) +([\d.]+)% +(-?[\d.]+) +([\d.]+)%$", printed, re.MULTILINE)
    values = torch.tensor([[float(value) for value in row] for row in rows])
    assert values.shape == (10, 6)
    assert values[:, 3].sum() == pytest.approx(100, abs=1)
    assert values[:, 5].sum() == pytest.approx(100, abs=1)
    assert (values[:6, [3, 5]].sum(0) > 90).all()  # up to 27 cycles
    assert re.findall(r"(plain|robust): accuracy [\d.]+, under attack [\d.]+", printed) == ["plain", "robust"]
    assert_picture("reliance.png")


def test_read_a_data_set(run: Run, resnet: Path) -> None:
    for package in ("pyarrow", "pandas"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[examples]'")
    printed, _ = run("read_a_data_set", "--model", resnet)
    assert len(re.findall(r"\.png: \(\d, 64, 64\), strongest at row \d+, column \d+", printed)) == 4
    assert printed.splitlines()[1].split()[:2] == ["0", "astronaut.png"]
    assert all(0 < value <= 1 for value in numbers_after("mean probability", printed))
    assert Path("maps/maps/000/000000.parquet").is_file()


def test_own_backend(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from fampe_fast.ops import backends
    from fampe_fast.testing import registered

    monkeypatch.setenv(backends.VARIABLE, "auto")  # and back
    try:
        printed, names = run("own_backend")
        assert numbers_after("differ by", printed)[0] < 1e-5
        concerned = [check.name for check in registered() if check.primitives == ("layer_evidence",)]
        assert re.findall(r"passed on \d+ cases: (\w+)", printed) == concerned
        values = torch.tensor([[[[1.0]], [[2.0]]]])
        wanted: Tensor = names["layer_evidence"](values, -values)
        assert wanted.tolist() == [[[5.0]]]
    finally:
        backends._BACKENDS.pop("exact", None)
        backends._choice.cache_clear()
        backends._resolve.cache_clear()


def test_tour(resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install '.[examples]'")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[examples]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[examples]'")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "clear the outputs before a commit"
    (parameters,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"model_name, metric_passes, tuning_steps = {str(resnet)!r}, 3, 2"
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in code for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert len(pictures) == 5
    assert_scores(printed, 5)
    assert "of the logit" in printed
    assert re.search(r"radius \d+: ", printed)
