"""The machine a run is on: its names, and how fast its memory is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata

import torch

from ..kernels.floors import H200, Ceilings
from .checkout import commit
from .timing import GPUTimer, Timer

DRY_RUN_DEVICE = "cpu-interpreter dry run"
"""Stands where a GPU's name stands, so that a dry run's rows can be taken for nothing else."""


@dataclass(frozen=True)
class Build:
    """What a result belongs to.

    Attributes:
        device: the GPU's name as its driver gives it, or ``DRY_RUN_DEVICE``.
        torch: version.
        triton: version.
        commit: of the checkout, with "+" where it is not committed; not part of the key.
        date: UTC; not part of the key.
    """

    device: str
    torch: str
    triton: str
    commit: str
    date: str


def build(device: torch.device) -> Build:
    """Of this machine and checkout."""
    name = DRY_RUN_DEVICE if device.type == "cpu" else torch.cuda.get_device_name(device)
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return Build(name, torch.__version__, _version("triton"), commit(), now)


def _version(package: str) -> str:
    for name in (package, f"pytorch-{package}", f"pytorch-{package}-rocm"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "none"


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
    """The measured memory, and the multiprocessors and cache that the driver tells; the clock is the H200's."""
    if device.type == "cpu":
        return Ceilings(bandwidth.best, 0, H200.sms, H200.clock)
    properties = torch.cuda.get_device_properties(device)
    cache = getattr(properties, "L2_cache_size", 0)
    return Ceilings(bandwidth.best, cache, properties.multi_processor_count, H200.clock)


def counts_instructions(device: torch.device) -> bool:
    """Whether the pipes that ``floors.LANES`` describes are this GPU's (compute capability 9.0); dry runs take part."""
    if device.type == "cpu":
        return True
    return torch.version.hip is None and torch.cuda.get_device_capability(device) == (9, 0)


def timer_for(device: torch.device) -> Timer:
    """By events on a GPU, by the clock in a dry run."""
    from .timing import CPUTimer

    return CPUTimer() if device.type == "cpu" else GPUTimer(device)
