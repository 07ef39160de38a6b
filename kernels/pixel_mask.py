"""Mask images of insertion and deletion, from the step at which each pixel changes straight to the batch.

A program owns a stretch of an image's memory and a run of rows. While the rows show one image, as they do when they
come image by image, it reads both images and the steps once, keeps them in registers, and does nothing per row but
compare and write: the write of the batch is all the memory traffic there is, in accesses of 16 bytes where the size
allows. So are the reads, once per image and program, of images that lie in memory as the batch does; others may have
any strides and are read element by element, where the lanes of a warp touch four times as many sectors at a time.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.pixel_mask import result_format
from .launch import block_of, launch, rows_per_program, widest

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit(
    do_not_specialize=[
        "rows",
        "run",
        "channels",
        "width",
        "pixels",
        "groups",
        "start_image",
        "start_channel",
        "start_row",
        "start_column",
        "finish_image",
        "finish_channel",
        "finish_row",
        "finish_column",
    ]
)
def _pixel_mask(
    start_ptr,  # (B, C, H, W) any strides, an integer type of the images' width
    finish_ptr,  # likewise
    first_step_ptr,  # (B, H * W) int32
    image_index_ptr,  # (P,) int64
    step_ptr,  # (P,) int64
    out_ptr,  # (P, C * H * W), in memory order
    rows,  # P
    run,  # rows per program
    channels,
    width,
    pixels,  # H * W
    groups,  # C * H * W / GROUP
    start_image,
    start_channel,
    start_row,
    start_column,
    finish_image,
    finish_channel,
    finish_row,
    finish_column,
    CHANNELS_LAST: tl.constexpr,
    START_DENSE: tl.constexpr,  # whether the images lie in memory as the batch does
    FINISH_DENSE: tl.constexpr,
    WHOLE_GROUPS: tl.constexpr,  # whether GROUP divides H * W
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    count = groups * GROUP  # tells the compiler what a row's length is divisible by, hence how wide it may access
    blocks = tl.cdiv(count, BLOCK)
    first = tl.program_id(0) // blocks * run
    # [GROUP, BLOCK // GROUP]
    lane = tl.arange(0, GROUP)[:, None] + GROUP * tl.arange(0, BLOCK // GROUP)[None, :]
    element = tl.program_id(0) % blocks * BLOCK + lane
    inside = element < count
    if CHANNELS_LAST:
        pixel = element // channels
        channel = element - pixel * channels
    elif WHOLE_GROUPS:
        # In groups, [1, BLOCK // GROUP], so that the compiler sees that pixels follow each other within one.
        group = tl.program_id(0) % blocks * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)[None, :]
        channel = group // (pixels // GROUP)
        pixel = (group - channel * (pixels // GROUP)) * GROUP + tl.arange(0, GROUP)[:, None]
    else:
        channel = element // pixels
        pixel = element - channel * pixels
    row = pixel // width
    column = pixel - row * width
    # int64 strides: with them the offsets are 64 bits wide.
    start_place = (
        channel * start_channel.to(tl.int64) + row * start_row.to(tl.int64) + column * start_column.to(tl.int64)
    )
    finish_place = (
        channel * finish_channel.to(tl.int64) + row * finish_row.to(tl.int64) + column * finish_column.to(tl.int64)
    )

    # Written this way so that the compiler sees the divisor.
    plane = pixels // GROUP * GROUP if WHOLE_GROUPS and not CHANNELS_LAST else pixels
    image = tl.full((), -1, tl.int32)
    # [GROUP, BLOCK // GROUP]
    start = tl.zeros((GROUP, BLOCK // GROUP), start_ptr.dtype.element_ty)
    finish = start
    first_step = tl.zeros((GROUP, BLOCK // GROUP), tl.int32)
    image_index_ptr += first
    step_ptr += first
    out_ptr += first.to(tl.int64) * count
    for _ in range(tl.minimum(run, rows - first)):
        wanted = tl.load(image_index_ptr).to(tl.int32)
        if wanted != image:
            image = wanted
            where = image.to(tl.int64)
            if START_DENSE:
                start = tl.load(start_ptr + where * count + element, mask=inside, other=0)
            else:
                start = tl.load(start_ptr + where * start_image + start_place, mask=inside, other=0)
            if FINISH_DENSE:
                finish = tl.load(finish_ptr + where * count + element, mask=inside, other=0)
            else:
                finish = tl.load(finish_ptr + where * finish_image + finish_place, mask=inside, other=0)
            first_step = tl.load(first_step_ptr + where * plane + pixel, mask=inside, other=0)
        step = tl.minimum(tl.maximum(tl.load(step_ptr), -0x80000000), 0x7FFFFFFF).to(tl.int32)
        shown = tl.where(first_step <= step, finish, start)  # [GROUP, BLOCK // GROUP]
        tl.store(out_ptr + element, shown, mask=inside)
        image_index_ptr += 1
        step_ptr += 1
        out_ptr += count


def pixel_mask(
    start: Tensor,
    finish: Tensor,
    first_step: Tensor,
    image_index: Tensor,
    step: Tensor,
    *,
    block: int | None = None,
    run: int | None = None,
) -> Tensor:
    """Show ``finish[b]`` in row p where ``first_step[b] <= step[p]``, else ``start[b]``; ``b = image_index[p]``.

    Fastest when rows of one image follow each other; correct for any order.

    Args:
        start: (B, C, H, W) floating-point, the images at step 0; any strides, expanded dimensions included.
        finish: (B, C, H, W) of the same dtype, the images after the last step; any strides.
        first_step: (B, H, W) int32, the step from which on a pixel shows ``finish``.
        image_index: (P,) int64 in [0, B), the image of each row.
        step: (P,) int64, the step of each row.
        block: elements per program; changes no bit of the result.
        run: rows per program; changes no bit of the result.

    Returns:
        (P, C, H, W) in the dtype of ``start``; channels-last if ``start`` or ``finish`` is, else contiguous.

    Raises:
        TypeError: ``start`` and ``finish`` differ in dtype, or ``first_step`` is not int32.
    """
    if start.dtype != finish.dtype or first_step.dtype != torch.int32:
        raise TypeError(
            "the Triton kernel pixel_mask takes start and finish of one dtype and int32 first_step, "
            f"got {start.dtype}, {finish.dtype} and {first_step.dtype}"
        )
    _, channels, height, width = start.shape
    rows, count = len(image_index), channels * height * width
    memory_format = result_format(start, finish)
    out = torch.empty(
        (rows, channels, height, width),
        dtype=start.dtype,
        device=start.device,
        memory_format=memory_format,
    )
    bits = _BITS[start.element_size()]  # values are only copied, so any type of the same width works
    group = widest(count, out)
    block = block or block_of(group, 4)
    blocks = triton.cdiv(count, block)
    if run is None:
        run = rows_per_program(rows, blocks)
    launch(
        _pixel_mask,
        blocks * triton.cdiv(rows, run),
        start.view(bits),
        finish.view(bits),
        first_step.contiguous(),
        image_index.contiguous(),
        step.contiguous(),
        out.view(bits),
        rows,
        run,
        channels,
        width,
        height * width,
        count // group,
        *start.stride(),
        *finish.stride(),
        like=start,
        warps=4,
        CHANNELS_LAST=memory_format == torch.channels_last,
        START_DENSE=start.is_contiguous(memory_format=memory_format),
        FINISH_DENSE=finish.is_contiguous(memory_format=memory_format),
        WHOLE_GROUPS=height * width % group == 0,
        GROUP=group,
        BLOCK=block,
    )
    return out
