"""Launch kernels: device guard, launch, and the division of work into programs that all wrappers share."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

# Programs that keep the largest of today's GPUs busy: about 150 multiprocessors, a handful of programs on each, a few
# waves of them so that a partly filled last one costs little. Only speed depends on it.
ENOUGH_PROGRAMS = 4096

MULTIPROCESSORS = 132
"""Of an H100 or H200; today's other GPUs have 80 to 300. Only speed depends on it."""
RESIDENT_PROGRAMS = 4
"""Programs of four warps that a multiprocessor needs at a time, so that one computes while another waits."""
ROWS_PER_BEGINNING = 2
"""Rows of ``band_mix`` that take about as many instructions as what its programs do before their first one."""

WIDEST_ACCESS = 16
"""Bytes of the widest global access a thread can make."""

LAUNCHED: defaultdict[str, set[Any]] = defaultdict(set)
"""The compiled forms of each kernel that were launched in this process, by the kernel's name."""


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Make the tensor's device current: Triton launches on the current device, wherever the tensors are."""
    if tensor.device.type in ("cpu", "meta"):
        return nullcontext()
    guard: AbstractContextManager[Any] = getattr(torch, tensor.device.type).device(tensor.device)
    return guard


def launch(kernel: Any, programs: int, *arguments: Any, like: Tensor, warps: int, **constants: Any) -> None:
    """Run ``programs`` programs of a kernel on the device of ``like``; without work there is no launch.

    ``enable_fp_fusion=False``: the compiler fuses no multiplication and addition. Where a fused one is wanted
    the kernel calls ``tl.fma``. So results do not depend on the compiler: the interpreter, GPUs of two vendors and
    later compilers round the same way.

    Raises:
        ValueError: a tensor lies on another device (a kernel would follow its pointer all the same).
    """
    for argument in arguments:
        if isinstance(argument, Tensor) and argument.device != like.device:
            raise ValueError(f"all tensors must be on one device, got some on {like.device} and {argument.device}")
    if programs > 0:
        with on_device(like):
            form = kernel[(programs,)](*arguments, **constants, num_warps=warps, enable_fp_fusion=False)
        if form is not None:  # as the interpreter gives none
            LAUNCHED[kernel.__name__.lstrip("_")].add(form)


def widest(count: int, *tensors: Tensor) -> int:
    """Return the most consecutive elements, a power of two, that one access may take in rows of ``count``."""
    size = max(tensor.element_size() for tensor in tensors)
    elements = max(1, WIDEST_ACCESS // size)
    while count % elements:
        elements //= 2
    return elements


def block_of(group: int, warps: int) -> int:
    """Return the elements of a program whose threads take at least four each, and all of a consecutive group."""
    return max(4, group) * warps * (64 if torch.version.hip else 32)


def rows_per_program(rows: int, programs_per_row: int) -> int:
    """Return how many rows one program takes, one after the other, so that an H100 is done soonest.

    Its busiest multiprocessor decides, which should have few rows, and few programs, as each one's beginning takes as
    long as some rows do.
    """
    return _soonest(rows, programs_per_row, MULTIPROCESSORS)


@lru_cache(maxsize=256)
def _soonest(rows: int, programs_per_row: int, multiprocessors: int) -> int:
    def time(run: int) -> tuple[bool, int, int]:
        programs = -(-rows // run) * programs_per_row
        if programs < RESIDENT_PROGRAMS * multiprocessors:  # they run at the same time
            return True, run, 0
        return False, -(-programs // multiprocessors) * (run + ROWS_PER_BEGINNING), -run

    return min(range(1, rows + 1), key=time, default=1)
