"""Record the launches that a call of the package makes, and compile them without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends import backends
from triton.backends.compiler import GPUTarget

from fampe_fast.ops.backends import OPS

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_BACKENDS = {"cuda": "nvidia", "hip": "amd"}


@dataclass(frozen=True)
class Launch:
    """A kernel launch, recorded instead of made."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    warps: int
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's, without the underscore that marks it private."""
        name: str = self.kernel.__name__
        return name.lstrip("_")

    @property
    def named(self) -> dict[str, Any]:
        """Arguments and constants by name."""
        return {**dict(zip(self.kernel.arg_names, self.arguments, strict=False)), **self.constants}

    def compile(self) -> Any:
        """Compile it for the target chosen with ``compiling_for``."""
        return self.kernel.warmup(
            *self.arguments,
            **self.constants,
            num_warps=self.warps,
            enable_fp_fusion=False,
            grid=(self.programs,),
        )


def record(call: Callable[[], Any]) -> list[Launch]:
    """Record the launches that a call of Triton kernels' host functions makes."""
    found = []

    def launch(kernel: Any, programs: int, *arguments: Any, like: Any, warps: int, **constants: Any) -> None:
        found.append(Launch(kernel, programs, arguments, warps, constants))

    with ExitStack() as held:
        for file in sorted(set(OPS.values())):
            held.enter_context(mock.patch.object(import_module(f"fampe_fast.kernels.{file}"), "launch", launch))
        call()
    return found


class _CompileOnly:
    """Stands in for Triton's driver of a GPU: says which target to compile for, and knows nothing else."""

    def __init__(self, target: GPUTarget, device: int) -> None:
        self._target, self._device = target, device

    def get_current_target(self) -> GPUTarget:
        """Return what to compile for."""
        return self._target

    def get_current_device(self) -> int:
        """Return a number of its own for each target: Triton keeps what it compiled per device."""
        return self._device

    def get_current_stream(self, device: int) -> int:
        """Return a number of no consequence: nothing is launched."""
        return 0


def obstacle(target: str) -> str | None:
    """Say why this Triton cannot compile for a target, or None."""
    wanted = TARGETS[target].backend
    if _BACKENDS[wanted] not in {_BACKENDS.get(name, name) for name in backends}:
        return f"triton {triton.__version__} has no backend for {wanted}"
    if wanted == "hip":
        # Older releases bring no linker for AMD's code, and look for that of an installation.
        find = getattr(backends["amd"].compiler, "path_to_rocm_lld", None)
        try:
            if find is not None:
                find()
        except Exception as error:
            return f"triton {triton.__version__}: {error}"
    return None


@contextmanager
def compiling_for(target: str) -> Iterator[None]:
    """Let Triton compile for ``target`` from here on, in this process; nothing can be launched any more."""
    chosen = TARGETS[target]
    triton.runtime.driver.set_active(_CompileOnly(chosen, list(TARGETS).index(target)))
    # On ROCm the host function chooses wider strips: let it know where its launch would go.
    with mock.patch.object(torch.version, "hip", "ahead of time" if chosen.backend == "hip" else None):
        yield
