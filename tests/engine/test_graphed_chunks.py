"""A path's chunks in CUDA graphs: what a replay is given anew, and whose gradients it returns.

Without a GPU a stand-in keeps the function and the tensors of the first call, as a capture does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fampe_fast import FAMPE, AttEXplore, FampeWarning
from fampe_fast.engine import aggregation, depth, graphed_chunks
from fampe_fast.methods.base import PathMethod
from fampe_fast.runtime import auto_compile, cuda_graphs
from fampe_fast.runtime.chunking import ChunkSize, pinned_chunks
from fampe_fast.runtime.cuda_graphs import CAPTURE_AFTER, graphed_calls, release_captures
from fampe_fast.runtime.device_time import CallTime
from fampe_fast.runtime.per_model import cache_of

from ..fake_captures import FakeGraph, capture_on_a_cpu
from ..models_for_tests import Smooth, published

STEPS, SAMPLES = 3, 4


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture on a CPU, from the first chunk on, whatever the times."""
    capture_on_a_cpu(monkeypatch)
    for module in (depth, graphed_chunks):
        monkeypatch.setattr(module, "can_capture", lambda device: True)
    monkeypatch.setattr(auto_compile, "resolve_compile", lambda wanted, device: wanted)
    monkeypatch.setattr(cuda_graphs, "time_call", lambda call, device: CallTime(host=2e-3, device=1e-3))
    monkeypatch.setattr(cuda_graphs, "free_memory", lambda device: 2**34)
    monkeypatch.setattr(cuda_graphs, "CAPTURE_AFTER", 0)


def fampe(model: nn.Module, **options: Any) -> FAMPE:
    return FAMPE(model, **{"steps": STEPS, "samples": SAMPLES, "views": 0, **options})


def attexplore(model: nn.Module, **options: Any) -> AttEXplore:
    return AttEXplore(model, steps=STEPS, samples=SAMPLES, input_diversity=False, **options)


CALLS = [
    {"seed": 0, "batch": 2, "target": [0, 3]},
    {"seed": 1, "batch": 2, "target": [4, 4]},  # other images, classes and random numbers
    {"seed": 1, "batch": 1, "target": [2]},  # another shape
    {"seed": 2, "batch": 2, "target": [1, 0]},
]


def images_of(seed: int, batch: int, device: str = "cpu") -> Tensor:
    return torch.rand(batch, 3, 32, 33, generator=torch.Generator().manual_seed(seed)).to(device)


def assert_equal_maps(make: Callable[..., PathMethod], model: nn.Module, device: str = "cpu", **options: Any) -> None:
    for k, call in enumerate(CALLS):
        images = images_of(call["seed"], call["batch"], device)
        of_call = {"target": call["target"], "image_ids": [10 * k + image for image in range(call["batch"])]}
        plain, auto = (
            make(model, seed=k, compile=mode, **options).attribute(images, **of_call) for mode in ("off", "auto")
        )
        assert torch.equal(auto, plain), f"call {k}"


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("options", [{}, {"mode": "allpass"}, {"cutoff": 4.0}, {"loss": "softmax_twice"}], ids=str)
def test_a_replay_is_given_all_that_changes(options: dict[str, Any]) -> None:
    assert_equal_maps(fampe, Smooth(), **options)
    assert FakeGraph.captured == 2  # one for each shape
    assert FakeGraph.replayed == STEPS * len(CALLS) + FakeGraph.captured  # a capture is checked by a replay


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("make", [attexplore, lambda model, **options: FAMPE(model, steps=2, samples=2, **options)])
def test_other_samples_and_the_depths_too(make: Callable[..., PathMethod]) -> None:
    assert_equal_maps(make, Smooth())
    assert FakeGraph.captured >= 2


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_turned_weights_are_turned_in_the_capture(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "turns_channels_last", lambda *asked: True)
    model = Smooth()
    assert_equal_maps(fampe, model, precision=precision)
    assert FakeGraph.captured == 2
    with torch.no_grad():
        model.head.weight.mul_(torch.linspace(-1, 2, 8))
        model.features[0].weight.neg_()
    assert_equal_maps(fampe, model, precision=precision)
    assert FakeGraph.captured == 2  # a replay reads the weights as they are


@pytest.mark.usefixtures("stand_in")
def test_methods_that_differ_share_no_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 99)
    model = Smooth()
    for options in ({}, {"mode": "allpass"}, {"loss": "softmax_twice"}, {"precision": "bf16"}, {}):
        assert_equal_maps(fampe, model, **options)
    assert FakeGraph.captured == 8
    # Half a spectrum has the same shape for both widths.
    for width in (32, 33):
        images = torch.rand(1, 3, 30, width)
        assert torch.equal(*(fampe(model, compile=mode).attribute(images, target=1) for mode in ("off", "auto")))


