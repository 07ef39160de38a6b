"""What the GPU's path asks of the device, seen without one.

torch's fake tensors know shapes, types and devices, refuse operators whose tensors are on two devices, and raise where
the host asks for a value, which on a GPU is a wait. The kernels' own bodies and the backward pass do not run here: the
model's gradient is replaced by one of its shape.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
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
from fampe_fast.runtime import auto_compile, chunk_probe, chunking, device_time, layout
from fampe_fast.runtime.chunk_probe import ENDLESS, Rows
from fampe_fast.runtime.chunking import ChunkSize, pinned_chunks
from fampe_fast.runtime.decisions import collected_decisions, decided_at_once
from fampe_fast.runtime.device_time import CallTime
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


class FakeClock:
    """Stands for a device's events and the host's clock, which stand still but for what calls take, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, host: float, device: float) -> None:
        self.now, self.host, self.device, self.asked = 0.0, host, device, list[str]()
        clock = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                clock.asked.append("event")

            def elapsed_time(self, other: object) -> float:
                return 1e3 * clock.device

        class Stream:
            def synchronize(self) -> None:
                clock.asked.append("wait")

        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: self.asked.append("busy"))
        monkeypatch.setattr(device_time.time, "perf_counter", lambda: self.now)

    def __call__(self) -> None:
        """Pass the time that the host takes for a call."""
        self.asked.append("call")
        self.now += self.host


def test_a_call_is_timed_behind_work_that_keeps_the_device_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, host=0.25, device=0.125)
    assert device_time.time_call(clock, torch.device("cuda")) == CallTime(0.25, 0.125)
    assert clock.asked == ["call", "wait", "call", "wait", "busy", "event", "call", "event", "wait"]


