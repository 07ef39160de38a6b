"""Capture one call in a CUDA graph, and replay it with other arguments."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .device_memory import note_held, reserved_memory

Pass = Callable[..., list[Tensor]]

_WARM_UPS = 2
# Of the largest value. What a replay reads or writes in the wrong place differs by far more.
_TOLERANCE = 1e-2

# Torch permits one capture at a time in a process.
_CAPTURING = threading.Lock()


class CaptureBusyError(RuntimeError):
    """Another thread is capturing; this one may try again later."""


def can_capture(device: torch.device) -> bool:
    """Tell whether a device has CUDA graphs."""
    return device.type == "cuda"


class GraphedCall:
    """A call that was captured with tensors of its own, which every later call's arguments are copied to.

    Threads may share it: one call ends, on the device too, before the next one's copies begin.
    """

    def __init__(self, function: Pass, arguments: Sequence[Tensor]) -> None:
        """Call the function to warm up, capture it, and compare a replay with a plain call.

        Args:
            function: asks for work on the current stream, waits for none of it, and returns new tensors.
            arguments: on one CUDA device; calls must have the same shapes, types and strides.

        Raises:
            CaptureBusyError: another thread is capturing; a thread that waited might hold what that one needs.
            RuntimeError: the function waits for the device, or does what cannot be captured; or a replay gives other
                results than the function.
        """
        self._device = arguments[0].device
        self._lock = threading.Lock()
        if not _CAPTURING.acquire(blocking=False):
            raise CaptureBusyError("another thread is capturing")
        try:
            with torch.cuda.device(self._device):
                self._caller: Any = torch.cuda.current_stream()
                self._arguments = [torch.empty_like(argument).copy_(argument) for argument in arguments]
                self._capture(function)
        finally:
            _CAPTURING.release()
        # Other values than those that were captured show what a replay does not read anew.
        others = [one.roll(1, 0) if one.ndim else one for one in arguments]
        check_replay(self(others), function(*others))

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """Replay the call; the results are the caller's own."""
        with self._lock, torch.cuda.device(self._device):
            stream: Any = torch.cuda.current_stream()
            stream.wait_event(self._done)
            for own, argument in zip(self._arguments, arguments, strict=True):
                own.copy_(argument)
                if stream != self._caller:  # else freed memory could be given away while this replay reads it
                    own.record_stream(stream)
            self._graph.replay()
            found = [result.clone() for result in self._results]
            self._done.record(stream)
            return found

    def _capture(self, function: Pass) -> None:
        cuda: Any = torch.cuda  # whose streams and events have no types
        stream = _capture_stream(self._device)
        stream.wait_stream(self._caller)
        with cuda.stream(stream):
            for _ in range(_WARM_UPS):  # libraries are loaded, and their algorithms chosen
                function(*self._arguments)
            stream.synchronize()
            cuda.empty_cache()  # a capture cannot do it when it needs memory
            before = reserved_memory(self._device)
            with _own_cublas_workspaces():
                self._graph, self._results = _captured(function, self._arguments, self._device)
            note_held(self, self._device, max(0, reserved_memory(self._device) - before))
            self._done = cuda.Event()
            self._done.record(stream)


def check_replay(replayed: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
    """Compare a replay's results with the plain call's, whose last bits may differ where a model adds up in any order.

    Raises:
        RuntimeError: they are not the same.
    """
    for one, other in zip(replayed, plain, strict=True):
        finite = other.isfinite()
        scale = float(torch.where(finite, other, 0).abs().max())
        same = torch.where(finite, (one - other).abs() <= _TOLERANCE * scale, _alike(one, other))
        if not bool(same.all()):
            raise RuntimeError("its replay gives other results")


def _alike(one: Tensor, other: Tensor) -> Tensor:
    """Tell where two values that are not finite are the same."""
    return (one == other) | (one.isnan() & other.isnan())


@cache
def _capture_stream(device: torch.device) -> Any:
    """Make one stream for all captures on a device: torch has 32, and gives each of them to several."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _own_cublas_workspaces() -> Iterator[None]:
    """Have cuBLAS take its workspace from the pool of the capture inside.

    Torch keeps one per stream, whose address a graph would hold, and frees them all whenever ``torch.compile`` captures
    (``torch._inductor.cudagraph_trees`` does the same here).
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def _captured(function: Pass, arguments: Sequence[Tensor], device: torch.device) -> tuple[Any, list[Tensor]]:
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    # Other threads may go on using the device as they like.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    try:
        try:
            results = function(*arguments)
        finally:
            graph.capture_end()
    except BaseException:
        _clean_up(graph, pool, device)
        raise
    return graph, results


def _clean_up(graph: torch.cuda.CUDAGraph, pool: Any, device: torch.device) -> None:
    """Leave torch as it was before a capture that failed."""
    graph.reset()
    # Up to torch 2.11 the allocator still believes in the capture: it would free no cached memory again.
    of_allocator: Any = torch._C
    name = "_cuda_endAllocateToPool"  # another one in torch 2.7
    name = name if hasattr(of_allocator, name) else "_cuda_endAllocateCurrentStreamToPool"
    with contextlib.suppress(RuntimeError):  # newer versions have ended it in ``reset``
        getattr(of_allocator, name)(device.index, pool)
        of_allocator._cuda_releasePool(device.index, pool)
    # The random generator stays in a failed capture, and its next number raises, until another one succeeds.
    last = torch.cuda.CUDAGraph()
    last.capture_begin(capture_error_mode="thread_local")
    torch.zeros(1, device=device)
    last.capture_end()
