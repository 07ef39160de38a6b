"""Every fast path against the plain one, on the real model: how far its maps and scores may move."""

from __future__ import annotations

import copy
import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from benchmarks.quality import accuracy
from fampe_fast import insertion_deletion
from fampe_fast.images.generated import generate

SIZES = {"steps": 2, "samples": 4}
ONE_STEP = {**SIZES, "steps": 1}
# These change last bits alone: the first step shows it, and the second, whose images differ where a sign did, the rest.
IN_FULL_PRECISION = ("other chunks", "folded")
# Of the mean over the photographs; another seed moves it by some 0.01.
SCORES = 0.02


@pytest.fixture(scope="module")
def plain(mobilenet, published_mobilenet, photographs, device):
    """Images, targets, both models, and the plain path's maps and scores."""
    images, targets = (tensor.to(device) for tensor in photographs(8))
    published = copy.deepcopy(published_mobilenet).to(device)
    models = {False: published, True: copy.deepcopy(mobilenet).to(device)}
    found = accuracy.explain(accuracy.PLAIN, "fampe", models, images, targets, **SIZES)
    scores = insertion_deletion(published, images, found.maps, targets, steps=14, compile="off")
    return images, targets, models, found, scores


@pytest.fixture(scope="module")
def first_step(plain):
    """The plain path's maps after one step."""
    images, targets, models, _, _ = plain
    return accuracy.explain(accuracy.PLAIN, "fampe", models, images, targets, **ONE_STEP)


@pytest.fixture(scope="module")
def last_bits(plain) -> Callable[[], float]:
    """Say how far the last bits of the pixels move the plain path's maps on this machine: the lowest correlation.

    A sign step passes last bits on. Which of them differ between two exact paths depends on the processor: a path that
    moves a map no further than its pixels' last bits do is as good as the plain one.
    """
    images, targets, models, expected, _ = plain

    @functools.cache
    def lowest() -> float:
        found = []
        for moved in (images.nextafter(images + 1), images.nextafter(images - 1), images * (1 - 2**-23)):
            other = accuracy.explain(accuracy.PLAIN, "fampe", models, moved.clamp(0, 1), targets, **SIZES)
            found.append(min(accuracy.correlations(other.attribution, expected.attribution)))
        return min(found)

    return lowest


SLOW_ON_A_CPU = {
    "compiled": "compiling the model takes minutes on a CPU; benchmarks/quality/accuracy.py does it",
    "fp16": "float16 convolutions are emulated on a CPU; benchmarks/quality/accuracy.py runs them",
}


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", list(accuracy.LOWEST))
def test_fast_paths_agree_with_the_plain_one(
    name: str, plain, first_step, last_bits: Callable[[], float], device: torch.device
) -> None:
    way = accuracy.WAYS[name]
    if device.type != "cuda" and (way.gpu or name in SLOW_ON_A_CPU):
        pytest.skip(SLOW_ON_A_CPU.get(name, "needs a GPU"))
    images, targets, models, expected, scores = plain
    found = accuracy.explain(way, "fampe", models, images, targets, **SIZES)
    agreement = accuracy.correlations(found.attribution, expected.attribution)
    if name in IN_FULL_PRECISION:
        assert min(agreement) >= accuracy.LOWEST[name] or min(agreement) >= last_bits()
        assert statistics.median(agreement) >= 0.995
        first = accuracy.explain(way, "fampe", models, images, targets, **ONE_STEP)
        assert min(accuracy.correlations(first.attribution, first_step.attribution)) >= 0.9999
    else:
        assert min(agreement) >= accuracy.LOWEST[name]
    mine = insertion_deletion(models[False], images, found.maps, targets, steps=14, compile="off")
    assert abs(float((mine.insertion - scores.insertion).mean())) < SCORES
    assert abs(float((mine.deletion - scores.deletion).mean())) < SCORES


@pytest.mark.slow
@pytest.mark.shared
def test_another_seed_would_not_pass(plain, device: torch.device) -> None:
    """The thresholds are worth something: they lie above what different samples reach."""
    images, targets, models, expected, _ = plain
    found = accuracy.explain(accuracy.WAYS["another seed"], "fampe", models, images, targets, **SIZES)
    assert min(accuracy.correlations(found.attribution, expected.attribution)) < min(accuracy.LOWEST.values())


def test_the_command_writes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photos, weights = tmp_path / "photos", tmp_path / "weights.pt"
    photos.mkdir()
    for k, image in enumerate(generate(2, seed=3).images):
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(photos / f"{k}.png")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), weights)
    code = accuracy.main(
        [str(photos), "--ways", "other chunks", "folded", "--steps", "1", "--samples", "2", "--metric-steps", "2",
         "--model", "test_resnet", "--weights", str(weights), "--device", "cpu", "--out", str(tmp_path / "out")]
    )  # fmt: skip
    assert code == 0
    rows = json.loads((tmp_path / "out" / "accuracy.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["other chunks", "folded"]
    assert all(len(row["attribution"]) == 2 for row in rows)
    assert "| folded |" in (tmp_path / "out" / "accuracy.md").read_text()


def test_correlations_are_pearson_s() -> None:
    a = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert accuracy.correlations(a, 2 * a + 1) == pytest.approx([1, 1])
    assert accuracy.correlations(a, torch.stack([a[0], -a[1]])) == pytest.approx([1, -1])
