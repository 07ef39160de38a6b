"""Measure how long a GPU works at a call, and how long the host takes to ask for that work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

# Cycles of a GPU per second at most, to keep it busy for a time at least.
_CLOCK = 2e9
# In seconds: no longer than this is it kept busy before a call that is timed.
_LONGEST_WAIT = 0.1


class CallTime(NamedTuple):
    """Seconds of one call."""

    host: float
    """Until the host has asked for all the work."""
    device: float
    """That the device works."""


def time_call(call: Callable[[], object], device: torch.device) -> CallTime:
    """Time a call on a CUDA device by three repetitions; it waits for the current stream.

    The device is kept busy while the host asks for the timed work, so that no gap between two launches counts as work.

    Args:
        call: asks for work on the current stream.
        device: where it runs.
    """
    cuda: Any = torch.cuda  # whose streams and events have no types
    with cuda.device(device):
        stream = cuda.current_stream()  # to wait for the whole device would end another thread's capture
        call()  # libraries are loaded, and their algorithms chosen, at the first call
        stream.synchronize()
        start = time.perf_counter()
        call()
        host = time.perf_counter() - start
        stream.synchronize()
        first, last = (cuda.Event(enable_timing=True) for _ in range(2))
        cuda._sleep(int(_CLOCK * min(_LONGEST_WAIT, 3 * host + 1e-4)))
        first.record()
        call()
        last.record()
        stream.synchronize()
        return CallTime(host, float(first.elapsed_time(last)) / 1e3)
