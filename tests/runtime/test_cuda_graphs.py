"""Passes in CUDA graphs: when they are captured, whose results they give, and what takes them out of use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fampe_fast import FAMPE, warmup
from fampe_fast.runtime import cuda_graphs
from fampe_fast.runtime.chunking import pinned_chunks
from fampe_fast.runtime.cuda_graphs import CAPTURE_AFTER, MOST_GRAPHS, GraphedCalls, graphed_calls
from fampe_fast.runtime.decisions import collected_decisions, decided_at_once
from fampe_fast.runtime.device_time import CallTime
from fampe_fast.runtime.graph_capture import CaptureBusyError
from fampe_fast.runtime.model_state import state_of
from fampe_fast.runtime.parts import parts_of
from fampe_fast.runtime.tf32 import tensor_float32

from ..models_for_tests import Smooth, exchange_module, exchange_weight, move_data, some_images

# Rules, which need no GPU ---------------------------------------------------------------------------------------------


class Recorder:
    """Stands for a capture: keeps the function, and counts."""

    made = 0

    def __init__(self, function: Callable[..., list[Tensor]], arguments: Sequence[Tensor]) -> None:
        Recorder.made += 1
        self.function = function
        function(*arguments)

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        return self.function(*arguments)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[CallTime]:
    """The times that measurements find, one after the other; 1 GiB is free."""
    found: list[CallTime] = []
    Recorder.made = 0
    monkeypatch.setattr(cuda_graphs, "GraphedCall", Recorder)
    monkeypatch.setattr(cuda_graphs, "time_call", lambda call, device: found.pop(0))
    monkeypatch.setattr(cuda_graphs, "free_memory", lambda device: 2**30)
    return found


MODEL = Smooth()
SLOW_HOST, SLOW_DEVICE = CallTime(host=2e-3, device=1e-3), CallTime(host=1e-3, device=2e-3)


def double(values: Tensor) -> list[Tensor]:
    return [2 * values]


def run(calls: GraphedCalls, rows: int = 1, model: Any = None, kept: int | None = 100, always: bool = False) -> bool:
    """Whether a call was replayed, once its result was found right."""
    values = torch.arange(float(rows))
    found = calls.run(double, [values], lambda: state_of(parts_of(model or MODEL)), kept, always=always)
    assert found is None or torch.equal(found[0], 2 * values)
    return found is not None


def test_auto_measures_once_a_function_has_been_called_often(times: list[CallTime]) -> None:
    calls = GraphedCalls("the passes")
    assert not any(run(calls) for _ in range(CAPTURE_AFTER))
    times.append(SLOW_HOST)
    with collected_decisions() as decisions:
        assert all(run(calls) for _ in range(3))
    assert decisions == [
        "CUDA graphs: used for the passes, a pass of which (1 images) takes the host 2.00 ms and the device 1.00 ms"
    ]
    assert Recorder.made == 1


def test_a_warm_up_does_not_wait_for_that(times: list[CallTime]) -> None:
    times.append(SLOW_HOST)
    calls = GraphedCalls("the passes")
    with decided_at_once():
        assert run(calls)
    assert run(calls)


def test_a_device_that_is_slower_than_the_host_gains_nothing(times: list[CallTime]) -> None:
    times.append(SLOW_DEVICE)
    calls = GraphedCalls("the passes")
    with decided_at_once():
        assert not any(run(calls) for _ in range(3))  # and it is measured once
        times.append(SLOW_HOST)
        assert run(calls, rows=2)  # other sizes are other passes
        assert not run(calls)


@pytest.mark.parametrize("kept", [None, 2**30 // 8 + 1])
def test_auto_keeps_little_memory(kept: int | None, times: list[CallTime]) -> None:
    with decided_at_once():
        assert not run(GraphedCalls("the passes"), kept=kept)
    assert run(GraphedCalls("the passes"), kept=kept, always=True)


@pytest.mark.usefixtures("times")
def test_who_asks_for_graphs_gets_them_at_once_but_not_without_end() -> None:
    calls = GraphedCalls("the passes")
    assert [run(calls, rows=rows, always=True) for rows in range(1, 11)] == [True] * 8 + [False] * 2
    assert run(calls, rows=3, always=True)


@pytest.mark.usefixtures("times")
def test_a_call_that_cannot_be_captured_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fails(function: object, arguments: object) -> None:
        tried.append(function)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(cuda_graphs, "GraphedCall", fails)
    calls = GraphedCalls("the passes")
    with collected_decisions() as decisions:
        assert not any(run(calls, always=True) for _ in range(3))
    assert len(tried) == 1
    assert decisions == ["CUDA graphs: the passes cannot be captured: operation not permitted when stream is capturing"]


@pytest.mark.usefixtures("times")
@pytest.mark.parametrize("change", [exchange_weight, exchange_module, move_data])
def test_a_changed_model_is_captured_anew_a_few_times(change: Callable[[Smooth], None]) -> None:
    calls, model = GraphedCalls("the passes"), Smooth()
    assert run(calls, model=model, always=True)
    replayed = []
    for _ in range(5):
        change(model)
        replayed.append(run(calls, model=model, always=True))
    assert Recorder.made == 4
    assert replayed == [True] * 3 + [False] * 2


@pytest.mark.usefixtures("times")
def test_memory_that_is_short_is_asked_for_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: object, arguments: object) -> None:
        Recorder.made += 1
        raise torch.OutOfMemoryError("CUDA out of memory")

    calls = GraphedCalls("the passes")
    with monkeypatch.context() as patch:
        patch.setattr(cuda_graphs, "GraphedCall", fails)
        assert not run(calls, always=True)
        assert not run(calls, always=True)
    assert run(calls, always=True)
    monkeypatch.setattr(cuda_graphs, "GraphedCall", fails)
    Recorder.made = 0
    assert not any(run(calls, rows=2, always=True) for _ in range(9))
    assert Recorder.made == 4


@pytest.mark.usefixtures("times")
def test_an_error_without_words_is_named_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: object, arguments: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(cuda_graphs, "GraphedCall", fails)
    with collected_decisions() as decisions:
        assert not run(GraphedCalls("the passes"), always=True)
    assert decisions == ["CUDA graphs: the passes cannot be captured: NotImplementedError"]


def test_a_thread_beside_another_s_capture_runs_plain(times: list[CallTime], monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(function: object, arguments: object) -> None:
        raise CaptureBusyError("another thread is capturing")

    calls = GraphedCalls("the passes")
    times.append(SLOW_HOST)
    with monkeypatch.context() as patch, collected_decisions() as decisions:
        patch.setattr(cuda_graphs, "GraphedCall", busy)
        assert run(calls, always=True)  # its results are a plain call's
        with decided_at_once():
            assert not run(calls)
    assert decisions == [one for one in decisions if one.startswith("CUDA graphs: used")]
    assert Recorder.made == 0
    assert run(calls, always=True)
    assert Recorder.made == 1


@pytest.mark.usefixtures("times")
def test_threads_that_change_tf32_do_not_wait_for_each_other() -> None:
    """One captures, and waits in there for the other to leave its setting, which waits for nothing."""
    calls, both = GraphedCalls("the passes"), threading.Barrier(2, timeout=30)
    found: list[list[Tensor] | None] = []

    def samples(values: Tensor) -> list[Tensor]:
        with tensor_float32(False):
            return double(values)

    def work(number: int) -> None:
        with tensor_float32(True):
            both.wait()
            found.append(
                calls.run(samples, [torch.ones(2)], lambda: state_of(parts_of(MODEL)), 100, always=bool(number))
            )

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in (1, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert [one is not None and one[0].tolist() for one in found] == [[2, 2], [2, 2]]


@pytest.mark.usefixtures("times")
def test_a_model_has_few_captures_of_all_its_functions() -> None:
    model = Smooth()
    replayed = [
        run(graphed_calls(model, function, kind, "the passes"), rows=rows, always=True)
        for function in ("depths", "gradients")
        for kind in range(2)
        for rows in (1, 2, 3)
    ]
    assert replayed == [True] * MOST_GRAPHS + [False] * (12 - MOST_GRAPHS)
    assert run(graphed_calls(Smooth(), "depths", 0, "the passes"), always=True)


@pytest.mark.usefixtures("times")
def test_settings_that_choose_algorithms_make_other_captures() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    calls = GraphedCalls("the passes")
    for around in (nullcontext(), sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(deterministic=True)):
        with around:
            assert run(calls, always=True)
            assert run(calls, always=True)
    assert Recorder.made == 3


def test_a_model_with_hooks_is_not_asked_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "free_memory", lambda device: pytest.fail("asked for memory"))
    model = Smooth()
    model.head.register_forward_hook(lambda *call: None)
    calls = GraphedCalls("the passes")
    assert not any(run(calls, model=model) for _ in range(2 * CAPTURE_AFTER))


# On a GPU -------------------------------------------------------------------------------------------------------------

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def maps_of(model: nn.Module, images: Tensor, target: Any, compile: str, **options: Any) -> Tensor:
    found: Tensor = FAMPE(model, compile=compile, **options).attribute(images, target=target)
    return found


def assert_graphs_give_the_plain_maps(model: nn.Module, images: Tensor, target: Any = 1, **options: Any) -> None:
    plain = maps_of(model, images, target, "off", **options)
    assert torch.equal(maps_of(model, images, target, "graphs", **options), plain)


def captures(model: nn.Module) -> int:
    from fampe_fast.runtime.per_model import cache_of

    return sum(len(calls.captured) for calls in cache_of(model, "graphed calls").values())


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
@pytest.mark.parametrize("options", [{"passes": 1}, {"passes": 2}, {"passes": 1, "loss": "softmax_twice"}], ids=str)
@pytest.mark.parametrize("name", ["smooth", "test_resnet", "test_vit"])
def test_graphs_give_the_plain_maps_to_the_bit(name: str, options: dict[str, Any], precision: str) -> None:
    from fampe_fast import load_classifier

    torch.manual_seed(0)
    model = Smooth().cuda() if name == "smooth" else load_classifier(name, pretrained=False, device="cuda")
    side = 40 if name == "smooth" else model.input_size[0]
    for seed, batch in ((0, 1), (1, 3), (2, 1), (3, 3)):
        images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)).cuda()
        target = [(seed + image) % 5 for image in range(batch)]
        assert_graphs_give_the_plain_maps(model, images, target, precision=precision, **options)
    assert captures(model) == 2


@pytest.mark.gpu
@on_a_gpu
@pytest.mark.parametrize("change", [exchange_weight, exchange_module, move_data])
def test_a_changed_model_gives_its_own_maps(change: Callable[[Smooth], None]) -> None:
    model, images = Smooth().cuda(), some_images(2).cuda()
    before = maps_of(model, images, 1, "graphs", passes=1)
    with torch.no_grad():
        model.head.weight.mul_(torch.linspace(-1, 2, 8, device="cuda"))
    assert_graphs_give_the_plain_maps(model, images, passes=1)
    assert not torch.equal(maps_of(model, images, 1, "graphs", passes=1), before)
    change(model)
    model.cuda()
    assert_graphs_give_the_plain_maps(model, images, passes=1)
    seen: list[object] = []
    model.head.register_forward_hook(lambda *call: seen.append(call))
    plain = maps_of(model, images, 1, "off", passes=1)
    seen.clear()
    # Compiled instead, which rounds otherwise.
    torch.testing.assert_close(maps_of(model, images, 1, "graphs", passes=1), plain, rtol=1e-3, atol=1e-3)
    assert seen


class Waiting(Smooth):
    """Asks for a value on the host, which cannot be captured."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels) * (1 + 0 * float(pixels.sum()))