@pytest.fixture
def compiled_as(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The modes in which functions were compiled; they run plain."""
    modes: list[str | None] = []

    def compile_nothing(function: Callable[..., Any], *, fullgraph: bool, mode: str | None = None) -> Any:
        modes.append(mode)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return modes


def auto(classifier: Callable[[Tensor], Tensor] | None = None, **options: Any) -> FAMPE:
    """A method for a model of its own: what is decided for it serves no other test."""
    return FAMPE(classifier or (lambda pixels: colours(pixels)), steps=STEPS, samples=SAMPLES, **options)


@pytest.mark.usefixtures("on_fake_gpu")
def test_auto_compiles_once_a_run_is_long_enough(
    compiled_as: list[str | None], gradients: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeClock(monkeypatch, host=1.0, device=2.0)
    method, chunks = auto(), STEPS * -(-BATCH * SAMPLES // 4)
    work = auto_compile.work_of(STEPS * BATCH * SAMPLES, 4, None)
    monkeypatch.setattr(auto_compile, "COMPILE_AFTER", 2 * work)
    for modes, timed in (([], 0), ([], 0), ([None], 3), ([None], 0)):
        gradients.clear()
        _, crossings = walk(method)
        assert compiled_as == modes
        assert not crossings
        assert len(gradients) == chunks + timed  # one of them is measured, once
    walk(FAMPE(method.forward_func, steps=1, samples=4))  # another number of steps, the same code
    assert compiled_as == [None]


@pytest.mark.usefixtures("on_fake_gpu", "gradients")
@pytest.mark.parametrize(("host", "device", "mode"), [(2.0, 1.0, "reduce-overhead"), (1.0, 2.0, None)])
def test_cuda_graphs_replay_what_the_host_asks_for_too_slowly(
    host: float, device: float, mode: str | None, compiled_as: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, method = FakeClock(monkeypatch, host, device), auto()
    monkeypatch.setattr(aggregation, "_chunk_gradients", passing_time(clock, aggregation._chunk_gradients))
    with decided_at_once(), collected_decisions() as decisions:
        walk(method)
    assert compiled_as == [mode]
    assert decisions == [
        "compile: the gradients of function are compiled from now on",
        f"CUDA graphs: {'not ' if mode is None else ''}used for the gradients of function, a chunk of which takes the "
        f"host {1e3 * host:.2f} ms and the device {1e3 * device:.2f} ms",
    ]
    with collected_decisions() as decisions:
        walk(method)
    assert compiled_as == [mode]
    assert not decisions


def passing_time(clock: FakeClock, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def call(*args: Any) -> Tensor:
        clock()
        return function(*args)

    return call


@pytest.mark.usefixtures("on_fake_gpu", "gradients")
def test_where_chunks_are_pinned_auto_does_not_depend_on_what_ran_before(compiled_as: list[str | None]) -> None:
    method = auto()
    for _ in range(2):
        with pinned_chunks(), collected_decisions() as decisions:
            walk(method)
        assert compiled_as == [None]
        assert not decisions


@pytest.mark.usefixtures("on_fake_gpu", "gradients")
@pytest.mark.parametrize("wanted", ["off", "on", "graphs"])
def test_what_is_asked_for_is_not_decided(wanted: str, compiled_as: list[str | None]) -> None:
    with decided_at_once(), collected_decisions() as decisions:
        walk(auto(compile=wanted))
    assert compiled_as == {"off": [], "on": [None], "graphs": ["reduce-overhead"]}[wanted]
    assert not decisions


# The memory format ----------------------------------------------------------------------------------------------------


class Formats(TorchDispatchMode):
    """Notes whether the images and the weights of convolutions are channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[bool, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(func):
            self.seen.add(tuple(of.is_contiguous(memory_format=torch.channels_last) for of in args[:2]))
        return func(*args, **(kwargs or {}))


class Convolving(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 3, device="cuda")

    def forward(self, pixels: Tensor) -> Tensor:
        return colours(self.layer(pixels))


@pytest.mark.usefixtures("on_fake_gpu", "gradients")
@pytest.mark.parametrize(
    ("precision", "same", "variable", "turned"),
    [
        ("auto", True, "1", True),
        ("tf32", True, "1", True),
        ("auto", False, "1", False),
        ("auto", True, "0", False),
        ("fp32", True, "1", False),
    ],
)
def test_a_plain_module_is_given_channels_last_images_and_weights(
    precision: str, same: bool, variable: str, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.Size] = []
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setenv(layout.VARIABLE, variable)
    monkeypatch.setattr(layout, "same_answers", lambda model, images, probed: asked.append(images.shape) or same)
    model = Convolving().eval()
    with collected_decisions() as decisions:
        for _ in range(2):
            with Formats() as found:
                walk(FAMPE(model, steps=1, samples=4, compile="off", precision=precision))
            assert found.seen == {(turned, turned)}
    probed = precision != "fp32" and variable == "1"
    assert asked == [(2, 3, SIDE, SIDE)] * probed
    given = "given channels-last images and weights" if same else "left in the memory format it has"
    assert decisions == [f"memory format: Convolving is {given}"] * probed
    assert model.layer.weight.is_contiguous()


# The images per pass -------------------------------------------------------------------------------------------------


@pytest.fixture
def sizes_timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of images whose passes were timed; 64 and 128 take equally long per image, and others longer."""
    timed: list[int] = []

    def time_call(call: Callable[[], Tensor], device: torch.device) -> CallTime:
        assert torch.is_autocast_enabled("cuda")
        timed.append(len(call()))
        return CallTime(0.0, timed[-1] * {64: 1.0, 128: 0.99}.get(timed[-1], 1.5))

    monkeypatch.setattr(torch.autograd, "grad", lambda value, leaf: (torch.empty_like(leaf),))
    monkeypatch.setattr(chunk_probe, "time_call", time_call)
    monkeypatch.setattr(chunking, "free_memory", lambda device: 2**30)
    return timed


def chosen(model: Callable[[Tensor], Tensor], rows: Rows, saved_bytes: int = 100_000, asked: int | None = None) -> int:
    """The images per pass; of the default, 2**30 / (2 * saved_bytes + 98304) * 0.8 fit."""
    images, info = torch.empty(2, 3, SIDE, SIDE, device="cuda"), ModelInfo(saved_bytes=saved_bytes)
    around = partial(autocast_of, torch.bfloat16)
    return ChunkSize.for_gradients((model,), images, asked, "bf16", [info], rows, around).size


@contextmanager
def autocast_of(dtype: torch.dtype) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that there is no GPU, and switches autocast off
        before = torch.is_autocast_enabled("cuda")
        torch.set_autocast_enabled("cuda", True)
        yield
        torch.set_autocast_enabled("cuda", before)


@pytest.mark.usefixtures("on_fake_gpu")
def test_a_long_run_takes_the_fastest_chunk_that_fits(sizes_timed: list[int]) -> None:
    model = torch.nn.AdaptiveAvgPool2d(1)

    def shown(images: Tensor) -> Tensor:
        return model(images).flatten(1)

    with collected_decisions() as decisions:
        assert chosen(shown, ENDLESS) == 64
    assert sizes_timed == [32, 64, 128, 256]
    assert decisions[0].startswith("chunk: 64 images per pass of function, by milliseconds per image of 32: 1500.000")
    assert chosen(shown, Rows(1, 1)) == 64
    assert chosen(shown, ENDLESS, asked=5) == 5
    assert chosen(shown, ENDLESS, saved_bytes=2**24) == 25  # as many as fit now
    assert len(sizes_timed) == 4


@pytest.mark.usefixtures("on_fake_gpu")
def test_a_short_run_takes_what_fits_and_no_more_than_64(sizes_timed: list[int]) -> None:
    def model(images: Tensor) -> Tensor:
        return colours(images)

    def never_more_than_32_together(images: Tensor) -> Tensor:
        return colours(images)

    few = Rows(chunk_probe.PROBE_AFTER / 4, 200)
    assert [chosen(model, few) for _ in range(3)] == [64] * 3
    assert chosen(never_more_than_32_together, Rows(ENDLESS.total, 32), saved_bytes=2**23) == 50
    assert not sizes_timed
    assert chosen(model, few) == 64
    assert sizes_timed == [32, 64, 128, 256]


@pytest.mark.usefixtures("on_fake_gpu")
def test_a_warm_up_measures_the_chunk_at_once(sizes_timed: list[int]) -> None:
    def model(images: Tensor) -> Tensor:
        return colours(images)

    with decided_at_once():
        assert chosen(model, Rows(200, 200), saved_bytes=5 * 10**6) == 64
    assert sizes_timed == [32, 64]  # 85 fit


def test_the_smallest_size_that_is_about_as_fast_as_the_best_is_taken() -> None:
    assert chunk_probe.fastest({32: 32 * 1.5, 64: 64 * 1.02, 128: 128 * 1.0, 256: 256 * 1.1}) == 64
    assert chunk_probe.fastest({32: 32 * 1.5, 64: 64 * 1.1, 128: 128 * 1.0}) == 128
    assert chunk_probe.fastest({32: 1.0}) == 32
