"""Diversify inputs, and apply the transpose; both gather, so neither needs atomics and each result is written once.

An input pixel of the transpose is read by those output pixels whose source lies less than one pixel away: at
most ``2 h / H + 1`` of them along each axis. Accesses have 4 bytes: neighbours read from places that need not lie side
by side, and a frame's sides, 257 for 224, are odd.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bilinear import divide, inverse, reciprocal, source_pixels
from .launch import block_of, launch

# Strides among them: one of 1 would become a constant without a type.
_SIZES = ["channels", "height", "width", "row_stride", "channel_stride", "y_stride", "x_stride"]


@triton.jit(do_not_specialize=[*_SIZES, "frame_height", "frame_width"])
def _diversify(
    samples_ptr,  # (P, C, H, W) float32, any strides
    placements_ptr,  # (P, 4) int64
    shown_ptr,  # (P, C * frame) float32, in memory order
    channels,
    height,
    width,
    frame_height,
    frame_width,
    row_stride,  # of the samples, as the next three
    channel_stride,
    y_stride,
    x_stride,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    frame = frame_height * frame_width
    count = channels * frame
    blocks = tl.cdiv(count, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    # [BLOCK]
    element = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    if CHANNELS_LAST:
        pixel, channel = divide(element, channels, inverse(channels))
    else:
        channel, pixel = divide(element, frame, inverse(frame))
    # Scalars, of the row.
    resized_height = tl.load(placements_ptr + 4 * row).to(tl.int32)
    resized_width = tl.load(placements_ptr + 4 * row + 1).to(tl.int32)
    # Place in the resized sample, its four source pixels and their weights: [BLOCK]
    y, x = divide(pixel, frame_width, inverse(frame_width))
    y -= tl.load(placements_ptr + 4 * row + 2).to(tl.int32)
    x -= tl.load(placements_ptr + 4 * row + 3).to(tl.int32)
    filled = inside & (y >= 0) & (y < resized_height) & (x >= 0) & (x < resized_width)
    y0, y1, down = source_pixels(y, height, resized_height, inverse(2 * resized_height), reciprocal(2 * resized_height))
    x0, x1, across = source_pixels(x, width, resized_width, inverse(2 * resized_width), reciprocal(2 * resized_width))
    plane = samples_ptr + row * row_stride + channel * channel_stride.to(tl.int64)
    upper = plane + y0 * y_stride.to(tl.int64)
    lower = plane + y1 * y_stride.to(tl.int64)
    left = x0 * x_stride.to(tl.int64)
    right = x1 * x_stride.to(tl.int64)
    above = (1 - across) * tl.load(upper + left, mask=filled, other=0.0)
    above += across * tl.load(upper + right, mask=filled, other=0.0)
    below = (1 - across) * tl.load(lower + left, mask=filled, other=0.0)
    below += across * tl.load(lower + right, mask=filled, other=0.0)
    tl.store(shown_ptr + row * count + element, (1 - down) * above + down * below, mask=inside)


@triton.jit
def _first_reader(pixel, size, resized, inverse):
    """Find the first pixel of a resized side whose source lies less than one pixel from ``pixel``."""
    # floor((resized * (2 pixel - 1) + size) / (2 size)), shifted by whole sides: none of it is negative.
    first, _ = divide(resized * (2 * pixel - 1) + (2 * resized + 1) * size, 2 * size, inverse)
    return tl.maximum(first - resized, 0)


@triton.jit(do_not_specialize=_SIZES)
def _diversify_adjoint(
    gradient_ptr,  # (P, C, frame height, frame width) float32, any strides
    placements_ptr,  # (P, 4) int64
    back_ptr,  # (P, C, H, W) float32
    channels,
    height,
    width,
    row_stride,  # of the gradient, as the next three
    channel_stride,
    y_stride,
    x_stride,
    READERS_DOWN: tl.constexpr,
    READERS_ACROSS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pixels = height * width
    count = channels * pixels
    blocks = tl.cdiv(count, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    # [BLOCK]
    element = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = element < count
    channel, pixel = divide(element, pixels, inverse(pixels))
    y, x = divide(pixel, width, inverse(width))
    # Scalars, of the row.
    resized_height = tl.load(placements_ptr + 4 * row).to(tl.int32)
    resized_width = tl.load(placements_ptr + 4 * row + 1).to(tl.int32)
    top = tl.load(placements_ptr + 4 * row + 2)
    left = tl.load(placements_ptr + 4 * row + 3)
    # [BLOCK]
    plane = gradient_ptr + row * row_stride + channel * channel_stride.to(tl.int64) + top * y_stride + left * x_stride
    first_down = _first_reader(y, height, resized_height, inverse(2 * height))
    first_across = _first_reader(x, width, resized_width, inverse(2 * width))
    # Scalars.
    inverse_height, reciprocal_height = inverse(2 * resized_height), reciprocal(2 * resized_height)
    inverse_width, reciprocal_width = inverse(2 * resized_width), reciprocal(2 * resized_width)
    # [BLOCK]
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(READERS_DOWN):
        target_y = first_down + i
        y0, y1, down = source_pixels(target_y, height, resized_height, inverse_height, reciprocal_height)
        share_y = tl.where(y0 == y, 1 - down, 0.0) + tl.where(y1 == y, down, 0.0)
        line = tl.zeros((BLOCK,), tl.float32)
        for j in tl.static_range(READERS_ACROSS):
            target_x = first_across + j
            x0, x1, across = source_pixels(target_x, width, resized_width, inverse_width, reciprocal_width)
            share_x = tl.where(x0 == x, 1 - across, 0.0) + tl.where(x1 == x, across, 0.0)
            there = inside & (target_y < resized_height) & (target_x < resized_width)
            place = target_y * y_stride.to(tl.int64) + target_x * x_stride.to(tl.int64)
            line += share_x * tl.load(plane + place, mask=there, other=0.0)
        total += share_y * line
    tl.store(back_ptr + row * count + element, total, mask=inside)


def diversify(
    samples: Tensor,
    placements: Tensor,
    frame_height: int,
    frame_width: int,
    channels_last: bool = False,
    *,
    block: int | None = None,
) -> Tensor:
    """Resize every row bilinearly (half-pixel centres) and put it into a frame of zeros (DI-FGSM, arXiv 1803.06978).

    Args:
        samples: (P, C, H, W), float32, any strides.
        placements: (P, 4) int64, of each row the height and width it is resized to, and the top and left pixel of the
            place it gets; inside the frame.
        frame_height: rows of the frame.
        frame_width: columns of the frame.
        channels_last: memory format of the result.
        block: elements per program; changes no bit of the result.

    Returns:
        (P, C, frame_height, frame_width), float32.

    Raises:
        TypeError: ``samples`` are not float32.
    """
    _check("diversify", samples)
    rows, channels, height, width = samples.shape
    shown = torch.empty(
        (rows, channels, frame_height, frame_width),
        dtype=samples.dtype,
        device=samples.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    block = block or block_of(1, 4)
    launch(
        _diversify,
        rows * triton.cdiv(channels * frame_height * frame_width, block),
        samples,
        placements.contiguous(),
        shown,
        channels,
        height,
        width,
        frame_height,
        frame_width,
        *samples.stride(),
        like=samples,
        warps=4,
        CHANNELS_LAST=channels_last,
        BLOCK=block,
    )
    return shown


def diversify_adjoint(
    gradient: Tensor, placements: Tensor, height: int, width: int, *, block: int | None = None
) -> Tensor:
    """Apply the transpose of ``diversify``: from gradients of the frames to gradients of the samples.

    Args:
        gradient: (P, C, frame height, frame width), float32, any strides.
        placements: (P, 4) int64, as in ``diversify``.
        height: H of the samples.
        width: W of the samples.
        block: elements per program; changes no bit of the result.

    Returns:
        (P, C, H, W), float32, contiguous.

    Raises:
        TypeError: ``gradient`` is not float32.
    """
    _check("diversify_adjoint", gradient)
    rows, channels, frame_height, frame_width = gradient.shape
    back = torch.empty((rows, channels, height, width), dtype=gradient.dtype, device=gradient.device)
    block = block or block_of(1, 4)
    launch(
        _diversify_adjoint,
        rows * triton.cdiv(channels * height * width, block),
        gradient,
        placements.contiguous(),
        back,
        channels,
        height,
        width,
        *gradient.stride(),
        like=gradient,
        warps=4,
        READERS_DOWN=2 * frame_height // height + 1,
        READERS_ACROSS=2 * frame_width // width + 1,
        BLOCK=block,
    )
    return back


def _check(name: str, values: Tensor) -> None:
    if values.dtype != torch.float32:
        raise TypeError(f"the Triton kernel {name} takes float32 tensors, got {values.dtype}")