@pytest.mark.gpu
@on_a_gpu
def test_a_model_that_waits_runs_plain() -> None:
    model, images = Waiting().cuda(), some_images(2).cuda()
    plain = maps_of(model, images, 1, "off", passes=1)
    with collected_decisions() as decisions:
        for _ in range(2):  # compiled instead, or plain where that fails too
            torch.testing.assert_close(maps_of(model, images, 1, "graphs", passes=1), plain, rtol=1e-3, atol=1e-3)
    assert len(decisions) == 1
    assert decisions[0].startswith("CUDA graphs: the depths of Waiting cannot be captured: ")
    assert captures(model) == 0
    assert_graphs_give_the_plain_maps(Smooth().cuda(), images, passes=1)  # and the device goes on as before
    assert torch.rand(3, device="cuda").isfinite().all()


@pytest.mark.gpu
@on_a_gpu
def test_auto_captures_and_the_profile_shows_it() -> None:
    from torch.profiler import ProfilerActivity, profile

    model, images = Smooth().cuda(), some_images(1).cuda()
    method = FAMPE(model, passes=1)
    expected = maps_of(model, images, 1, "off", passes=1)
    with collected_decisions() as decisions:
        for _ in range(CAPTURE_AFTER + 1):
            assert torch.equal(method.attribute(images, target=1), expected)
    assert [one for one in decisions if one.startswith("CUDA graphs: used for the depths of Smooth")]
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        assert torch.equal(method.attribute(images, target=1), expected)
        torch.cuda.synchronize()
    assert sum("GraphLaunch" in event.name for event in profiled.events() or ()) == 1


