"""What the GPU's path asks of the device, seen without one.

torch's fake tensors know shapes, types and devices, refuse operators whose tensors are on two devices, and raise where
the host asks for a value, which on a GPU is a wait. The kernels' own bodies and the backward pass do not run here: the
model's gradient is replaced by one of its shape.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fampe_fast import FAMPE, AttEXplore
from fampe_fast.engine import aggregation, path, schedule
from fampe_fast.engine.request import Request
from fampe_fast.engine.targets import Targets
from fampe_fast.metrics.scorer import Scorer
from fampe_fast.ops import pixel_mask, separable_transform
from fampe_fast.runtime.chunking import ChunkSize
from fampe_fast.runtime.model_probe import ModelInfo
from fampe_fast.runtime.tf32 import tensor_float32, tf32_in_use

from ..models_for_tests import published


def fake_gpus_work() -> bool:
    """Older torch asks a driver even for them."""
    try:
        with FakeTensorMode():
            return torch.fft.rfft2(torch.empty(2, 2, device="cuda")).device.type == "cuda"
    except RuntimeError:
        return False


pytestmark = pytest.mark.skipif(not fake_gpus_work(), reason="this torch has no fake CUDA tensors without a driver")

STEPS, SAMPLES, BATCH, SIDE = 3, 5, 3, 32


class Crossings(TorchDispatchMode):
    """Notes what brings tensors from the host to the GPU or back: on a GPU it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, and compare the devices of what goes in and what comes out."""
        result = func(*args, **(kwargs or {}))
        given, made = ({t.device.type for t in tree_leaves(of) if isinstance(t, Tensor)} for of in (args, result))
        if given and made - given:
            self.found.append(str(func))
        return result


def colours(pixels: Tensor) -> Tensor:
    """A model without parameters: its classes are the colours' means."""
    return pixels.mean((2, 3))


def hesitant(pixels: Tensor) -> Tensor:
    return colours(pixels) * float(pixels.sum())


def carrying(pixels: Tensor) -> Tensor:
    return colours(pixels) + torch.zeros(1, 3).to(pixels.device)


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Sizes of what the model was shown; its gradients are of that size."""
    shown: list[torch.Size] = []

    def gradient(loss: Callable[[Tensor], tuple[Tensor, Tensor | None]], inputs: Tensor, with_factor: bool) -> Tensor:
        assert loss(inputs)[0].device.type == "cuda"
        shown.append(inputs.shape)
        return torch.empty_like(inputs)

    monkeypatch.setattr(aggregation, "_gradient", gradient)
    # Drawn on the host before the path starts, where fake tensors would not give their values.
    drawn = schedule.draw_placements(0, STEPS, SAMPLES, SIDE, SIDE)
    monkeypatch.setattr(schedule, "draw_placements", lambda *numbers: drawn)
    monkeypatch.setattr(path, "_warn_of_unusable", lambda *numbers: None)  # the one wait, after the last step
    return shown


def forget_tensors() -> None:
    """The package keeps masks by size and device: fake ones must serve no other test, nor real ones these."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "fampe_fast":
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


@pytest.fixture
def on_fake_gpu(gradients: list[torch.Size]) -> Iterator[None]:
    forget_tensors()
    with FakeTensorMode():
        yield
    forget_tensors()


def walk(method: Any) -> tuple[path.PathDetails, list[str]]:
    images = torch.empty(BATCH, 3, SIDE, SIDE, device="cuda")
    targets = Targets(torch.zeros(BATCH, dtype=torch.long, device="cuda"), None)
    crossings = Crossings()
    steps: list[int] = []

    def on_step(done: int) -> None:  # what comes before the first step is uploaded once
        if not steps:
            crossings.__enter__()
        steps.append(done)

    models = (method.forward_func,) if method.explorer is None else (method.forward_func, method.explorer)
    request = Request(
        models,
        images,
        torch.arange(BATCH, device="cuda"),
        targets,
        ChunkSize((), images, 4, "test"),
        (ModelInfo(),) * len(models),
        (True,) * len(models),
    )
    try:
        details = path.follow_path(request, method.config, on_step)
    finally:
        if steps:
            crossings.__exit__(None, None, None)
    return details, crossings.found


