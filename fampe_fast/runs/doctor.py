"""Report what is installed, what the machine has, and which backend would run and why."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import dataclass

import torch

from .._version import __version__
from ..errors import BackendUnavailableError
from ..ops.backends import VARIABLE, choice

_REQUIRED = ("torch", "torchvision", "timm", "numpy", "triton", "pillow", "safetensors", "matplotlib", "rich")
_OPTIONAL = ("captum", "grad-cam")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what it is about.
        text: what was found.
        healthy: False where something that is needed does not work.
    """

    topic: str
    text: str
    healthy: bool = True


def examine() -> list[Finding]:
    """Look the installation over, ending with an attribution of one generated image."""
    findings = [
        Finding("fampe_fast", __version__),
        Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    findings += [_package(name, required=True) for name in _REQUIRED]
    findings += [_package(name, required=False) for name in _OPTIONAL]
    findings.append(Finding("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"))
    devices = ["cpu"]
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        for index in range(count):
            properties = torch.cuda.get_device_properties(index)
            memory = properties.total_memory / 2**30
            findings.append(
                Finding(f"GPU {index}", f"{properties.name}, {memory:.0f} GiB, {properties.major}.{properties.minor}")
            )
        devices += ["cuda"] if count == 1 else [f"cuda:{index}" for index in range(count)]
    elif hasattr(torch, "xpu") and torch.xpu.is_available():
        findings.append(Finding("GPU", torch.xpu.get_device_name(0)))
        devices.append("xpu")
    else:
        findings.append(Finding("GPU", "none that torch can use; everything runs on the CPU"))
    findings.append(Finding(VARIABLE, os.environ.get(VARIABLE, "not set (auto)")))
    for device in devices:
        try:
            name, reason = choice(device)
            findings.append(Finding(f"backend, {device}", f"{name} ({reason})"))
        except BackendUnavailableError as error:
            findings.append(Finding(f"backend, {device}", str(error), healthy=False))
    findings.append(_self_test())
    return findings


def _package(name: str, *, required: bool) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        if required and not (name == "triton" and platform.system() != "Linux"):
            return Finding(name, "not installed; it is required", healthy=False)
        return Finding(name, "not installed (optional)")


def _self_test() -> Finding:
    from ..images.generated import generate
    from ..methods.fampe import FAMPE
    from ..models.embedded import load_embedded_classifier

    try:
        classifier = load_embedded_classifier()
        maps = FAMPE(classifier, steps=1, samples=2).attribute(generate(1).images)
    except Exception as error:
        return Finding("self-test", f"{type(error).__name__}: {error}", healthy=False)
    healthy = bool(maps.isfinite().all()) and float(maps.abs().sum()) > 0
    return Finding("self-test", "one image explained" if healthy else "the map is empty or not finite", healthy)
