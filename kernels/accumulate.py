"""Add rows of gradients to their images, without atomics: each program owns a range of an image and adds its rows.

It first finds the first and the last row of its image and stops where there is none: images that a chunk does not
contain are neither read nor written. So each gradient is read once, and each image that has rows is read and written
once, and its rows are added in ascending order: bitwise the same from run to run. A program's range is one of the
gradient's memory, contiguous or channels-last, so that gradients are read in whole sectors.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bilinear import divide, inverse
from .launch import block_of, launch, widest


@triton.jit(
    do_not_specialize=[
        "rows",
        "groups",
        "channels",
        "width",
        "pixels",
        "row_stride",
        "channel_stride",
        "y_stride",
        "x_stride",
    ]
)
def _accumulate(
    total_ptr,  # (B, C * H * W) float32
    gradient_ptr,  # (P, C, H, W) float32, any strides
    image_index_ptr,  # (P,) int64
    rows,  # P
    groups,  # C * H * W / GROUP
    channels,
    width,
    pixels,  # H * W
    row_stride,  # of the gradient, as the next three
    channel_stride,
    y_stride,
    x_stride,
    LAYOUT: tl.constexpr,  # of the gradient: "contiguous", "channels_last", "strided"
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    count = groups * GROUP  # tells the compiler what a row's length is divisible by, hence how wide it may load
    blocks = tl.cdiv(count, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    # Scalars: the image's first and last row, or `rows` and -1.
    first = rows
    last = -1
    for start in range(0, rows, ROWS):
        p = start + tl.arange(0, ROWS)  # [ROWS]
        own = tl.load(image_index_ptr + p, mask=p < rows, other=-1) == image
        first = tl.minimum(first, tl.min(tl.where(own, p, rows)))
        last = tl.maximum(last, tl.max(tl.where(own, p, -1)))
    if last >= 0:
        # [GROUP, BLOCK // GROUP]
        lane = tl.arange(0, GROUP)[:, None] + GROUP * tl.arange(0, BLOCK // GROUP)[None, :]
        element = tl.program_id(0) % blocks * BLOCK + lane
        inside = element < count
        own_place = element
        if LAYOUT == "strided":
            channel, pixel = divide(element, pixels, inverse(pixels))
            y, x = divide(pixel, width, inverse(width))
            place = channel * channel_stride.to(tl.int64) + y * y_stride.to(tl.int64) + x * x_stride.to(tl.int64)
            jump = row_stride.to(tl.int64)
        else:
            place = element.to(tl.int64)
            jump = count.to(tl.int64)
            if LAYOUT == "channels_last":
                pixel, channel = divide(element, channels, inverse(channels))
                own_place = channel * pixels + pixel
        total_ptr += image * count
        total = tl.load(total_ptr + own_place, mask=inside, other=0.0)  # [GROUP, BLOCK // GROUP]
        for p in range(first, last + 1):
            if tl.load(image_index_ptr + p) == image:
                total += tl.load(gradient_ptr + p * jump + place, mask=inside, other=0.0)
        tl.store(total_ptr + own_place, total, mask=inside)


def accumulate(total: Tensor, gradient: Tensor, image_index: Tensor, *, block: int | None = None) -> None:
    """Add ``total[image_index[p]] += gradient[p]``, in place, in ascending order of p.

    Args:
        total: (B, C, H, W), float32, contiguous; is changed.
        gradient: (P, C, H, W), float32, any strides.
        image_index: (P,) int64 in [0, B): the image of each row.
        block: elements per program; changes no bit of the result.

    Raises:
        TypeError: a tensor of another type.
        ValueError: ``total`` is not contiguous.
    """
    if total.dtype != torch.float32 or total.dtype != gradient.dtype:
        raise TypeError(f"the Triton kernel accumulate takes float32 tensors, got {total.dtype} and {gradient.dtype}")
    if not total.is_contiguous():
        raise ValueError(f"accumulate adds to a contiguous tensor, got strides {total.stride()}")
    batch, channels, height, width = total.shape
    count = channels * height * width
    layout = "strided"
    if gradient.is_contiguous():
        layout = "contiguous"
    elif gradient.is_contiguous(memory_format=torch.channels_last):
        layout = "channels_last"
    group = widest(count, total)
    block = block or block_of(group, 4)
    launch(
        _accumulate,
        batch * triton.cdiv(count, block) if len(image_index) else 0,
        total,
        gradient,
        image_index.contiguous(),
        len(image_index),
        count // group,
        channels,
        width,
        height * width,
        *gradient.stride(),
        like=total,
        warps=4,
        LAYOUT=layout,
        ROWS=128,
        GROUP=group,
        BLOCK=block,
    )
