"""One captured call: what a replay reads, what a failed capture leaves behind, and what threads do to each other."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fampe_fast.runtime import device_memory, graph_capture
from fampe_fast.runtime.device_memory import free_memory, note_held
from fampe_fast.runtime.graph_capture import CaptureBusyError, GraphedCall, check_replay

from ..fake_captures import FakeGraph, FakeStream, capture_on_a_cpu


def double(values: Tensor) -> list[Tensor]:
    return [2 * values]


def test_a_replay_reads_its_arguments_anew_and_its_results_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    capture_on_a_cpu(monkeypatch)
    call = GraphedCall(double, [torch.ones(3)])
    (first,), (second,) = call([torch.arange(3.0)]), call([torch.full((3,), 5.0)])
    assert first.tolist() == [0, 2, 4]
    assert second.tolist() == [10, 10, 10]
    assert (FakeGraph.captured, FakeGraph.replayed) == (1, 3)  # the first one was compared with a plain call


def test_a_replay_that_does_not_read_its_arguments_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    capture_on_a_cpu(monkeypatch)
    monkeypatch.setattr(FakeGraph, "replay", lambda self: None)
    with pytest.raises(RuntimeError, match="its replay gives other results"):
        GraphedCall(double, [torch.arange(3.0)])


INF, NAN = torch.inf, torch.nan


@pytest.mark.parametrize(
    ("replayed", "plain", "same"),
    [
        ([1.0, 2.0], [1.0, 2.0], True),
        ([1.0, 2.0], [1.001, 2.0], True),  # of sums in another order
        ([1.0, 2.0], [1.1, 2.0], False),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 1e-9], [0.0, 0.0], False),
        ([NAN, 2.0], [NAN, 2.0], True),
        ([NAN, 2.0], [1.0, 2.0], False),
        ([1.0, 2.0], [NAN, 2.0], False),
        ([INF, 2.0], [INF, 2.0], True),
        ([INF, 9.0], [INF, 2.0], False),
        ([-INF, 2.0], [INF, 2.0], False),
        ([NAN, 2.0], [INF, 2.0], False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_are_compared(replayed: list[float], plain: list[float], same: bool, dtype: torch.dtype) -> None:
    one, other = torch.tensor(replayed, dtype=dtype), torch.tensor(plain, dtype=dtype)
    with contextlib.nullcontext() if same else pytest.raises(RuntimeError, match="its replay gives other results"):
        check_replay([other, one], [other, other])


def test_one_thread_captures_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    capture_on_a_cpu(monkeypatch)
    inside, go_on = threading.Event(), threading.Event()

    def slow(values: Tensor) -> list[Tensor]:
        inside.set()
        assert go_on.wait(30)
        return double(values)

    found: list[GraphedCall] = []
    thread = threading.Thread(target=lambda: found.append(GraphedCall(slow, [torch.ones(2)])))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(CaptureBusyError):
        GraphedCall(double, [torch.ones(2)])
    go_on.set()
    thread.join()
    assert found
    GraphedCall(double, [torch.ones(2)])


class Torch:
    """What a capture asks torch for, in order; a capture fails at its end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end: str, cleans_up: bool, fails: bool) -> None:
        self.log: list[str] = []
        log, device = self.log, "0 (0, 7)"

        class Graph:
            def capture_begin(self, pool: Any = None, capture_error_mode: str = "global") -> None:
                assert capture_error_mode == "thread_local"
                log.append(f"begin {pool}")

            def capture_end(self) -> None:
                log.append("end")
                if fails and log.count("end") == 1:
                    raise RuntimeError("operation not permitted when stream is capturing")

            def reset(self) -> None:
                log.append("reset")

        def ends(index: int, pool: Any) -> None:
            log.append(f"end pool {index} {pool}")
            if cleans_up:
                raise RuntimeError("not currently recording to mempool_id")

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
        monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.empty(*size))
        for name in ("_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"):
            monkeypatch.delattr(torch._C, name, raising=False)
        monkeypatch.setattr(torch._C, end, ends, raising=False)
        monkeypatch.setattr(
            torch._C, "_cuda_releasePool", lambda *given: log.append(f"release {given[0]} {given[1]}"), raising=False
        )
        self.ended, self.released = f"end pool {device}", f"release {device}"


CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("end", ["_cuda_endAllocateToPool", "_cuda_endAllocateCurrentStreamToPool"])
@pytest.mark.parametrize("cleans_up", [False, True])
def test_after_a_failed_capture_the_allocator_goes_on(
    monkeypatch: pytest.MonkeyPatch, end: str, cleans_up: bool
) -> None:
    """Torch up to 2.11 leaves it in the capture; where torch has ended it, it must not be released twice."""
    used = Torch(monkeypatch, end, cleans_up, fails=True)
    with pytest.raises(RuntimeError, match="when stream is capturing"):
        graph_capture._captured(double, [torch.ones(2)], CUDA)
    released = [] if cleans_up else [used.released]
    assert used.log == ["begin (0, 7)", "end", "reset", used.ended, *released, "begin None", "end"]


def test_an_error_of_the_function_ends_the_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    used = Torch(monkeypatch, "_cuda_endAllocateToPool", True, fails=False)

    def fails(values: Tensor) -> list[Tensor]:
        raise ValueError("no gradient")

    with pytest.raises(ValueError, match="no gradient"):
        graph_capture._captured(fails, [torch.ones(2)], CUDA)
    assert used.log[:3] == ["begin (0, 7)", "end", "reset"]
    used.log.clear()
    _, results = graph_capture._captured(double, [torch.ones(2)], CUDA)
    assert results[0].tolist() == [2, 2]
    assert used.log == ["begin (0, 7)", "end"]


def test_cublas_has_no_workspace_before_and_after_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    capture_on_a_cpu(monkeypatch)
    log: list[str] = []
    captured: Callable[..., Any] = graph_capture._captured
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: log.append("clear"), raising=False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: log.append("empty"))
    monkeypatch.setattr(FakeStream, "synchronize", lambda self: log.append("wait"))
    monkeypatch.setattr(graph_capture, "_captured", lambda *given: log.append("capture") or captured(*given))
    GraphedCall(double, [torch.ones(2)])
    assert log == ["wait", "empty", "clear", "capture", "clear"]


def test_memory_of_captures_is_not_free_while_they_live(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks are no tensor's between two replays, and are used by no other."""
    other = torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9999))
    monkeypatch.setattr(device_memory, "_of_allocator", lambda device: (500, 100))
    first, second = GraphOwner(), GraphOwner()
    note_held(first, CUDA, 300)
    note_held(second, CUDA, 20)
    assert (free_memory(CUDA), free_memory(other)) == (1080, 1400)
    del first
    assert free_memory(CUDA) == 1380
    note_held(second, CUDA, 5000)
    assert free_memory(CUDA) == 0
    del second
    assert free_memory(CUDA) == 1400


class GraphOwner:
    """Stands for a captured call."""


# On a GPU -------------------------------------------------------------------------------------------------------------


def product(values: Tensor) -> list[Tensor]:
    return [values @ values.T]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_capture_outlives_the_workspaces_of_its_time() -> None:
    """A graph held the address of cuBLAS's workspace, which others free."""
    values = torch.rand(64, 4096, device="cuda")  # few and long rows, whose products are summed in a workspace
    call = GraphedCall(product, [values])
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    taken = [torch.full((2**20,), torch.nan, device="cuda") for _ in range(64)]
    for _ in range(3):
        torch.testing.assert_close(call([values])[0], product(values)[0])
    assert all(bool(one.isnan().all()) for one in taken)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_failed_capture_leaves_the_device_as_it_was() -> None:
    with pytest.raises(RuntimeError):
        GraphedCall(lambda values: [values * float(values.sum())], [torch.rand(2**22, device="cuda")])
    held = torch.empty(2**26, device="cuda")
    before = torch.cuda.memory_reserved()
    del held
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() < before
    assert torch.rand(3, device="cuda").isfinite().all()
    values = torch.rand(8, device="cuda")
    assert torch.equal(GraphedCall(double, [values])([values])[0], 2 * values)