@pytest.mark.usefixtures("on_fake_gpu")
@pytest.mark.parametrize(
    "options", [{}, {"gradient_cutoff": 6.0}, {"explorer": colours}], ids=["plain", "low-pass", "explorer"]
)
@pytest.mark.parametrize("make", [FAMPE, published, AttEXplore])
def test_the_path_asks_the_gpu_for_no_value(
    make: Callable[..., Any], options: dict[str, Any], gradients: list[torch.Size]
) -> None:
    details, crossings = walk(make(colours, steps=STEPS, samples=SAMPLES, compile="off", **options))
    assert not crossings
    for found in (details.attribution, details.perturbed, details.gradient_scale):
        assert found.device.type == "cuda"
    assert details.attribution.shape == (BATCH, 3, SIDE, SIDE)
    assert sum(shape[0] for shape in gradients) == BATCH * details.model_passes


@pytest.mark.usefixtures("on_fake_gpu")
def test_a_model_that_asks_for_a_value_is_seen() -> None:
    with pytest.raises(DataDependentOutputException):
        walk(FAMPE(hesitant, steps=STEPS, samples=SAMPLES, compile="off"))


@pytest.mark.usefixtures("on_fake_gpu")
def test_a_model_that_carries_tensors_to_the_gpu_is_seen() -> None:
    _, crossings = walk(FAMPE(carrying, steps=STEPS, samples=SAMPLES, compile="off"))
    assert set(crossings) == {"aten._to_copy.default"}


class Roundings(TorchDispatchMode):
    """Notes whether products and convolutions may be rounded to tf32 when one of them runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, bool]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("convolution", "mm")):
            self.seen.add(tf32_in_use())
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("on_fake_gpu")
@pytest.mark.parametrize("make", [FAMPE, AttEXplore])
@pytest.mark.parametrize(
    ("precision", "seen"),
    [("auto", (False, True)), ("fp32", (False, False)), ("tf32", (True, True)), ("bf16", (False, False))],
)
def test_the_model_alone_follows_the_process_s_tf32(
    make: Callable[..., Any], precision: str, seen: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    weight = torch.empty(3, 3, 3, 3, device="cuda")

    def convolving(pixels: Tensor) -> Tensor:
        return colours(torch.nn.functional.conv2d(pixels, weight))

    assert tf32_in_use() == (False, True)  # torch's own default
    with Roundings() as found:
        walk(make(convolving, steps=STEPS, samples=SAMPLES, compile="off", precision=precision))
    assert found.seen == {seen}
    assert tf32_in_use() == (False, True)


@pytest.mark.usefixtures("on_fake_gpu")
@pytest.mark.parametrize("around", [None, True, False])
def test_the_transforms_of_samples_are_never_rounded(around: bool | None) -> None:
    values, matrix = torch.empty(2, 8, 8, device="cuda"), torch.empty(8, 8, device="cuda")
    transform: Any = separable_transform
    with tensor_float32(around), Roundings() as found:
        transform.__wrapped__(values, matrix, matrix)
    assert found.seen == {(False, False)}


@pytest.mark.usefixtures("on_fake_gpu")
def test_scores_are_collected_without_asking_for_a_value() -> None:
    images = torch.empty(BATCH, 3, SIDE, SIDE, device="cuda")
    first_step = torch.ones(BATCH, SIDE, SIDE, dtype=torch.int32, device="cuda")
    index, step = (torch.zeros(11, dtype=torch.long, device="cuda") for _ in range(2))
    targets = torch.zeros(BATCH, dtype=torch.long, device="cuda")
    passes: list[int] = []
    chunks = ChunkSize.for_scores(colours, images, 4, ModelInfo())
    scorer = Scorer(colours, targets, chunks=chunks, probed=ModelInfo(), compile="off", advance=passes.append)
    scorer._in_range = True  # the targets are compared with the first pass's classes, once
    with Crossings() as crossings:
        own, common = scorer(
            index, lambda part: pixel_mask(images, images, first_step, index[part], step[part]), shared=1
        )
    assert not crossings.found
    assert own.shape == (11,)
    assert common.shape == (1, BATCH)
    assert passes == [4, 4, 3]
