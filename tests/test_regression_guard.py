"""What must not creep in: passes, operators, bytes, launches, graphs and instructions are counted, never timed.

A count says the same on every machine, loaded or not. The numbers in ``RECORDED`` are what the code needed when they
were written down; where a change brings one down, write the new one there, and where it must go up, say in the commit
what the additional work buys.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import ROOT
from benchmarks.end_to_end.counting import Counted, MeanColour
from fampe_fast import FAMPE, AttEXplore, insertion_deletion
from fampe_fast.ops.backends import OPS
from fampe_fast.runtime.outputs import cross_entropy

from .models_for_tests import Smooth, asked, some_images, suited

METHODS = [FAMPE, AttEXplore]
TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

RECORDED: dict[str, dict[str, float]] = {
    # Operators that are no views, of a chunk of samples, besides the model's, its loss's and their gradients'.
    "operators per chunk": {"FAMPE": 3, "AttEXplore": 4},
    # ... of a chunk of diversified samples: into their frames, and the gradient back.
    "operators per diversified chunk": {"FAMPE": 5, "AttEXplore": 6},
    # ... of a step besides its chunks: spectrum, the order of its samples, a new sum, the step itself, its scale noted
    # in one tensor (kept one by one, the scales lay between freed blocks: 1 MB more memory for each step).
    "operators per step": {"FAMPE": 8, "AttEXplore": 8},
    # ... more where both kinds of samples come: the order of the second kind and its placements.
    "operators per step of placements": {"FAMPE": 5, "AttEXplore": 5},
    # ... and of a call, whatever T and N: targets, checks, schedule, cut-off, kernel of the smoothing. The model is new
    # each time: some 30 are what it is asked first, which finds training mode and outputs that are no logits.
    "operators per call": {"FAMPE": 97, "AttEXplore": 76},
    # Host operators that draw the placements of input diversity, of all steps at once, and ask a new model whether it
    # takes the larger frames.
    "operators per call of placements": {"FAMPE": 167, "AttEXplore": 167},
    # A map of one pass, of a chunk besides the model's, and of a call: the evidence of the layers, less the first
    # layer's own backward pass; checks, and the combination.
    "operators per chunk of one pass": {"FAMPE": 1},
    "operators per call of one pass": {"FAMPE": 35},
    # ... with the pixels' evidence, on two scales, in it.
    "operators per chunk of one pass with pixels": {"FAMPE": 24},
    "operators per call of one pass with pixels": {"FAMPE": 39},
    # New memory per sample, in units of the sample (C * H * W * 4 bytes), the model's gradient among it, at 32 x 32.
    "bytes per sample": {"FAMPE": 3.08, "AttEXplore": 3.02},
    # Instructions of a thread per element of the result: coefficient and sample, pixel and sample, or pixel; of
    # layer_evidence per product; level_sums per number that is summed. The launches are a chunk's, of 64 rows.
    "sm_90 instructions per element": {
        "band_mix": 73,
        "band_samples": 80,
        "dct_mix": 60,
        "step": 91,
        "magnitude": 58,
        "pixel_mask": 15,
        "layer_evidence": 13,
        "level_sums": 30,
        "combine_layers": 225,
    },
}


def check(what: str, name: str, counted: float) -> None:
    allowed = RECORDED[what][name]
    assert counted <= allowed, (
        f"{what} of {name}: {counted:g}, and {allowed:g} were enough so far. Find what was added; if it must be, "
        f"change RECORDED in {Path(__file__).name} and say in the commit what it buys."
    )


# Passes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("steps", "samples", "batch", "chunk"), [(1, 1, 1, 1), (3, 5, 2, 4), (2, 4, 3, 64), (2, 7, 1, 3)]
)
@pytest.mark.parametrize("diversity", [False, True])
@pytest.mark.parametrize("views", [0, 1, 2])
def test_no_pass_is_wasted(
    method: type, steps: int, samples: int, batch: int, chunk: int, diversity: bool, views: int
) -> None:
    model = Counted(Smooth())
    explainer = method(model, steps=steps, samples=samples, views=views, input_diversity=diversity)
    explainer.attribute(some_images(batch, height=16, width=16), target=1, internal_batch_size=chunk)
    assert explainer.passes == steps * samples + views
    asked = views > 0  # an image, for the layers; its gradient ends at them, as those of the views do
    assert sum(model.backward_images.values()) == steps * samples * batch
    assert sum(model.begun_images.values()) == explainer.passes * batch + asked
    # The first call shows the model an image, alone and beside another: how many classes are there, how much memory
    # does a pass take, is it in evaluation mode? And one in a larger frame of input diversity.
    assert sum(model.forward_images.values()) == explainer.passes * batch + asked + 3 + diversity
    assert max(images for images, _, _ in model.batches) <= max(chunk, 2)
    # Plain and diversified samples differ in size: the last chunk of each may be a part of one.
    passes = steps * (-(-samples * batch // chunk) + diversity) + -(-views * batch // chunk)
    assert len(model.batches) <= passes + asked + 2 + diversity
    model.forward_images.clear()
    explainer.attribute(some_images(batch, height=16, width=16), target=0, internal_batch_size=chunk)
    assert sum(model.forward_images.values()) == explainer.passes * batch


def test_finding_the_target_costs_a_forward_pass_per_image() -> None:
    model = Counted(Smooth())
    method = FAMPE(model, steps=1, samples=2, views=0)
    method.attribute(some_images(3))
    assert sum(model.forward_images.values()) == 3 * 2 + 3 + 3
    model.forward_images.clear()
    method.attribute(some_images(3))
    assert sum(model.forward_images.values()) == 3 * 2 + 3


class Remembering(Smooth):
    """Keeps every image it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bytes] = []
        self.calls = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen += [image.detach().contiguous().numpy().tobytes() for image in pixels]
        self.calls += 1
        return super().forward(pixels)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("protocol", "ends"), [("rise", 2 + 1), ("attexplore", 1), ("per_element", 1)])
