"""Compute radial masks: device functions that the mix uses, and a separate kernel."""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_choice
from ..reference.radial_mask import SHAPES
from .launch import block_of, launch, rows_per_program, widest
from .radius import scaled_radius, signed_frequency, squared_radius


@triton.jit
def mask_radius(frequency, column, height, width, row_scale, column_scale, SHAPE: tl.constexpr):
    """Compute the squared radius as ``low_pass`` expects it: for a disc, multiplied by long^2, in float64."""
    if SHAPE == "disc":
        squared = scaled_radius(frequency, column, height, width)
    else:
        squared = squared_radius(frequency, column, row_scale, column_scale)
    return squared


@triton.jit
def low_pass(squared, cutoff, height, width, SHAPE: tl.constexpr):
    """Compute the mask of a squared radius (see ``mask_radius``) and a scalar cut-off.

    Disc and Butterworth, whose operations are all rounded exactly, are bitwise equal to the reference.

    The Gaussian is one multiplication and one exp2 for each squared: 2^x instead of e^x saves a multiplication; the
    reference divides each squared radius, here the scalar is divided, so the exponent x carries one more rounding. That
    moves L by at most x * e^-x * 2^-24 < 2^-25.

    NVIDIA's exp2 may be off by 2 ulp, also above 1: cut off there, L and 1 - L stay within [0, 1].
    """
    if SHAPE == "disc":
        reach = cutoff.to(tl.float64) * tl.maximum(height, width)
        low = (squared <= reach * reach).to(tl.float32)
    elif SHAPE == "butterworth":
        ratio = tl.div_rn(squared, cutoff * cutoff)
        low = tl.div_rn(1.0, 1 + ratio * ratio)
    else:
        low = tl.exp2(squared * tl.div_rn(-0.7213475204444817, cutoff * cutoff))  # -log2(e) / 2
        low = tl.minimum(low, 1.0, propagate_nan=tl.PropagateNan.ALL)
    return low


@triton.jit(do_not_specialize=["batch", "run", "height", "width", "groups"])
def _radial_mask(
    cutoff_ptr,  # (B,) float32
    low_ptr,  # (B, K) float32, K = H * (W//2+1)
    high_ptr,  # (B, K) float32
    batch,
    run,  # images per program
    height,
    width,
    groups,  # K / GROUP
    row_scale,  # short / H
    column_scale,  # short / W
    SHAPE: tl.constexpr,
    GROUP: tl.constexpr,  # consecutive coefficients per thread: as many as are surely aligned, 4 at most
    BLOCK: tl.constexpr,
):
    half = width // 2 + 1
    count = groups * GROUP  # tells the compiler what K is divisible by, hence how wide it may store
    blocks = tl.cdiv(count, BLOCK)
    program = tl.program_id(0)
    first = program // blocks * run
    # Thread-consecutive coefficients along the first axis: the default layout keeps that axis inside a thread, so the
    # wide accesses need no exchange between threads.
    # [GROUP, BLOCK // GROUP]
    lane = tl.arange(0, GROUP)[:, None] + GROUP * tl.arange(0, BLOCK // GROUP)[None, :]
    k = program % blocks * BLOCK + lane
    inside = k < count
    row = k // half
    frequency = signed_frequency(row, height)
    squared = mask_radius(frequency, k - row * half, height, width, row_scale, column_scale, SHAPE)
    for image in range(first, tl.minimum(first + run, batch)):
        low = low_pass(squared, tl.load(cutoff_ptr + image), height, width, SHAPE)  # [GROUP, BLOCK // GROUP]
        plane = count.to(tl.int64) * image
        tl.store(low_ptr + plane + k, low, mask=inside)
        tl.store(high_ptr + plane + k, 1 - low, mask=inside)


def radial_mask(
    cutoff: Tensor, height: int, width: int, shape: str = "gaussian", *, block: int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute L, of one of the reference's shapes, and ``Hi = 1 - L`` for a batch of cut-offs.

    Args:
        cutoff: (B,), float32, cycles over the shorter side, 1e-15 to 1e15: float32 holds their squares.
        height: H, pixels.
        width: W, pixels.
        shape: one of ``SHAPES``.
        block: coefficients per program; changes no bit of the result.

    Returns:
        L and Hi, each (B, H, W//2+1), float32, values in [0, 1].

    Raises:
        TypeError: ``cutoff`` is not float32.
        ValueError: an unknown shape.
    """
    check_choice("shape", shape, SHAPES)
    if cutoff.dtype != torch.float32:
        raise TypeError(f"the Triton kernel radial_mask takes float32 cut-offs, got {cutoff.dtype}")
    batch, half = len(cutoff), width // 2 + 1
    low = torch.empty((batch, height, half), dtype=torch.float32, device=cutoff.device)
    high = torch.empty_like(low)
    count, short = height * half, min(height, width)
    group = widest(count, low)
    block = block or block_of(group, 4)
    blocks = triton.cdiv(count, block)
    run = rows_per_program(batch, blocks)
    launch(
        _radial_mask,
        blocks * triton.cdiv(batch, run),
        cutoff.contiguous(),
        low,
        high,
        batch,
        run,
        height,
        width,
        count // group,
        short / height,
        short / width,
        like=cutoff,
        warps=4,
        SHAPE=shape,
        GROUP=group,
        BLOCK=block,
    )
    return low, high
