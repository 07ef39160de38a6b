"""A pytest plugin (``-p tests.ptx.plugin``): Triton kernels run on CPU tensors, as compiled code on ``machine``.

Everything up to the PTX is Triton's own: specialisation, alignment, block shapes are those of a GPU. The environment
says which GPU, ``FAMPE_FAST_PTX=sm_90``, and what its inexact instructions return, ``sm_90,1`` for the highest results
that are permitted (see ``Approximation``). ``TRITON_INTERPRET`` must be 0.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any
from unittest import mock

import pytest
from torch import Tensor

from .instructions import Approximation
from .machine import run
from .memory import GlobalMemory
from .program import parse

_parse = lru_cache(maxsize=512)(parse)
_patches = ExitStack()


def pytest_configure() -> None:
    """Put the machine where Triton looks for a GPU, before the suite asks which backends run."""
    if os.environ.get("TRITON_INTERPRET") != "0":
        raise pytest.UsageError("tests.ptx.plugin: set TRITON_INTERPRET=0, so that kernels are compiled")
    target, _, share = os.environ.get("FAMPE_FAST_PTX", "sm_90").partition(",")
    from triton.compiler.compiler import CompiledKernel

    from benchmarks.kernels.launches import compiling_for
    from fampe_fast.ops import backends

    approximation = Approximation(float(share or 0))
    attribute = "_run" if hasattr(CompiledKernel, "run") else "run"  # before Triton 3.5 it is no property

    def load(compiled: Any) -> None:
        """Instead of handing a binary to a driver."""
        if compiled.module is None:
            compiled.module = compiled.function = "emulated"
            setattr(compiled, attribute, partial(_launch, compiled, approximation))

    _patches.enter_context(compiling_for(target))
    _patches.enter_context(mock.patch.object(CompiledKernel, "_init_handles", load))
    _patches.enter_context(mock.patch.object(backends, "triton_obstacle", return_value=None))
    known = {**backends._BACKENDS, "triton": replace(backends._BACKENDS["triton"], obstacle=lambda kind: None)}
    _patches.enter_context(mock.patch.object(backends, "_BACKENDS", known))


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    _patches.close()


def _launch(compiled: Any, approximation: Approximation, *launch: Any) -> None:
    """Called as Triton's launcher for a GPU: grid, stream, function, two kinds of metadata, two hooks, values.

    Values of arguments that Triton made constants of have no place among the program's parameters.
    """
    programs, across, deep, *_ = launch
    assert across == deep == 1, "the machine knows grids along x only"
    values = [
        value for value, kind in zip(launch[9:], compiled.src.signature.values(), strict=True) if kind != "constexpr"
    ]
    tensors = [value for value in values if isinstance(value, Tensor)]
    arguments = [value.data_ptr() if isinstance(value, Tensor) else value for value in values]
    program = _parse(compiled.asm["ptx"])
    memory = GlobalMemory(tensors, program.name.lstrip("_"))
    run(program, programs, arguments, memory, compiled.metadata.shared, approximation)
