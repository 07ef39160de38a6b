"""Choose the implementation of each primitive on each device: one table, one environment variable.

``FAMPE_FAST_BACKEND`` is ``auto`` (Triton on a GPU, the compiled reference on a CPU with a C++ compiler, else the plain
reference) or a backend's name; a name that cannot run on the tensors' device raises.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points, version
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..errors import BackendUnavailableError

VARIABLE = "FAMPE_FAST_BACKEND"
NO_TRITON = "the package triton is not installed: pip install triton (torch for GPUs brings the one that fits it)"
# The group of entry points for other packages' backends.
PLUGINS = "fampe_fast.backends"
OPS: dict[str, str] = {}
"""Each primitive and the file that contains it, in ``reference`` and in ``kernels``; ``primitives`` fills it."""
FLOAT64: set[str] = set()
"""Primitives that compute in float64, in the reference and in the kernels; ``primitives`` fills it. Masks in the shape
of a disc do, too."""

Implementation = Callable[..., Any]


@dataclass(frozen=True)
class Backend:
    """A named set of implementations.

    Attributes:
        load: returns the implementation of an op, or None if the backend has none (the reference is then used).
        obstacle: returns the reason why the backend cannot run on a device, or None.
        automatic: device types for which ``auto`` chooses it.
    """

    name: str
    load: Callable[[str], Implementation | None]
    obstacle: Callable[[torch.device], str | None]
    automatic: Callable[[str], bool]


def lacks_float64(device: torch.device) -> bool:
    """Tell whether a device has no float64, as Intel's Arc and Apple's GPUs have none."""
    if device.type == "xpu":
        return not torch.xpu.get_device_properties(device).has_fp64
    return device.type == "mps"


def _without_float64(op: str, own: Implementation) -> Implementation:
    """Let the reference compute on the CPU what needs float64, and the device all else."""
    reference = _BACKENDS["reference"].load(op)
    assert reference is not None, f"the reference lacks {op}"

    def run(first: Tensor, *rest: Any) -> Any:
        if op not in FLOAT64 and not any(isinstance(value, str) and value == "disc" for value in rest):
            return own(first, *rest)
        moved = tree_map_only(Tensor, Tensor.cpu, (first, *rest))
        return tree_map_only(Tensor, lambda tensor: tensor.to(first.device), reference(*moved))

    return run


def _from_package(package: str) -> Callable[[str], Implementation | None]:
    def load(op: str) -> Implementation | None:
        module = f"fampe_fast.{package}.{OPS[op]}"
        if importlib.util.find_spec(module) is None:
            return None
        found: Implementation = getattr(importlib.import_module(module), op)
        return found

    return load


def _load_compiled(op: str) -> Implementation | None:
    from . import compiled

    return compiled.IMPLEMENTATIONS.get(op)


def _compiler_obstacle(device: torch.device | str) -> str | None:
    kind = torch.device(device).type
    if kind != "cpu":
        return f"the compiled reference takes CPU tensors, got {kind} tensors"
    if sys.platform == "win32":
        return "torch.compile for the CPU is not set up on Windows"
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler.split()[0]) is None and shutil.which("clang++") is None:
        return f"no C++ compiler found (looked for {compiler!r} and 'clang++'); install one or set CXX"
    return None


def _interpreter_obstacle() -> str | None:
    """Return why the interpreter cannot run: Triton 3.2 sums integers wrongly, and numpy 2.4 breaks it up to 3.6."""
    triton, numpy = (tuple(map(int, version(name).split(".")[:2])) for name in ("triton", "numpy"))
    if triton >= (3, 7) or (triton >= (3, 3) and numpy < (2, 4)):
        return None
    return (
        f"the interpreter of triton {version('triton')} does not work with numpy {version('numpy')}: install triton "
        "3.7 or newer, or triton 3.3 to 3.6 with 'numpy<2.4'"
    )


def triton_obstacle(device: torch.device | str) -> str | None:
    """Return the reason why the Triton kernels cannot run on a device, or None; one of several GPUs may be too old."""
    device = torch.device(device)
    if importlib.util.find_spec("triton") is None:
        return NO_TRITON
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return (
            "Triton kernels need a GPU, but the tensors are on the CPU (TRITON_INTERPRET=1 runs them slowly, for tests)"
        )
    if device.type == "cpu":
        return _interpreter_obstacle()
    if device.type == "cuda" and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            return f"Triton kernels need compute capability 8.0 or newer, this GPU has {major}.{minor}"
    if device.type not in ("cpu", "cuda", "xpu"):
        return f"there are no Triton kernels for {device.type} tensors"
    return None


_BACKENDS: dict[str, Backend] = {
    "triton": Backend("triton", _from_package("kernels"), triton_obstacle, lambda kind: kind in ("cuda", "xpu")),
    "compiled": Backend("compiled", _load_compiled, _compiler_obstacle, lambda kind: kind == "cpu"),
    "reference": Backend("reference", _from_package("reference"), lambda device: None, lambda kind: True),
}


def register_backend(
    name: str, ops: Mapping[str, Implementation], device_types: tuple[str, ...] = ("cpu", "cuda")
) -> None:
    """Register another implementation of the primitives, to be chosen with ``FAMPE_FAST_BACKEND=name``.

    Args:
        name: a name other than those of the package's own backends.
        ops: functions by primitive's name, with the signatures of ``fampe_fast.ops``; others use the reference.
        device_types: the supported kinds of tensors, as in ``torch.device.type`` ("cpu", "cuda", "xpu", ...).

    A package can provide an entry point ``name`` in the group ``fampe_fast.backends``, a function without arguments
    that registers the backend; the variable then finds it in any process, including the command line's.

    The functions are called with positional arguments, on views of any strides. They must change only
    ``accumulate``'s total, return new tensors in the layouts that ``ops.primitives`` defines (contiguous; channels-last
    frames from ``diversify`` if asked for), and be capturable for ``compile="graphs"``. ``band_mix`` and ``dct_mix``
    are also used for their own gradients. ``fampe_fast.testing`` tests the results.

    Raises:
        ValueError: the name is one of the package's own, or an op is unknown.
    """
    if name in ("auto", "triton", "compiled", "reference"):
        raise ValueError(f"the backend name {name!r} is the package's own; choose another")
    unknown = sorted(set(ops) - set(OPS))
    if unknown:
        raise ValueError(f"unknown primitives {unknown}; known are {list(OPS)}")
    taken = dict(ops)
    if "band_mix" in taken:
        from .samples import samples_of

        taken.setdefault("band_samples", samples_of(taken["band_mix"]))

    def obstacle(device: torch.device) -> str | None:
        if device.type in device_types:
            return None
        return f"backend {name!r} takes {device_types} tensors, got {device.type} tensors"

    _BACKENDS[name] = Backend(name, taken.get, obstacle, lambda kind: False)
    _resolve.cache_clear()
    _choice.cache_clear()


def choice(device: torch.device | str) -> tuple[str, str]:
    """Return the backend that would run on a device, and the reason.

    Raises:
        BackendUnavailableError: ``FAMPE_FAST_BACKEND`` names a backend that is unknown or cannot run there.
    """
    return _choice(os.environ.get(VARIABLE, "auto"), _one_device(device), os.environ.get("TRITON_INTERPRET"))


def implementation(op: str, device: torch.device) -> Implementation:
    """Return the function that computes ``op`` on ``device``."""
    return _resolve(op, os.environ.get(VARIABLE, "auto"), _one_device(device), os.environ.get("TRITON_INTERPRET"))


def _one_device(device: torch.device | str) -> torch.device:
    """Resolve a device: "cuda" is the current GPU, which may change, also to another kind."""
    device = torch.device(device)
    if device.type not in ("cuda", "xpu") or device.index is not None:
        return device
    try:
        return torch.device(device.type, getattr(torch, device.type).current_device())
    except (RuntimeError, AssertionError):  # there is no GPU: anything that needs one raises
        return device


def _load_plugin(name: str) -> None:
    for found in entry_points(group=PLUGINS, name=name):
        try:
            found.load()()
        except Exception as error:
            raise BackendUnavailableError(f"{VARIABLE}={name!r}: {found.value} failed: {error!r}") from error


@cache
def _choice(wanted: str, device: torch.device, interpret: str | None) -> tuple[str, str]:
    if wanted != "auto":
        if wanted not in _BACKENDS:
            _load_plugin(wanted)
        backend = _BACKENDS.get(wanted)
        if backend is None:
            raise BackendUnavailableError(
                f"{VARIABLE}={wanted!r}: unknown; known are auto, {', '.join(_BACKENDS)}; another must be registered "
                f"in this process (register_backend) or be an entry point in the group {PLUGINS!r}"
            )
        reason = backend.obstacle(device)
        if reason is not None:
            raise BackendUnavailableError(f"{VARIABLE}={wanted!r} cannot run: {reason}")
        return wanted, f"{VARIABLE} selects it"
    passed_over: list[str] = []
    for backend in _BACKENDS.values():
        if not backend.automatic(device.type):
            continue
        reason = backend.obstacle(device)
        if reason is None:
            why = [f"the default for {device.type} tensors", *passed_over]
            if lacks_float64(device):
                why.append(f"it has no float64, so the CPU computes {', '.join(sorted(FLOAT64))} and masks of a disc")
            return backend.name, "; ".join(why)
        passed_over.append(f"{backend.name} cannot run: {reason}")
    raise AssertionError("the reference runs on every device")


@cache
def _resolve(op: str, wanted: str, device: torch.device, interpret: str | None) -> Implementation:
    name, _ = _choice(wanted, device, interpret)
    found = _BACKENDS[name].load(op) or _BACKENDS["reference"].load(op)
    assert found is not None, f"the reference lacks {op}"
    # Another package's backend knows its own device.
    return _without_float64(op, found) if lacks_float64(device) and name in ("triton", "reference") else found


def compiled_kernels() -> dict[str, int]:
    """Count the compiled forms of each Triton kernel that was launched in this process."""
    from ..kernels.launch import LAUNCHED

    return {name: len(forms) for name, forms in LAUNCHED.items()}
