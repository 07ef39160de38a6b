"""Describe the machine of a run: device, versions, and whether other work disturbed the run."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fampe_fast.answers.environment import processor_of

from .. import ROOT

DRY_RUN_DEVICE = "CPU, dry run"
"""Used in place of a device's name, so that a dry run's rows cannot be mistaken for measurements."""


@dataclass(frozen=True)
class Build:
    """A device, versions and a commit: a result belongs to them.

    Attributes:
        device: the GPU's name as its driver gives it, the processor's, or ``DRY_RUN_DEVICE``.
        torch: version.
        triton: version, or "none".
        commit: of the checkout, with "+" where files have changed since; not part of the key.
        date: UTC; not part of the key.
        captum: version, or "none"; not part of the key.
    """

    device: str
    torch: str
    triton: str
    commit: str
    date: str
    captum: str = "none"

    @property
    def key(self) -> tuple[str, str, str]:
        """Identity of a result: a newer result with the same key replaces it."""
        return self.device, self.torch, self.triton


def build_of(device: torch.device, *, dry_run: bool = False) -> Build:
    """Describe this machine's device and this checkout."""
    name = processor_of(device)
    triton = _version("triton", "pytorch-triton", "pytorch-triton-rocm")
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return Build(DRY_RUN_DEVICE if dry_run else name, torch.__version__, triton, _commit(), today, _version("captum"))


@dataclass(frozen=True)
class Machine:
    """The machine of a run.

    Attributes:
        build: device and versions.
        cores: of the machine.
        threads: torch's.
        load: the system's load average at the start and at the end, where there is one.
        stolen: share of the processors' time in between that went to other machines on the same host, where the
            system knows it.
        tests: "passed" or what failed, where tests ran.
        checked: the primitives whose kernels have passed their own checks.
        unverified: the primitives that failing checks and tests are about.
        copy_bytes_per_s: of device memory, where it was measured.
        write_bytes_per_s: likewise.
    """

    build: Build
    cores: int = 0
    threads: int = 0
    load: tuple[float, ...] = ()
    stolen: float = 0.0
    tests: str = ""
    checked: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    copy_bytes_per_s: float | None = None
    write_bytes_per_s: float | None = None

    @property
    def dry_run(self) -> bool:
        """Whether this was a dry run, whose figures mean nothing."""
        return self.build.device == DRY_RUN_DEVICE

    def verifies(self, *primitives: str) -> bool:
        """Tell whether kernels have passed their own checks or the tests, and nothing failed that is about them."""
        return all((name in self.checked or self.tests) and name not in self.unverified for name in primitives)

    @property
    def disturbed(self) -> str:
        """The reason why the figures are not measurements, or an empty string."""
        found = []
        if self.load and self.load[0] > 0.25 * self.cores:
            found.append(f"other programs were running at the start: load average {self.load[0]:.1f}")
        if self.stolen > 0.1:
            found.append(f"{self.stolen:.0%} of the processors' time went to other machines on the host")
        return "; ".join(found)

    @property
    def warning(self) -> str:
        """A warning for figures that are not measurements, or an empty string."""
        if self.dry_run:
            return "Dry run at toy sizes: the figures mean nothing."
        return f"Not a valid measurement: {self.disturbed}." if self.disturbed else ""

    def __str__(self) -> str:
        build = self.build
        versions = f"torch {build.torch}, triton {build.triton}, Captum {build.captum}"
        return f"{build.device}, {self.threads} threads, {versions}, commit {build.commit}, {build.date}"


class LoadMonitor:
    """Monitors the machine's other work from its construction on."""

    def __init__(self) -> None:
        self._load = _load_average()
        self._before = _processor_time()

    def machine(self, build: Build, **rest: Any) -> Machine:
        """Describe this machine with its load so far; ``rest`` sets other fields of ``Machine``."""
        load = (*self._load, *_load_average())
        return Machine(build, os.cpu_count() or 1, torch.get_num_threads(), load, self.stolen(), **rest)

    def stolen(self) -> float:
        """Return the share of processor time since construction that went to other machines on the host."""
        stolen, total = (now - before for now, before in zip(_processor_time(), self._before, strict=True))
        return stolen / total if total else 0.0


def _load_average() -> tuple[float, ...]:
    """Read the load average of the last minute, or nothing if the system has none."""
    return (os.getloadavg()[0],) if hasattr(os, "getloadavg") else ()


def _processor_time() -> tuple[int, int]:
    """Read the ticks stolen from this machine, and all but the idle ones; zeros where the system does not tell."""
    try:
        ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return 0, 0
    user, nice, system, _, _, *interrupts, stolen = ticks  # idle, and waiting for input
    return stolen, user + nice + system + sum(interrupts) + stolen


def _version(*names: str) -> str:
    """Find the version of the first of these packages that is installed, or "none"."""
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "none"


def _commit() -> str:
    """Find the commit's short name, with ``+`` where files have changed since; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
