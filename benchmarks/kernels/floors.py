"""Find the least time a call can take: bytes and instructions over a machine's ceilings, measured or as published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..common.timing import Timer

# Threads' instructions per clock and SM, compute capability 9.0. Integer multiply-adds run on one half of Hopper's FMA
# pipe (FMAheavy) and the other integer instructions on the ALU pipe (NVIDIA developer forum, topics 302018 and 108729),
# so the two kinds overlap; 64 lanes each. Whether the wide multiply-add (IMAD.WIDE) runs at that rate is not
# documented: at half, "imad" doubles. "issue": 4 schedulers, one instruction for 32 threads each; "mufu": 16 results
# per clock (CUDA C++ programming guide, arithmetic throughput).
LANES = {"issue": 128, "alu": 64, "imad": 64, "fp64": 64, "mufu": 16}


@dataclass(frozen=True)
class Ceilings:
    """The limits of a machine.

    Attributes:
        memory: bytes per second between the processor and device memory.
        l2_bytes: what a launch may find in the cache because the launch before it has read it.
        sms: multiprocessors.
        clock: Hz.
    """

    memory: float
    l2_bytes: float
    sms: int
    clock: float


# NVIDIA H200 (SXM) data sheet: 4.8 TB/s, 67 TFLOP/s in float32. H100 white paper: 132 SMs, 128 FP32 lanes, 50 MB of L2.
H200 = Ceilings(memory=4.8e12, l2_bytes=50e6, sms=132, clock=67e12 / (2 * 128 * 132))


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second, measured.

    Attributes:
        copy: of a large buffer, bytes read and written counted.
        write: of a large buffer, filled.
    """

    copy: float
    write: float

    @property
    def best(self) -> float:
        """The memory's ceiling: the larger of the two."""
        return max(self.copy, self.write)


def measure_bandwidth(timer: Timer, device: torch.device) -> Bandwidth:
    """Copy and fill buffers far larger than the cache (4 GiB on a GPU; 8 MiB in a dry run)."""
    count = (1 << 30) if device.type != "cpu" else (1 << 21)
    source, goal = torch.rand(count, device=device), torch.empty(count, device=device)
    copied, _ = timer.sample(lambda: goal.copy_(source), 0.5)
    written, _ = timer.sample(lambda: goal.fill_(0.3), 0.5)
    size = 4 * count
    return Bandwidth(
        2 * size / (1e-6 * sorted(copied)[len(copied) // 2]), size / (1e-6 * sorted(written)[len(written) // 2])
    )


def ceilings(bandwidth: Bandwidth, device: torch.device) -> Ceilings:
    """Combine the measured memory with the multiprocessors and cache that the driver tells; the clock is the H200's."""
    if device.type == "cpu":
        return Ceilings(bandwidth.best, 0, H200.sms, H200.clock)
    properties = torch.cuda.get_device_properties(device)
    cache = getattr(properties, "L2_cache_size", 0)
    return Ceilings(bandwidth.best, cache, properties.multi_processor_count, H200.clock)


def counts_instructions(device: torch.device) -> bool:
    """Tell whether the pipes of ``LANES`` are this GPU's (compute capability 9.0); dry runs take part."""
    if device.type == "cpu":
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability(device) == (9, 0)


@dataclass(frozen=True)
class LaunchWork:
    """The least work of one launch.

    Attributes:
        kernel: its name.
        elements: coefficients or pixels of the result.
        bytes: read and written at least.
        reread: those of them that an earlier launch of the same call has read: free where they fit into the cache.
        executed: threads' instructions per pipe (the keys of ``LANES``) and of the kind "integer".
    """

    kernel: str
    elements: int
    bytes: int
    reread: int
    executed: Mapping[str, float]

    def times(self, ceilings: Ceilings) -> dict[str, float]:
        """Compute the microseconds that each pipe and the memory need; the longest is the launch's floor."""
        moved = self.bytes - (self.reread if self.reread <= ceilings.l2_bytes else 0)
        times = {"memory": moved / ceilings.memory * 1e6}
        for pipe, lanes in LANES.items():
            times[pipe] = self.executed.get(pipe, 0.0) / (lanes * ceilings.sms * ceilings.clock) * 1e6
        return times


@dataclass(frozen=True)
class Floor:
    """The least time of a call, and what sets it: "memory" or the name of a pipe."""

    us: float
    by: str


def floor(least_bytes: int, work: Sequence[LaunchWork], ceilings: Ceilings) -> Floor:
    """Find the floor of a call that must move ``least_bytes`` and makes the launches ``work`` one after the other.

    Without ``work`` (another GPU than the one whose machine code was counted) only the bytes count. Bytes that no
    launch accounts for (a library's transform) come on top at the speed of the memory.
    """
    longest: list[Floor] = []
    for launch in work:
        by, us = max(launch.times(ceilings).items(), key=lambda item: item[1])
        longest.append(Floor(us, by))
    accounted = sum(launch.bytes for launch in work)
    longest.append(Floor(max(0, least_bytes - accounted) / ceilings.memory * 1e6, "memory"))
    return Floor(sum(part.us for part in longest), max(longest, key=lambda part: part.us).by)
