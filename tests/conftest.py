from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# The tests run side by side: processes with a thread for each core would wait for each other.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else torch.compile starts processes to share its work

if not torch.cuda.is_available():
    # Before anything imports triton: the kernels then run on CPU tensors, slowly, through its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")
else:
    torch.backends.cudnn.allow_tf32 = False  # tests compare last bits; where tf32 is meant, they ask for it


# Of the public suite, by their names: Triton's interpreter takes a second or more for some of their cases.
SLOW_CHECKS = (
    "_depends_on_",
    "_uniform_and_independent",
    "_smallest_radius",
    "_spares_others_",
    "_leaves_empty_levels_",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test ``fast`` that is not marked ``slow``."""
    for item in items:
        slow_check = item.name.startswith("test_primitive[triton") and any(part in item.name for part in SLOW_CHECKS)
        if slow_check:
            item.add_marker("slow")
        if item.get_closest_marker("slow") is None:
            item.add_marker("fast")


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is there by now: models that are loaded ask for it, a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def few_objects() -> None:
    """Spare it what the tests before have imported, too, for a module whose tests ask for it again and again."""
    pytest_collection_finish()


SHARED = Path(__file__).resolve().parents[2] / "shared"
MODEL = "mobilenetv2_100_same.imagenet.safetensors"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded classifier as a TorchScript file: a model from disk like any other."""
    from fampe_fast.models.embedded import load_embedded_classifier

    path = tmp_path_factory.mktemp("model") / "small.pt"
    torch.jit.trace(load_embedded_classifier(), torch.rand(2, 3, 96, 96)).save(str(path))
    return path


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    if not (SHARED / "models" / MODEL).is_file():
        pytest.skip("the real classifier and photographs (../shared) are not here")
    return SHARED


def _mobilenet(shared_dir: Path, **options: bool):
    from fampe_fast.models import load_classifier

    return load_classifier(
        "mobilenetv2_100",
        weights=shared_dir / "models" / MODEL,
        mean=0.5,
        std=0.5,
        interpolation="bilinear",  # what the recorded probabilities were made with
        model_args={"pad_type": "same"},
        **options,
    )


@pytest.fixture(scope="session")
def mobilenet(shared_dir: Path):
    return _mobilenet(shared_dir)


@pytest.fixture(scope="session")
def published_mobilenet(shared_dir: Path):
    """With the batch normalisation that ``load_classifier`` folds."""
    return _mobilenet(shared_dir, fold_batch_norm=False)


@pytest.fixture(scope="session")
def photographs(shared_dir: Path, mobilenet) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """The first n photographs as (images (n, 3, 224, 224), labels (n,))."""
    from fampe_fast.images import read_image

    labels = json.loads((shared_dir / "images" / "labels.json").read_text())
    names = sorted(labels)

    def load(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        images = [mobilenet.transform(read_image(shared_dir / "images" / name)) for name in names[:n]]
        return torch.stack(images), torch.tensor([labels[name]["index"] for name in names[:n]])

    return load


@pytest.fixture(scope="session")
def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, one program after the other."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="session")
def triton_runs(device: torch.device) -> None:
    """Skip, saying why, where Triton kernels can run on neither a GPU nor the CPU."""
    from fampe_fast.ops.backends import triton_obstacle

    reason = triton_obstacle(device.type)
    if reason is not None:
        pytest.skip(reason)
