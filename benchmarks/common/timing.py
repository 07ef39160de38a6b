"""Time calls: kernels by GPU events, from a cold cache and without the host's time; other calls by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

Call = Callable[[], Any]
Name = TypeVar("Name")
Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Compute them from at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.lower:.3g}, {self.upper:.3g}]"

    def percent(self) -> str:
        """Write shares as percentages."""
        return f"{self.median:.0%} [{self.lower:.0%}, {self.upper:.0%}]"


def wait(device: torch.device) -> None:
    """Wait until a GPU is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(call: Call, device: torch.device) -> float:
    """Time one call, from an idle device to an idle device."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def peak_bytes(call: Call, device: torch.device) -> int | None:
    """Measure what a call adds to the GPU's memory at its peak, results included; None on a CPU, which counts nothing.

    On a CPU nothing is called.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def in_turns(
    calls: Mapping[Name, Call],
    sample: Callable[[Call], Sample],
    rounds: int,
    guarded: Callable[[Name], AbstractContextManager[object]] = lambda name: nullcontext(),
    go_on: Callable[[int], bool] = lambda number: True,
) -> dict[Name, list[Sample]]:
    """Sample every call once a round, every other round in reverse order, so that drift affects all calls equally.

    Args:
        calls: by name.
        sample: what is done with a call, ``seconds_of`` for instance.
        rounds: how many.
        guarded: opened around a sample with the call's name; a call whose error it swallows is not sampled again.
        go_on: asked before every round, by its number, whether there is time for it.

    Returns:
        Every call's samples, one per round; fewer of one that failed, or where the rounds were ended.
    """
    found: dict[Name, list[Sample]] = {name: [] for name in calls}
    for number in range(rounds):
        if not go_on(number):
            break
        for name in calls if number % 2 == 0 else reversed(list(calls)):
            if len(found[name]) == number:
                with guarded(name):
                    found[name].append(sample(calls[name]))
    return found


# Kernels --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Microseconds.

    Attributes:
        device: of the repetitions.
        repetitions: how many.
        host: median time that the host needs to ask for the work; where it exceeds the median, a caller who does
            nothing else waits for the host.
    """

    device: Spread
    repetitions: int
    host: float


class Timer(Protocol):
    """A way of timing a kernel's call."""

    name: str

    def sample(self, call: Call, seconds: float) -> tuple[list[float], list[float]]:
        """Return device and host microseconds of repeated calls, as many as fit into ``seconds``, but some."""


def compare(
    timer: Timer,
    calls: Mapping[str, Call],
    seconds: float,
    guarded: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext(),
) -> dict[str, Timing]:
    """Time several calls in two rounds, ``seconds`` of repetitions each; one that fails in either has no timing."""
    samples = in_turns(calls, lambda call: timer.sample(call, seconds / 2), 2, guarded)
    found = {}
    for name, parts in samples.items():
        if len(parts) == 2:
            device, host = ([*first, *second] for first, second in zip(*parts, strict=True))
            found[name] = Timing(Spread.of(device), len(device), statistics.median(host))
    return found


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


class CPUTimer:
    """The process's clock, one call a sample: for dry runs."""

    name = "perf_counter"

    def sample(self, call: Call, seconds: float) -> tuple[list[float], list[float]]:
        """See ``Timer``."""
        times = [1e6 * seconds_of(call, torch.device("cpu"))]
        return times, times


def timer_for(device: torch.device) -> Timer:
    """Choose events on a GPU, the clock in a dry run."""
    return CPUTimer() if device.type == "cpu" else GPUTimer(device)
