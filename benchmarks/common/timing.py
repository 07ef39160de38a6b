"""How long a call takes: on a GPU by events, from a cold cache and without the host's share; on a CPU by the clock."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Microseconds.

    Attributes:
        median: of the repetitions.
        lower: first quartile.
        upper: third quartile.
        repetitions: how many.
        host: median time that the host needs to ask for the work; where it exceeds the median, a caller who does
            nothing else waits for the host.
    """

    median: float
    lower: float
    upper: float
    repetitions: int
    host: float


def summarise(times: list[float], host: list[float]) -> Timing:
    """Median and quartiles of microseconds."""
    if len(times) < 2:
        return Timing(times[0], times[0], times[0], 1, host[0])
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(median, lower, upper, len(times), statistics.median(host))


class Timer(Protocol):
    """Times a call."""

    name: str

    def sample(self, call: Call, seconds: float) -> tuple[list[float], list[float]]:
        """Device and host microseconds of repeated calls, as many as fit into ``seconds``, but some."""

    def peak_bytes(self, call: Call) -> int | None:
        """Device memory that a call allocates at its peak, results included; None where that is not counted."""


def compare(
    timer: Timer,
    calls: dict[str, Call],
    seconds: float,
    guarded: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
) -> dict[str, Timing]:
    """Time several calls in two rounds, so that a drift of the machine meets all of them.

    Args:
        timer: of this machine.
        calls: by name.
        seconds: of repetitions, per call.
        guarded: opened around a call's repetitions with its name; where it swallows an error, the call has no timing.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in calls}
    host: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(2):
        for name, call in calls.items():
            with guarded(name):
                device_us, host_us = timer.sample(call, seconds / 2)
                times[name].append(device_us)
                host[name] += host_us
    return {name: summarise([*itertools.chain(*times[name])], host[name]) for name in calls if len(times[name]) == 2}


class GPUTimer:
    """CUDA events (ROCm's under the same names).

    Before each repetition the L2 cache is filled with other data, by reading, so that nothing is left to be written
    back on the call's account. Then the device is kept busy until the host has surely asked for all the call's work:
    the events then bracket the device's work alone. A call that waits for the device itself shows its waiting.
    """

    name = "cuda events"

    def __init__(self, device: torch.device, at_least: int = 10, at_most: int = 100) -> None:
        self._device, self._at_least, self._at_most = device, at_least, at_most
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20
        self._other = torch.rand(max(4 * cache, 256 << 20) // 4, device=device)

    def sample(self, call: Call, seconds: float) -> tuple[list[float], list[float]]:
        """See ``Timer``."""
        asked, spent = [], []
        for _ in range(3):
            torch.cuda.synchronize(self._device)
            start = time.perf_counter()
            call()
            asked.append(time.perf_counter() - start)
            torch.cuda.synchronize(self._device)
            spent.append(time.perf_counter() - start)
        # At 2 GHz or less this is at least three times what the host took; never more than 20 ms.
        cycles = int(2e9 * min(0.02, 3 * min(asked) + 1e-4))
        each = min(spent) + cycles / 1.5e9 + 2e-4
        repetitions = max(self._at_least, min(self._at_most, int(seconds / each))) // 2 + 1
        events, host = [], []
        for _ in range(repetitions):
            start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._other.sum()
            torch.cuda._sleep(cycles)
            start_event.record()
            start = time.perf_counter()
            call()
            host.append(1e6 * (time.perf_counter() - start))
            end_event.record()
            events.append((start_event, end_event))
            torch.cuda.synchronize(self._device)
        return [1e3 * first.elapsed_time(last) for first, last in events], host

    def peak_bytes(self, call: Call) -> int | None:
        """See ``Timer``."""
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        call()
        torch.cuda.synchronize(self._device)
        return int(torch.cuda.max_memory_allocated(self._device) - before)


class CPUTimer:
    """The process's clock, for dry runs."""

    name = "perf_counter"

    def __init__(self, repetitions: int = 1) -> None:
        self._repetitions = repetitions

    def sample(self, call: Call, seconds: float) -> tuple[list[float], list[float]]:
        """See ``Timer``."""
        times = []
        for _ in range(self._repetitions):
            start = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - start))
        return times, times

    def peak_bytes(self, call: Call) -> int | None:
        """See ``Timer``."""
        return None