@pytest.mark.gpu
@on_a_gpu
def test_a_warm_up_captures() -> None:
    model = Smooth().cuda()
    found = warmup(FAMPE(model, passes=1), 40)
    assert any(one.startswith("CUDA graphs: used for the depths of Smooth") for one in found.decisions)
    assert captures(model) == 1


@pytest.mark.gpu
@on_a_gpu
def test_threads_on_their_own_streams_share_a_capture() -> None:
    model = Smooth().cuda()
    images = [some_images(1, seed=seed).cuda() for seed in range(4)]
    expected = [maps_of(model, one, 1, "off", passes=1) for one in images]
    maps_of(model, images[0], 1, "graphs", passes=1)
    torch.cuda.synchronize()
    wrong: list[int] = []

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                found = maps_of(model, images[number], 1, "graphs", passes=1)
                if not torch.equal(found, expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert captures(model) == 1


@pytest.mark.gpu
@on_a_gpu
def test_where_sizes_are_pinned_what_is_not_captured_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 1)
    model = Smooth().cuda()
    with pinned_chunks():
        for batch in (1, 3, 1):
            assert_graphs_give_the_plain_maps(model, some_images(batch).cuda(), passes=1)
        assert captures(model) == 1
        FAMPE(model, passes=1).attribute(some_images(2).cuda(), target=1)
    assert captures(model) == 1
