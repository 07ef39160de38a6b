"""The least time a call can take: bytes and instructions over a machine's ceilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Threads' instructions per clock and SM, compute capability 9.0. Integer multiply-adds run on one half of Hopper's FMA
# pipe (FMAheavy) and the other integer instructions on the ALU pipe (NVIDIA developer forum, topics 302018 and 108729),
# so the two kinds overlap; 64 lanes each. Whether the wide multiply-add (IMAD.WIDE) runs at that rate is not
# documented: at half, "imad" doubles. "issue": 4 schedulers, one instruction for 32 threads each; "mufu": 16 results
# per clock (CUDA C++ programming guide, arithmetic throughput).
LANES = {"issue": 128, "alu": 64, "imad": 64, "fp64": 64, "mufu": 16}


@dataclass(frozen=True)
class Ceilings:
    """What a machine can do.

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
class LaunchWork:
    """What one launch must do.

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
        """Microseconds that each pipe and the memory need; the longest is the launch's floor."""
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
    """The floor of a call that must move ``least_bytes`` and makes the launches ``work``, one after the other.

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
