"""Report the installed versions, the machine's devices, and the backend of each device with the reason for it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .._version import __version__
from ..errors import BackendUnavailableError, first_line
from ..files import check_folder
from ..ops.backends import NO_TRITON, VARIABLE, choice

_REQUIRED = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "matplotlib", "rich")
_OPTIONAL = ("captum", "grad-cam")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: subject of the line.
        text: the finding.
        healthy: False if something necessary does not work.
    """

    topic: str
    text: str
    healthy: bool = True


def examine() -> list[Finding]:
    """Examine the installation, and explain one generated image as a self-test."""
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
    findings += _compilers(gpu=len(devices) > 1 and platform.system() == "Linux")
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
        if required:
            return Finding(name, "not installed; it is required", healthy=False)
        return Finding(name, "not installed (optional)")


def _compilers(*, gpu: bool) -> list[Finding]:
    """Examine the compilers; a CPU needs neither Triton nor its C compiler."""
    found = [_triton(gpu), _c_compiler(gpu)]
    if importlib.util.find_spec("triton") is not None:
        found.append(_cache_folder("TRITON_CACHE_DIR", _triton_folder, needed=gpu))
    return [*found, _cache_folder("TORCHINDUCTOR_CACHE_DIR", _inductor_folder, needed=True)]


def _triton(gpu: bool) -> Finding:
    """Compare Triton's version with the one that torch was built for."""
    if importlib.util.find_spec("triton") is None:
        return Finding("triton", NO_TRITON if gpu else "not installed (a CPU needs none)", not gpu)
    try:
        own: str = importlib.import_module("triton").__version__
    except Exception as error:
        return Finding("triton", f"cannot be imported: {first_line(error)}", not gpu)
    # As in "triton~=3.8.0; ..." and "pytorch-triton-rocm==3.3.0".
    asked = [re.match(r"[a-z-]*triton[a-z-]*\s*[~=]=\s*(\d+\.\d+)", line) for line in _requirements("torch")]
    fitting = [match[1] for match in asked if match]
    if fitting and fitting[0].split(".") != own.split(".")[:2]:
        return Finding(
            "triton", f"{own}, but this torch was built for {fitting[0]}: install triton=={fitting[0]}.*", not gpu
        )
    return Finding("triton", own)


def _requirements(package: str) -> list[str]:
    try:
        return importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:  # built from source
        return []


def _c_compiler(gpu: bool) -> Finding:
    """Look for the C compiler where Triton does, which needs one to compile its launcher."""
    names = [os.environ["CC"].split()[0]] if os.environ.get("CC") else ["gcc", "clang"]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        return Finding(
            "C compiler", f"no {' or '.join(names)} found: Triton needs one to launch kernels; set CC", not gpu
        )
    return Finding("C compiler", found)


def _cache_folder(variable: str, default: Callable[[], Path], *, needed: bool) -> Finding:
    """Check that a compiler's cache folder can be written."""
    given = os.environ.get(variable)  # torch sets this variable when its default is read
    try:
        folder = Path(given) if given else default()
        check_folder(folder)
    except Exception as error:  # torch's default needs a user name and a temporary folder
        return Finding(variable, f"{first_line(error)}; set {variable} to a writable folder", not needed)
    return Finding(variable, given or f"not set ({folder})")


def _triton_folder() -> Path:
    return Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"


def _inductor_folder() -> Path:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return Path(default_cache_dir())


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
