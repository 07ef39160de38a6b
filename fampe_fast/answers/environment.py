"""Describe what a map's last bits depend on besides its inputs: the software's versions, the device, its processor."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .._version import __version__

_PACKAGES = ("torch", "torchvision", "timm", "triton", "numpy", "pillow", "captum", "grad-cam")
_ON_A_GPU = "on a GPU the order of sums may change from run to run"


def versions_now() -> dict[str, str]:
    """Read the versions of this package, of Python and of the installed packages that maps depend on."""
    found = {"fampe_fast": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def processor_of(device: torch.device) -> str:
    """Read the product name of a device: of the GPU, or of the machine's CPU.

    Two kinds of processors run the same operator by different code, and add up in another order.
    """
    if device.type in ("cuda", "xpu"):
        return str(getattr(torch, device.type).get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def reasons_for_other_bits(then: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """List why a map may have other last bits when it is computed again: "torch 2.13 then, 2.14 now".

    Torch promises equal bits on a CPU; on a GPU its convolutions, among others, may change them from run to run
    (``torch.use_deterministic_algorithms``).

    Args:
        then: "device" and "backend" of the map, "processor" if it is known, and the versions by name.
        now: the same here.
    """
    names = [name for name in dict.fromkeys((*then, *now)) if name != "processor" or then.get(name) is not None]
    changed = [
        f"{name} {then.get(name)} then, {now.get(name)} now" for name in names if then.get(name) != now.get(name)
    ]
    return changed if now["device"] == "cpu" else [*changed, _ON_A_GPU]