@pytest.mark.usefixtures("stand_in")
def test_an_exchanged_model_is_captured_anew() -> None:
    model = Smooth()
    assert_equal_maps(fampe, model)
    model.head = nn.Linear(8, 5).eval()
    assert_equal_maps(fampe, model)
    assert FakeGraph.captured == 4


@pytest.mark.usefixtures("stand_in")
def test_input_diversity_hooks_and_pinned_sizes_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_equal_maps(published, Smooth(), steps=2, samples=3)
    model = Smooth()
    model.head.register_forward_hook(lambda *call: None)
    assert_equal_maps(fampe, model)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # pinned sizes are compiled at once
    with pinned_chunks():
        fampe(Smooth()).attribute(images_of(0, 2), target=1)
    assert FakeGraph.captured == 0


@pytest.mark.usefixtures("stand_in")
def test_auto_waits_for_some_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "CAPTURE_AFTER", CAPTURE_AFTER)
    model, calls = Smooth(), -(-CAPTURE_AFTER // STEPS)
    for _ in range(calls):
        fampe(model).attribute(images_of(0, 1), target=1)
    assert FakeGraph.replayed == STEPS * calls - CAPTURE_AFTER + 1


@pytest.mark.usefixtures("stand_in")
def test_captures_go_once_the_gradients_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Smooth()
    method = FAMPE(model, steps=2, samples=3)
    method.attribute(images_of(0, 1), target=1)
    assert held(model) == {"depths": 1, "gradients": 1}
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(auto_compile, "COMPILE_AFTER", 0)
    method.attribute(images_of(0, 1), target=1)
    assert held(model) == {"depths": 1, "gradients": 0}


@pytest.mark.usefixtures("stand_in")
def test_compiled_methods_leave_the_captures_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    model = Smooth()
    for _ in range(3):
        attexplore(model).attribute(images_of(0, 1), target=1)
        fampe(model, compile="on").attribute(images_of(0, 1), target=1)
    assert FakeGraph.captured == 1


@pytest.mark.usefixtures("stand_in")
def test_captures_make_room_before_a_chunk_is_halved() -> None:
    model = Smooth()
    fampe(model).attribute(images_of(0, 1), target=1)
    chunks, tried = ChunkSize((model,), images_of(0, 1), 8, "test"), list[int]()

    def passes(size: int) -> str:
        tried.append(size)
        if held(model)["gradients"] or (size > 4 and model.small):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    model.small = False  # type: ignore[assignment]
    assert chunks.run(passes, 8) == "done"
    assert tried == [8, 8]
    model.small = True  # type: ignore[assignment]
    fampe(model).attribute(images_of(0, 1), target=1)
    tried.clear()
    with pytest.warns(FampeWarning, match="out of memory with 8 images per model pass: continuing with 4"):
        assert chunks.run(passes, 8) == "done"
    assert tried == [8, 8, 4]
    with pytest.raises(torch.OutOfMemoryError):
        ChunkSize((model,), images_of(0, 1), 8, "another").run(lambda size: passes(9), 1)


def held(model: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for (function, _), calls in cache_of(model, "graphed calls").items():  # type: ignore[misc]
        name = function if isinstance(function, str) else function[0]
        found[name] = found.get(name, 0) + len(calls.captured)
    return found


def test_releasing_touches_no_other_function_or_model() -> None:
    model, other = Smooth(), Smooth()
    for one, function in ((model, "depths"), (model, "gradients"), (other, "gradients")):
        graphed_calls(one, function, "kind", "the passes").captured["call"] = (0, None)  # type: ignore[assignment]
    assert release_captures(model, "gradients")
    assert not release_captures(model, "gradients")
    assert held(model) == {"depths": 1, "gradients": 0}
    assert held(other) == {"gradients": 1}
    assert release_captures(other)
    assert held(other) == {"gradients": 0}


# On a GPU -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture the first chunk of a shape, whatever the times."""
    monkeypatch.setattr(cuda_graphs, "graphs_pay", lambda time: True)
    monkeypatch.setattr(cuda_graphs, "CAPTURE_AFTER", 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("precision", ["fp32", "auto", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["smooth", "test_resnet", "test_vit"])
def test_graphs_give_the_plain_gradients_to_the_bit(name: str, precision: str) -> None:
    from fampe_fast import load_classifier

    torch.manual_seed(0)
    model = Smooth().cuda() if name == "smooth" else load_classifier(name, pretrained=False, device="cuda")
    height, width = (32, 33) if name == "smooth" else model.input_size
    for make in (fampe, attexplore):
        for k, batch in enumerate((1, 3, 1, 3)):
            images = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(k)).cuda()
            target = [(k + image) % 5 for image in range(batch)]
            plain, auto = (
                make(model, seed=k, precision=precision, compile=mode).attribute(images, target=target)
                for mode in ("off", "auto")
            )
            assert torch.equal(auto, plain)
    assert held(model) == {"gradients": 4}