def test_insertion_and_deletion_show_every_distinct_image_once(protocol: str, ends: int, flat: bool) -> None:
    images = some_images(2, height=12, width=12)
    model = asked(Remembering(), images)
    maps = torch.zeros(2, 1, 12, 12)
    if not flat:
        maps = torch.rand(maps.shape, generator=torch.Generator().manual_seed(0))
    insertion_deletion(model, images, maps, 1, protocol=protocol, mean=0.5, steps=12, internal_batch_size=8)
    # The images, what is left of them in the end (blurred, of one colour, or either), and between them per image 11
    # steps forth and 11 back.
    assert len(model.seen) == 2 + ends + 2 * 11 * 2
    assert len(set(model.seen)) == len(model.seen)
    assert model.calls <= 3 + 2 * -(-22 // 8)


# Operators ------------------------------------------------------------------------------------------------------------


def new_storage(function: Any) -> bool:
    """Whether an operator does more than look at its input in another way."""
    return not any(found.alias_info is not None and not found.alias_info.is_write for found in function._schema.returns)


class Operators(TorchDispatchMode):
    """Counts what Python asks of torch: on a GPU about as many launches, each some microseconds of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()
        self.elements: Counter[str] = Counter()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if new_storage(function):
            self.counted[str(function)] += 1
            for tensor in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(tensor, Tensor) and not function._schema.is_mutable:
                    self.elements[str(function)] += tensor.numel()
                    self.bytes += tensor.numel() * tensor.element_size()
        return result


def operators(
    method: type, steps: int, samples: int, batch: int = 2, side: int = 16, chunk: int = 8, **options: Any
) -> Operators:
    explainer = method(MeanColour(), steps=steps, samples=samples, views=0, compile="off", **options)
    images, target = some_images(batch, height=side, width=side), torch.zeros(batch, dtype=torch.long)
    with Operators() as found:
        explainer.attribute(images, target, internal_batch_size=chunk)
    return found


def total(method: type, steps: int, samples: int, diversity: bool) -> tuple[int, int, int]:
    """Operators, chunks, and chunks of diversified samples among them."""
    found = operators(method, steps, samples, input_diversity=diversity).counted
    shown = found["fampe_fast.diversify.default"]
    assert found["fampe_fast.diversify_adjoint.default"] == shown
    return sum(found.values()), found["fampe_fast.accumulate.default"], shown


def model_operators() -> int:
    """Of the model's passes and the loss, which differ between versions of torch."""
    leaf, target = some_images(8, height=16, width=16).requires_grad_(True), torch.zeros(8, dtype=torch.long)
    model = MeanColour().requires_grad_(False)
    with Operators() as found:
        torch.autograd.grad(cross_entropy(model(leaf), target, "softmax").sum(), leaf)
    return sum(found.counted.values())


@pytest.mark.parametrize("method", METHODS)
def test_operators_per_chunk_per_step_and_per_call(method: type) -> None:
    name = method.__name__
    total(method, 1, 4, True)  # what is kept from call to call
    one = total(method, 1, 4, False)[0]
    chunk = total(method, 1, 8, False)[0] - one
    step = total(method, 2, 4, False)[0] - one - chunk
    model = model_operators()
    assert chunk > model > 5
    assert total(method, 3, 12, False)[0] - one == 2 * step + 8 * chunk  # nothing grows faster than steps and chunks
    # Up to some version between 2.6 and 2.11 torch fills zeros where a slice has taken all: twice in a chunk.
    filled = operators(method, 1, 4, input_diversity=False).counted["aten.slice_backward.default"]
    assert filled == 0 or (filled == 2 and TORCH < (2, 11))
    check("operators per chunk", name, chunk - model - filled)
    check("operators per step", name, step)
    check("operators per call", name, one - step - chunk)

    few, many = total(method, 1, 8, True), total(method, 1, 40, True)
    plain = many[1] - many[2] - (few[1] - few[2])
    diversified = (many[0] - few[0] - plain * chunk) / (many[2] - few[2])
    assert many[2] > few[2]
    check("operators per diversified chunk", name, diversified - model - filled)
    more = []
    for steps in (1, 3):
        found, chunks, shown = total(method, steps, 8, True)
        more.append(found - (one - step - chunk) - steps * step - (chunks - shown) * chunk - shown * diversified)
    check("operators per step of placements", name, (more[1] - more[0]) / 2)
    check("operators per call of placements", name, more[0] - (more[1] - more[0]) / 2)


def one_pass_operators(chunk: int, **options: float) -> int:
    explainer, images = FAMPE(asked(Smooth(), some_images(8)), passes=1, compile="off", **options), some_images(8)
    explainer.attribute(images, 0, internal_batch_size=chunk)  # what is kept from call to call
    with Operators() as found:
        explainer.attribute(images, 0, internal_batch_size=chunk)
    return sum(found.counted.values())


@pytest.mark.parametrize(("options", "what"), [({}, ""), ({"pixel_weight": 0.5}, " with pixels")])
def test_operators_of_a_map_of_one_pass(options: dict[str, float], what: str) -> None:
    leaf, target = some_images(8).requires_grad_(True), torch.zeros(8, dtype=torch.long)
    model = Smooth().requires_grad_(False)
    with Operators() as found:
        torch.autograd.grad(cross_entropy(model(leaf), target, "softmax").sum(), leaf)
    whole, halves = one_pass_operators(8, **options), one_pass_operators(4, **options)
    chunk = halves - whole
    assert chunk > sum(found.counted.values()) > 5
    assert one_pass_operators(2, **options) == whole + 3 * chunk
    check(f"operators per chunk of one pass{what}", "FAMPE", chunk - sum(found.counted.values()))
    check(f"operators per call of one pass{what}", "FAMPE", whole - chunk)


def per_step(method: type, samples: int) -> tuple[Counter[str], Counter[str]]:
    """Operators of a step, and the elements of their results per image and channel; images of 16 x 16."""
    shorter, longer = (operators(method, steps, samples, 2, input_diversity=False) for steps in (2, 4))
    counted = {name: (count - shorter.counted[name]) // 2 for name, count in longer.counted.items()}
    elements = {name: (count - shorter.elements[name]) // (2 * 2 * 3) for name, count in longer.elements.items()}
    return Counter(counted), Counter(elements)


@pytest.mark.parametrize("samples", [4, 24])
def test_the_spectrum_is_computed_once_per_step_and_every_sample_once(samples: int) -> None:
    counted, elements = per_step(FAMPE, samples)
    half, whole = 16 * 9, 16 * 16
    assert counted["aten._fft_r2c.default"] == 1
    assert elements["aten._fft_r2c.default"] == half
    assert elements["fampe_fast.band_samples.default"] == samples * whole
    assert counted["fampe_fast.gradient_step.default"] == 1
    assert counted["fampe_fast.energy_cutoff.default"] == counted["aten._fft_c2r.default"] == 0
    call = operators(FAMPE, 2, samples, input_diversity=False).counted
    assert call["fampe_fast.energy_cutoff.default"] <= 1
    assert call["aten._fft_r2c.default"] - 2 <= 2  # for the cut-off, and for what a map is made into


@pytest.mark.parametrize("samples", [4, 24])
def test_the_cosine_transform_is_computed_once_per_step_and_every_sample_once(samples: int) -> None:
    counted, elements = per_step(AttEXplore, samples)
    whole = 16 * 16
    assert elements["fampe_fast.separable_transform.default"] == (1 + samples) * whole
    assert elements["fampe_fast.dct_mix.default"] == samples * whole
    assert counted["fampe_fast.gradient_step.default"] == 1


class Casts(TorchDispatchMode):
    """Counts how often the parameters of a model are cast."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._places = {parameter.data_ptr() for parameter in model.parameters()}
        self.counted = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.ops.aten._to_copy.default:
            self.counted += args[0].data_ptr() in self._places
        return function(*args, **(kwargs or {}))


def mobilenet() -> torch.nn.Module:
    return timm.create_model("mobilenetv3_small_050", num_classes=5).eval()


@pytest.mark.parametrize("options", [{"steps": 1, "samples": 8, "views": 0}, {"passes": 2}], ids=["path", "views"])
@pytest.mark.parametrize("make", [mobilenet, lambda: suited("attention")], ids=["MobileNetV3-S", "ViT"])
def test_weights_are_cast_once_per_call(make: Callable[[], torch.nn.Module], options: dict[str, int]) -> None:
    images = some_images(4, height=24, width=24)
    model = asked(make(), images)
    explainer = FAMPE(model, compile="off", precision="bf16", **options)

    def casts(chunk: int) -> int:
        explainer.attribute(images, 0, internal_batch_size=chunk)  # what is kept from call to call
        with Casts(model) as found:
            explainer.attribute(images, 0, internal_batch_size=chunk)
        return found.counted

    layers = [module for module in model.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]
    weights = sum(len(list(layer.parameters())) for layer in layers)
    assert casts(4) == casts(2) == weights > 10


# Memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_bytes_per_sample(method: type) -> None:
    side, sample = 32, 3 * 32 * 32 * 4

    def allocated(samples: int) -> int:
        return operators(method, 1, samples, 2, side, 8, input_diversity=False).bytes

    allocated(4)  # what is kept from call to call
    counted = (allocated(12) - allocated(4)) / (2 * 8 * sample)
    assert counted > 2  # the sample's spectrum and the sample itself
    check("bytes per sample", method.__name__, round(counted, 2))


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most memory that torch's CPU allocator has handed out at once during a call, above that before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_the_memory_counter_counts() -> None:
    def call() -> Tensor:
        first = torch.ones(1000)
        second = first * 2
        del first
        return second + torch.ones(500).sum()

    assert 3 * 4000 > peak_bytes(call) >= 2 * 4000


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_memory_grows_with_the_chunk_and_not_with_steps_and_samples(method: type) -> None:
    model, images = Smooth(), some_images(2)

    def peak(steps: int, samples: int, chunk: int) -> int:
        explainer = method(model, steps=steps, samples=samples, compile="off", input_diversity=True)
        explainer.attribute(images, target=0, internal_batch_size=chunk)  # what is kept from call to call
        return peak_bytes(lambda: explainer.attribute(images, target=0, internal_batch_size=chunk))

    # Rows are cut into even parts: of four samples of two images, plain and diversified, two at a time always are two.
    small, large = peak(2, 4, 2), peak(4, 8, 2)
    sample, more = images[0].numel() * 4, 2 * (4 * 8 - 2 * 4)
    # The order of the samples and their placements are made beforehand: tens of bytes each.
    assert large - small < 100 * more < 0.02 * more * sample
    assert peak(4, 8, 4) - large > 3 * sample


# Compilation ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_no_number_of_the_configuration_compiles_anything_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three graphs for all, of samples with and without input diversity, and of the depths.

    tests/runtime/test_compile.py changes the sizes.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    counters.clear()
    model, images = Smooth(), some_images(2)
    for options in (
        {"mode": "mix"},
        {"eps": 0.01, "decay": 0.5, "smoothing": False},
        {"direction": "ascend", "gradient_cutoff": 4.0},
        {"alpha": 0.7, "rho": 0.1, "sigma": 0.2, "gain": 2.0},
        {"mode": "modulate", "tau": 0.5, "include_dc": False},
        {"cutoff": 3.5},
        {"pixel_weight": 2.0, "gate_floor": 0.5, "views": 1},
    ):
        FAMPE(model, compile="on", steps=1, samples=6, input_diversity=True, **options).attribute(images, target=1)
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]


# Kernels --------------------------------------------------------------------------------------------------------------


@contextmanager
def recorded_launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Which kernels the Triton backend would launch; none is, so its results are whatever lay in memory."""
    counted: Counter[str] = Counter()

    def launch(kernel: Any, programs: int, *arguments: Any, **named: Any) -> None:
        counted[kernel.__name__.lstrip("_")] += programs > 0

    with monkeypatch.context() as patch:
        for name in sorted(set(OPS.values())):
            patch.setattr(importlib.import_module(f"fampe_fast.kernels.{name}"), "launch", launch)
        patch.setenv("FAMPE_FAST_BACKEND", "triton")
        yield counted


@pytest.mark.usefixtures("triton_runs")
@pytest.mark.filterwarnings("ignore::fampe_fast.errors.FampeWarning")
def test_kernel_launches_per_step(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    images, target = some_images(2).to(device), torch.zeros(2, dtype=torch.long, device=device)
    model = MeanColour().to(device)

    def launches(method: type, steps: int, samples: int, diversity: bool = False) -> Counter[str]:
        explainer = method(model, steps=steps, samples=samples, views=0, compile="off", input_diversity=diversity)
        with recorded_launches(monkeypatch) as counted:
            explainer.attribute(images, target, internal_batch_size=8)
        return counted

    for method, mix in ((FAMPE, "band_samples"), (AttEXplore, "dct_mix")):
        one, two_chunks, two_steps = (launches(method, *sizes) for sizes in ((1, 4), (1, 8), (2, 4)))
        assert two_chunks - one == {mix: 1, "accumulate": 1}
        step = two_steps - one
        assert step.pop(mix) == step.pop("accumulate") == 1
        assert step == {"magnitude": 1, "mean_magnitude": 1, "step": 1}
    cutoff = launches(FAMPE, 1, 4) - launches(AttEXplore, 1, 4)
    assert cutoff == {"band_samples": 1, "tile_energy": 1, "shell_energy": 1, "first_radius": 1}
    diverse = launches(FAMPE, 2, 16, diversity=True)
    assert diverse["accumulate"] <= 2 * (16 * 2 // 8 + 1)
    assert 0 < diverse["diversify"] == diverse["diversify_adjoint"] < diverse["accumulate"] == diverse["band_samples"]


@pytest.mark.slow
def test_instructions_per_element() -> None:
    pytest.importorskip("triton", reason="the package triton is not installed")
    from benchmarks.kernels.sizes import USUAL

    wanted = ["band_mix", "band_samples", "dct_mix", "gradient_step", "pixel_mask", "layer_evidence", "combine_layers"]
    requests = [{"primitive": name, "size": dataclasses.asdict(USUAL)} for name in wanted]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.kernels.compile_kernels", "--work"],
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0"},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = json.loads(done.stdout)
    if any(answer["reason"] for answer in answers):  # another compiler's loops, or no disassembler
        pytest.skip("; ".join(answer["reason"] for answer in answers if answer["reason"]))
    counted = {work["kernel"]: work["executed"]["issue"] / work["elements"] for a in answers for work in a["work"]}
    assert counted.keys() == RECORDED["sm_90 instructions per element"].keys()
    print(f"triton's instructions per element: {counted}")  # shown where one of them is too many
    for name, instructions in counted.items():
        check("sm_90 instructions per element", name, instructions)
