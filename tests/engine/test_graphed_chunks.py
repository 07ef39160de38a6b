"""A path's chunks in CUDA graphs: what a replay is given anew, and whose gradients it returns.

Without a GPU a stand-in keeps the function of the first call, as a capture does, and calls it with later arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fampe_fast import FAMPE, AttEXplore
from fampe_fast.engine import aggregation, depth, graphed_chunks
from fampe_fast.methods.base import PathMethod
from fampe_fast.runtime import auto_compile, cuda_graphs
from fampe_fast.runtime.chunking import pinned_chunks
from fampe_fast.runtime.cuda_graphs import CAPTURE_AFTER, graphed_calls, release_captures
from fampe_fast.runtime.device_time import CallTime
from fampe_fast.runtime.per_model import cache_of

from ..models_for_tests import Smooth, published

STEPS, SAMPLES = 3, 4


class KeptFunction:
    """Stands for a capture: what the function holds of its first call, it holds in every replay."""

    made = 0
    replayed = 0

    def __init__(self, function: Callable[..., list[Tensor]], arguments: Sequence[Tensor]) -> None:
        KeptFunction.made += 1
        self._function = function

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        KeptFunction.replayed += 1
        return self._function(*arguments)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture on a CPU, from the first chunk on, whatever the times."""
    KeptFunction.made = KeptFunction.replayed = 0
    for module in (depth, graphed_chunks):
        monkeypatch.setattr(module, "can_capture", lambda device: True)
    monkeypatch.setattr(auto_compile, "resolve_compile", lambda wanted, device: wanted)
    monkeypatch.setattr(cuda_graphs, "GraphedCall", KeptFunction)
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
    assert KeptFunction.made == 2  # one for each shape
    assert KeptFunction.replayed == STEPS * len(CALLS) + KeptFunction.made  # a capture is checked by a replay


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("make", [attexplore, lambda model, **options: FAMPE(model, steps=2, samples=2, **options)])
def test_other_samples_and_the_depths_too(make: Callable[..., PathMethod]) -> None:
    assert_equal_maps(make, Smooth())
    assert KeptFunction.made >= 2


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_turned_weights_are_turned_in_the_capture(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "turns_channels_last", lambda *asked: True)
    model = Smooth()
    assert_equal_maps(fampe, model, precision=precision)
    assert KeptFunction.made == 2
    with torch.no_grad():
        model.head.weight.mul_(torch.linspace(-1, 2, 8))
        model.features[0].weight.neg_()
    assert_equal_maps(fampe, model, precision=precision)
    assert KeptFunction.made == 2  # a replay reads the weights as they are


@pytest.mark.usefixtures("stand_in")
def test_methods_that_differ_share_no_capture() -> None:
    model = Smooth()
    for options in ({}, {"mode": "allpass"}, {"loss": "softmax_twice"}, {"precision": "bf16"}, {}):
        assert_equal_maps(fampe, model, **options)
    assert KeptFunction.made == 8
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
    assert KeptFunction.made == 4


@pytest.mark.usefixtures("stand_in")
def test_input_diversity_hooks_and_pinned_sizes_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_equal_maps(published, Smooth(), steps=2, samples=3)
    model = Smooth()
    model.head.register_forward_hook(lambda *call: None)
    assert_equal_maps(fampe, model)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)  # pinned sizes are compiled at once
    with pinned_chunks():
        fampe(Smooth()).attribute(images_of(0, 2), target=1)
    assert KeptFunction.made == 0


@pytest.mark.usefixtures("stand_in")
def test_auto_waits_for_some_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "CAPTURE_AFTER", CAPTURE_AFTER)
    model, calls = Smooth(), -(-CAPTURE_AFTER // STEPS)
    for _ in range(calls):
        fampe(model).attribute(images_of(0, 1), target=1)
    assert KeptFunction.replayed == STEPS * calls - CAPTURE_AFTER + 1


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


def held(model: nn.Module) -> dict[str, int]:
    found: dict[str, int] = {}
    for (function, _), calls in cache_of(model, "graphed calls").items():  # type: ignore[misc]
        found[function] = found.get(function, 0) + len(calls.captured)
    return found


def test_releasing_touches_no_other_function_or_model() -> None:
    model, other = Smooth(), Smooth()
    for one, function in ((model, "depths"), (model, "gradients"), (other, "gradients")):
        graphed_calls(one, function, "kind").captured["call"] = (0, None)  # type: ignore[assignment]
    release_captures(model, "gradients")
    assert held(model) == {"depths": 1, "gradients": 0}
    assert held(other) == {"gradients": 1}


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
    of_model = model if isinstance(model, Smooth) else model.model
    assert held(of_model) == {"gradients": 4}
