"""Launch kernels: device guard, launch, and the division of work into programs that all wrappers share."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Programs that keep the largest of today's GPUs busy: about 150 multiprocessors, a handful of programs on each, a few
# waves of them so that a partly filled last one costs little. Only speed depends on it.
ENOUGH_PROGRAMS = 4096

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


class Deal(NamedTuple):
    """Rows assigned to programs, so that a program has rows of one image only where the image index runs fastest."""

    stride: int
    """A program takes the rows p, p + stride, p + 2 * stride, ..."""
    run: int
    """... this many of them."""
    starts: int
    """First rows p: programs per plane and block."""


def deal_rows(rows: int, batch: int, programs_per_row: int, run: int | None) -> Deal:
    """Assign ``rows`` rows of ``batch`` images to programs; ``run`` None for as many each as keep the GPU busy."""
    stride = min(batch, rows)
    per_start = -(-rows // max(stride, 1))  # rows that lie `stride` apart
    run = run or run_length(per_start, programs_per_row * stride)
    return Deal(stride, run, stride * -(-per_start // run))


def run_length(rows: int, programs_per_row: int) -> int:
    """Return how many rows one program handles one after the other, sharing what it computes before the first."""
    return max(1, min(rows, rows * programs_per_row // ENOUGH_PROGRAMS))
