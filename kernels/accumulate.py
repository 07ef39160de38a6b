"""Add rows of gradients to their images without atomics: each program owns a range of pixels and loops over the rows.

Read per row: its image's number, from cache, and only where it matches the gradient. So each gradient is read once and
each image read and written once, and the rows are added in ascending order: bitwise the same from run to run.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block_of, launch, widest


@triton.jit(
    do_not_specialize=["rows", "groups", "width", "pixels", "row_stride", "channel_stride", "y_stride", "x_stride"]
)
def _accumulate(
    total_ptr,  # (B, C * H * W) float32
    gradient_ptr,  # (P, C, H, W) float32, any strides
    image_index_ptr,  # (P,) int64
    rows,  # P
    groups,  # C * H * W / GROUP
    width,
    pixels,  # H * W
    row_stride,  # of the gradient, as the next three
    channel_stride,
    y_stride,
    x_stride,
    CONTIGUOUS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    count = groups * GROUP  # tells the compiler what a row's length is divisible by, hence how wide it may load
    blocks = tl.cdiv(count, BLOCK)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    # [GROUP, BLOCK // GROUP]
    lane = tl.arange(0, GROUP)[:, None] + GROUP * tl.arange(0, BLOCK // GROUP)[None, :]
    element = tl.program_id(0) % blocks * BLOCK + lane
    inside = element < count
    if CONTIGUOUS:
        place = element.to(tl.int64)
        jump = count.to(tl.int64)
    else:
        channel = element // pixels
        pixel = element - channel * pixels
        y = pixel // width
        x = pixel - y * width
        place = channel * channel_stride.to(tl.int64) + y * y_stride.to(tl.int64) + x * x_stride.to(tl.int64)
        jump = row_stride.to(tl.int64)
    # [GROUP, BLOCK // GROUP]
    total = tl.load(total_ptr + image * count + element, mask=inside, other=0.0)
    for p in range(rows):
        if tl.load(image_index_ptr + p) == image:
            total += tl.load(gradient_ptr + p * jump + place, mask=inside, other=0.0)
    tl.store(total_ptr + image * count + element, total, mask=inside)


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
    contiguous = gradient.is_contiguous()
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
        width,
        height * width,
        *gradient.stride(),
        like=total,
        warps=4,
        CONTIGUOUS=contiguous,
        GROUP=group,
        BLOCK=block,
    )
