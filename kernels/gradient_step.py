"""Step along the path in 36 bytes per pixel and channel.

The mean absolute value of an image must be known before its first pixel can be normalised, so the gradient is read
twice. Counted in float32 per pixel and channel:

- with the smoothed gradient computed twice: 4 (gradient) in the first pass; 4 (gradient) + 16 (images, origin,
  momentum, attribution) + 12 (images, momentum, attribution written) in the second: 36;
- with the smoothed gradient stored by the first pass: 4 + 4, then 4 + 16 + 12: 40.

Five inputs and three outputs make 32. For that, all programs of an image would have to wait for each other, which
Triton cannot express portably. So 36; if the gradient fits into the L2 cache, its second read is served from there.

Smoothing twice is cheap because a program walks down a strip of columns with the sums of the output rows that are
under way in registers: each input row is smoothed along x once and added, weighted, to every row it contributes to.
For 7 taps that is 7 loads (all but one from the L1 cache) and 14 multiply-adds per pixel, where the plain double loop
takes 49 of each. Those loads have 4 bytes, since they start anywhere; the others 16 where the width is a multiple of
4.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.gradient_step import StepResult
from .launch import ENOUGH_PROGRAMS, launch, widest

MAX_TAPS = 15
"""Longest smoothing kernel: the loops over the taps are unrolled."""

MAX_CHUNKS = 8
"""Longer strips would save little: with 7 taps, 6 of 64 rows are smoothed by two programs."""


@triton.jit
def _smooth(
    sums,
    plane_ptr,
    kernel_ptr,
    first,
    column,
    height,
    width,
    TAPS: tl.constexpr,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NARROW: tl.constexpr,
):
    """Smooth separably with zero padding and advance by SLOTS rows: the inputs ``first`` to ``first + SLOTS - 1``.

    ``sums`` (SLOTS, COLUMNS) holds the output rows under way, output row y in slot ``y - top`` modulo SLOTS, SLOTS >=
    TAPS. Returns the new sums and the finished output rows, ``first - TAPS//2`` and the following. Taps are added in
    ascending order along x, then along y, wherever strips begin: the division into strips changes no bit. The loops
    are unrolled, and the slot and weight of every row are known at compile time, so the code selects nothing.

    The zero padding needs no predicate: near a border a thread reads a window that is shifted into the row, with the
    weights shifted against it, 0 where the kernel does not reach. A weight of 0 multiplies pixels of the same image,
    so one image's NaN or infinity never spoils another image. NARROW: the row is shorter than the window.
    """
    slot = tl.arange(0, SLOTS)[:, None]  # [SLOTS, 1]
    finished = tl.zeros((SLOTS, COLUMNS), tl.float32)
    # [1, COLUMNS]
    middle = tl.minimum(tl.maximum(column, TAPS // 2), width - 1 - TAPS // 2)
    for s in tl.static_range(SLOTS):
        # One input row, smoothed along x: [1, COLUMNS]
        row = first + s
        line = plane_ptr + tl.minimum(tl.maximum(row, 0), height - 1) * width
        along = tl.zeros((1, COLUMNS), tl.float32)
        # Tap and weight with which each slot's output row takes it: [SLOTS, 1]
        tap = (s - slot + SLOTS) % SLOTS
        weight = tl.zeros((SLOTS, 1), tl.float32)
        for j in tl.static_range(TAPS):
            if NARROW:
                x = column + (j - TAPS // 2)
                value = tl.load(line + tl.minimum(tl.maximum(x, 0), width - 1))
                factor = tl.where((x >= 0) & (x < width), tl.load(kernel_ptr + j), 0.0)
            else:
                value = tl.load(line + middle + (j - TAPS // 2))
                shifted = middle - column + j
                factor = tl.load(kernel_ptr + shifted, mask=(shifted >= 0) & (shifted < TAPS), other=0.0)
            along = tl.fma(value, factor, along)
            weight = tl.where(tap == j, tl.load(kernel_ptr + j), weight)
        # As an unsigned number, one comparison checks both sides.
        along = tl.where(row.to(tl.uint32, bitcast=True) < height.to(tl.uint32, bitcast=True), along, 0.0)
        # [SLOTS, COLUMNS]
        sums = tl.where(tap == 0, 0.0, sums)  # the slot of the row that came to its end before begins the next
        sums = tl.where(tap < TAPS, tl.fma(along, weight, sums), sums)
        # The output row that this input row finished: [COLUMNS]. As integers, adding the zeros of the other slots is no
        # operation.
        picked = tl.sum(tl.where(tap == TAPS - 1, sums.to(tl.int32, bitcast=True), 0), axis=0)
        finished = tl.where(slot == s, picked.to(tl.float32, bitcast=True)[None, :], finished)
    return sums, finished


@triton.jit(do_not_specialize=["height", "width", "chunks"])
def _magnitude(
    gradient_ptr,  # (B, C, H, W) float32
    kernel_ptr,  # (TAPS,) float32
    partial_ptr,  # (B, C * strips) float64, sums of |smoothed gradient|
    height,
    width,
    chunks,  # times SLOTS rows that a program feeds in
    TAPS: tl.constexpr,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NARROW: tl.constexpr,
):
    reach = TAPS // 2 * 2  # input rows beyond the output rows
    rows = chunks * SLOTS - reach
    across = tl.cdiv(width, COLUMNS)
    strips = tl.cdiv(height, rows) * across
    strip = tl.program_id(0) % strips
    plane = gradient_ptr + (tl.program_id(0) // strips).to(tl.int64) * height * width
    top = strip // across * rows
    bottom = tl.minimum(top + rows, height)
    column = strip % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]  # [1, COLUMNS]
    line = tl.arange(0, SLOTS)[:, None]  # [SLOTS, 1]
    # [SLOTS, COLUMNS]
    sums = tl.zeros((SLOTS, COLUMNS), tl.float32)
    # Summed in float64: rounded to float32 in the end, the sum does not show in which order it was formed.
    total = tl.zeros((SLOTS, COLUMNS), tl.float64)
    for first in range(top - reach // 2, bottom + reach // 2, SLOTS):
        row = first - reach // 2 + line  # [SLOTS, 1], of the output
        # [SLOTS, COLUMNS]
        if TAPS > 0:
            sums, smoothed = _smooth(
                sums, plane, kernel_ptr, first, column, height, width, TAPS, SLOTS, COLUMNS, NARROW
            )
        else:
            there = (row < bottom) & (column < width)
            smoothed = tl.load(plane + row * width + column, mask=there, other=0.0)
        mine = (row - top).to(tl.uint32, bitcast=True) < (bottom - top).to(tl.uint32, bitcast=True)
        total += tl.abs(tl.where(mine, smoothed, 0.0)).to(tl.float64)
    total = tl.where(column < width, total, 0.0)
    tl.store(partial_ptr + tl.program_id(0), tl.sum(total))


@triton.jit(do_not_specialize=["partials", "elements"])
def _mean_magnitude(
    partial_ptr,  # (B, partials) float64
    scale_ptr,  # (B,) float32
    partials,
    elements,  # C * H * W
    samples,  # N, float
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    # [BLOCK]
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, partials, BLOCK):
        place = first + tl.arange(0, BLOCK)
        total += tl.load(partial_ptr + image * partials + place, mask=place < partials, other=0.0)
    mean = tl.sum(total) / (elements.to(tl.float64) * samples)
    tl.store(scale_ptr + image, mean.to(tl.float32))


@triton.jit(do_not_specialize=["channels", "height", "groups", "chunks"])
def _step(
    images_ptr,  # this and the next seven: (B, C, H, W) float32
    origin_ptr,
    gradient_ptr,
    momentum_ptr,
    attribution_ptr,
    new_images_ptr,
    new_momentum_ptr,
    new_attribution_ptr,
    kernel_ptr,  # (TAPS,) float32
    scale_ptr,  # (B,) float32
    channels,
    height,
    groups,  # W / GROUP
    chunks,
    samples,
    decay,
    step_size,
    eps,
    lower,
    upper,
    direction,  # 1 where step_size >= 0, else -1
    TAPS: tl.constexpr,
    SLOTS: tl.constexpr,
    GROUP: tl.constexpr,
    COLUMNS: tl.constexpr,
    NARROW: tl.constexpr,
):
    width = groups * GROUP  # tells the compiler what the width is divisible by, hence how wide it may load and store
    reach = TAPS // 2 * 2
    rows = chunks * SLOTS - reach
    across = tl.cdiv(width, COLUMNS)
    strips = tl.cdiv(height, rows) * across
    strip = tl.program_id(0) % strips
    plane = tl.program_id(0) // strips
    base = plane.to(tl.int64) * height * width
    top = strip // across * rows
    bottom = tl.minimum(top + rows, height)
    column = strip % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]  # [1, COLUMNS]
    line = tl.arange(0, SLOTS)[:, None]  # [SLOTS, 1]

    # 1 / (samples * scale), in two factors: gradients so small that it overflows must come out at magnitude 1 all the
    # same.
    scale = tl.load(scale_ptr + plane // channels)
    usable = (scale > 0) & (scale < float("inf"))
    power = tl.where(
        scale < 1e-19, 18446744073709551616.0, tl.where(scale > 1e19, 5.421010862427522e-20, 1.0)
    )  # 2^+-64
    factor = tl.div_rn(1.0, tl.where(usable, scale, 1.0) * power * samples)

    # From here on [SLOTS, COLUMNS], but for row and column.
    sums = tl.zeros((SLOTS, COLUMNS), tl.float32)
    for first in range(top - reach // 2, bottom + reach // 2, SLOTS):
        row = first - reach // 2 + line  # [SLOTS, 1], of the output
        inside = (row >= top) & (row < bottom) & (column < width)
        place = row * width + column
        if TAPS > 0:
            sums, smoothed = _smooth(
                sums, gradient_ptr + base, kernel_ptr, first, column, height, width, TAPS, SLOTS, COLUMNS, NARROW
            )
        else:
            smoothed = tl.load(gradient_ptr + base + place, mask=inside, other=0.0)
        momentum = tl.load(momentum_ptr + base + place, mask=inside, other=0.0)
        image = tl.load(images_ptr + base + place, mask=inside, other=0.0)
        origin = tl.load(origin_ptr + base + place, mask=inside, other=0.0)
        attribution = tl.load(attribution_ptr + base + place, mask=inside, other=0.0)
        gradient = decay * momentum + tl.where(usable, smoothed * power * factor, 0.0)
        move = tl.where(gradient > 0, step_size, tl.where(gradient < 0, -step_size, 0.0))
        moved = tl.minimum(tl.maximum(image - move - origin, -eps), eps)
        stepped = tl.minimum(tl.maximum(origin + moved, lower), upper)
        change = (stepped - image) * gradient
        tl.store(new_images_ptr + base + place, stepped, mask=inside)
        tl.store(new_momentum_ptr + base + place, gradient, mask=inside)
        tl.store(new_attribution_ptr + base + place, attribution - direction * change, mask=inside)


def gradient_step(
    images: Tensor,
    origin: Tensor,
    gradient_sum: Tensor,
    momentum: Tensor,
    attribution: Tensor,
    kernel: Tensor,
    samples: int,
    decay: float,
    step_size: float,
    eps: float,
    lower: float,
    upper: float,
    *,
    columns: int | None = None,
    chunks: int | None = None,
) -> StepResult:
    """Average, smooth, normalise, add momentum, step by sign, project, clamp and attribute, in this order.

    ``g = decay * momentum + s / mean|s|`` with ``s = smooth(gradient_sum / samples)``;
    ``x' = clamp(origin + clip(x - step_size * sign(g) - origin, -eps, eps), lower, upper)``;
    ``A' = A - sign(step_size) * (x' - x) * g``.

    Args:
        images: x_t, (B, C, H, W), float32.
        origin: x_0, (B, C, H, W), float32.
        gradient_sum: sum of the loss gradients over the samples, (B, C, H, W), float32.
        momentum: g_{t-1}, (B, C, H, W), float32; zeros at the first step.
        attribution: A so far, (B, C, H, W), float32.
        kernel: (K,) smoothing kernel of odd length, at most 15, applied along both axes; of length 0 for none.
        samples: N.
        decay: factor on the previous momentum.
        step_size: eps/T, positive to descend the loss, negative to ascend it.
        eps: radius of the projection (maximum norm).
        lower: smallest pixel value.
        upper: largest pixel value.
        columns: columns per program, a power of two of at least 32.
        chunks: how often a program takes in another few rows, so how long a strip is. Neither changes a bit of the
            result, except that the last bit of ``scale``, a float64 sum rounded, may do so once in some 10^8 images.

    Returns:
        A ``StepResult``, all contiguous. An image whose gradient is zero or not finite adds nothing to its momentum.

    Raises:
        TypeError: one of the five image tensors is not float32.
        ValueError: the smoothing kernel is longer than ``MAX_TAPS``, or of even length.
    """
    inputs = (images, origin, gradient_sum, momentum, attribution)
    if any(tensor.dtype != torch.float32 for tensor in inputs):
        raise TypeError(
            f"the Triton kernel gradient_step takes float32 tensors, got {[str(tensor.dtype) for tensor in inputs]}"
        )
    taps = len(kernel)
    if taps > MAX_TAPS or (taps and taps % 2 == 0):
        raise ValueError(f"the smoothing kernel must have an odd length of at most {MAX_TAPS}, or none; got {taps}")
    images, origin, gradient_sum, momentum, attribution = (tensor.contiguous() for tensor in inputs)
    kernel = kernel.to(dtype=torch.float32).contiguous()
    batch, channels, height, width = images.shape
    slots = triton.next_power_of_2(taps) if taps else 8
    reach = taps // 2 * 2
    columns = columns or _columns(width)
    across = triton.cdiv(width, columns)
    if chunks is None:
        strips = max(1, triton.cdiv(ENOUGH_PROGRAMS, max(1, batch * channels * across)))
        chunks = min(MAX_CHUNKS, triton.cdiv(triton.cdiv(height, strips) + reach, slots))
    chunks = max(chunks, reach // slots + 1)
    warps = max(1, min(4, columns // _lanes()))
    partials = channels * triton.cdiv(height, chunks * slots - reach) * across
    partial = torch.empty((batch, partials), dtype=torch.float64, device=images.device)
    result = StepResult(
        torch.empty_like(images),
        torch.empty_like(images),
        torch.empty_like(images),
        torch.empty(batch, dtype=torch.float32, device=images.device),
    )
    launch(
        _magnitude,
        batch * partials,
        gradient_sum,
        kernel,
        partial,
        height,
        width,
        chunks,
        like=images,
        warps=warps,
        TAPS=taps,
        SLOTS=slots,
        COLUMNS=columns,
        NARROW=width < taps,
    )
    launch(
        _mean_magnitude,
        batch,
        partial,
        result.scale,
        partials,
        channels * height * width,
        float(samples),
        like=images,
        warps=4,
        BLOCK=512,
    )
    group = widest(width, images)
    launch(
        _step,
        batch * partials,
        images,
        origin,
        gradient_sum,
        momentum,
        attribution,
        result.images,
        result.momentum,
        result.attribution,
        kernel,
        result.scale,
        channels,
        height,
        width // group,
        chunks,
        float(samples),
        decay,
        step_size,
        eps,
        lower,
        upper,
        1.0 if step_size >= 0 else -1.0,
        like=images,
        warps=warps,
        TAPS=taps,
        SLOTS=slots,
        GROUP=group,
        COLUMNS=columns,
        NARROW=width < taps,
    )
    return result


def _lanes() -> int:
    """Return the threads of a warp, or of a wavefront on AMD."""
    return 64 if torch.version.hip else 32


def _columns(width: int) -> int:
    """Choose the columns of a strip: those that waste fewest lanes, the widest on a tie.

    A thread holds whole columns, which the unrolled smoothing needs: no strip is narrower than a warp.
    """
    choices = [columns for columns in (128, 64, 32) if columns >= _lanes()]
    return min(choices, key=lambda choice: int(triton.cdiv(width, choice)) * choice)
