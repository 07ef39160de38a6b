"""Sum a layer's products over its channels, with a block shape that suits the layer's memory format.

A program owns some pixels of an image and walks their channels, with ``running_sums(C)`` sums for each pixel in
registers: both tensors are read once, and a pixel's sums advance side by side, so that a plane of 7 x 7 with 2048
channels has as many loads under way as a large plane with few. At the end the sums are added in pairs, those of a
thread first. Where channels run fastest (channels-last, tokens), a thread's vectors lie along the channels and
neighbouring lanes share a pixel; where pixels do, vectors and lanes lie along the pixels, and a thread keeps sums of
several channels. Vectors have 16 bytes where the sizes allow; a plane of 7 x 7 in NCHW begins anywhere and is read
element by element. Any other strides are right, and slow.

Neither block nor strides change the numbers that are added or their order: the result is bitwise the same in every
memory format, batch and run, and the reference's own.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.layer_evidence import MOST_SUMS, evidence_dtype, running_sums
from .launch import block_of, launch, widest

SUMS_PER_THREAD = 16
"""Sums that a thread keeps: two 16-byte vectors of halves, or four of float32, are read at a time from each tensor."""

LEVELS = tl.constexpr(MOST_SUMS.bit_length() - 1)
"""Times that sums can be added in pairs until one is left."""


@triton.jit(
    do_not_specialize=[
        "channels",
        "pixels",
        "activation_image",
        "activation_channel",
        "activation_pixel",
        "gradient_image",
        "gradient_channel",
        "gradient_pixel",
    ]
)
def _layer_evidence(
    activation_ptr,  # (B, C, H * W), any strides
    gradient_ptr,  # (B, C, H * W), any strides
    out_ptr,  # (B, H * W) float32 or float64
    channels,  # in groups where they run fastest, as all strides are in groups
    pixels,  # likewise
    activation_image,
    activation_channel,
    activation_pixel,
    gradient_image,
    gradient_channel,
    gradient_pixel,
    CHANNELS_FASTEST: tl.constexpr,
    PIXELS_FASTEST: tl.constexpr,
    GROUP: tl.constexpr,  # sizes and strides are multiples of it, which tells the compiler how wide it may load
    SUMS: tl.constexpr,
    RUN: tl.constexpr,  # neighbouring sums that a thread keeps
    PIXELS: tl.constexpr,
):
    sum_type = out_ptr.dtype.element_ty
    # int64 strides: with them the offsets are 64 bits wide.
    a_channel = activation_channel.to(tl.int64) * GROUP
    g_channel = gradient_channel.to(tl.int64) * GROUP
    a_pixel = activation_pixel.to(tl.int64) * GROUP
    g_pixel = gradient_pixel.to(tl.int64) * GROUP
    if CHANNELS_FASTEST:
        channels *= GROUP
        a_channel = 1
        g_channel = 1
    if PIXELS_FASTEST:
        pixels *= GROUP
        a_pixel = 1
        g_pixel = 1
    blocks = tl.cdiv(pixels, PIXELS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = tl.program_id(0) % blocks * PIXELS + tl.arange(0, PIXELS)  # [PIXELS]
    inside = pixel < pixels
    channel = tl.arange(0, SUMS)  # [SUMS]
    if RUN > 1:  # the compiler deals neighbours to other warps: neighbouring channels are put RUN places apart
        channel = channel % (SUMS // RUN) * RUN + channel // (SUMS // RUN)
    # [PIXELS, SUMS]
    activation_ptr += image * activation_image * GROUP
    gradient_ptr += image * gradient_image * GROUP
    a_place = pixel[:, None] * a_pixel + channel[None, :] * a_channel
    g_place = pixel[:, None] * g_pixel + channel[None, :] * g_channel
    there = inside[:, None] & (channel < channels)[None, :]
    a = tl.load(activation_ptr + a_place, mask=there, other=0.0)
    g = tl.load(gradient_ptr + g_place, mask=there, other=0.0)
    sums = tl.zeros((PIXELS, SUMS), sum_type)
    for first in range(SUMS, channels, SUMS):
        # The next ones are under way while these are added.
        activation_ptr += SUMS * a_channel
        gradient_ptr += SUMS * g_channel
        there = inside[:, None] & (first + channel < channels)[None, :]
        next_a = tl.load(activation_ptr + a_place, mask=there, other=0.0)
        next_g = tl.load(gradient_ptr + g_place, mask=there, other=0.0)
        sums += g.to(sum_type) * a.to(sum_type)
        a = next_a
        g = next_g
    sums += g.to(sum_type) * a.to(sum_type)

    # In pairs of neighbours, first within runs. Not by tl.sum over two: where warps share out several dimensions Triton
    # 3.3 to 3.7 write two warps' values to one place of the shared memory, and results are wrong. To split, a thread is
    # given both, once for all levels.
    for level in tl.static_range(LEVELS):
        if (RUN >> level) > 1:
            pairs = tl.reshape(sums, ((PIXELS * RUN) >> (level + 1), 2, SUMS // RUN))
            even, odd = tl.split(tl.permute(pairs, (0, 2, 1)))
            sums = even + odd
    for level in tl.static_range(LEVELS):
        if (SUMS // RUN >> level) > 1:
            even, odd = tl.split(tl.reshape(sums, ((PIXELS * SUMS // RUN) >> (level + 1), 2)))
            sums = even + odd
    total = tl.reshape(sums, (PIXELS,))  # [PIXELS]
    tl.store(out_ptr + image * pixels + pixel, tl.where(total > 0, 0.0, 0.0 - total), mask=inside)


def layer_evidence(activation: Tensor, gradient: Tensor, *, block: int | None = None) -> Tensor:
    """Compute ``relu(-sum_c gradient[b, c, y, x] * activation[b, c, y, x])`` at every pixel.

    Args:
        activation: (B, C, H, W), float16, bfloat16, float32 or float64; any strides.
        gradient: (B, C, H, W), likewise; its dtype may differ.
        block: pixels per program, a power of two; changes no bit of the result.

    Returns:
        (B, H, W), contiguous, float64 if an argument is, else float32.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: the shapes differ, or do not have four dimensions.
    """
    dtype = evidence_dtype(activation, gradient)
    batch, channels, height, width = activation.shape
    out = torch.empty((batch, height, width), dtype=dtype, device=activation.device)
    # Views, unless a row does not begin where the last one ends.
    activation, gradient = activation.flatten(2), gradient.flatten(2)
    pixels = height * width
    # Along a dimension of size 1 a stride is any number.
    strides = [
        stride if size > 1 else 0
        for tensor in (activation, gradient)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]
    image, channel, pixel = strides[0::3], strides[1::3], strides[2::3]
    channels_fastest = channel == [1, 1]
    pixels_fastest = pixel == [1, 1] and not channels_fastest
    group, warps = 1, 4
    if channels_fastest:
        group = widest(math.gcd(channels, *image, *pixel), activation, gradient)
    elif pixels_fastest:
        group, warps = widest(math.gcd(pixels, *image, *channel), activation, gradient), 8
    sums = running_sums(channels)
    threads = block_of(1, warps) // 4
    block = block or max(1, SUMS_PER_THREAD * threads // sums)
    launch(
        _layer_evidence,
        batch * triton.cdiv(pixels, block),
        activation,
        gradient,
        out,
        channels // group if channels_fastest else channels,
        pixels // group if pixels_fastest else pixels,
        *(stride // group for stride in strides),
        like=activation,
        warps=warps,
        CHANNELS_FASTEST=channels_fastest,
        PIXELS_FASTEST=pixels_fastest,
        GROUP=group,
        SUMS=sums,
        RUN=min(sums, SUMS_PER_THREAD // group) if pixels_fastest else 1,
        PIXELS=block,
    )
    return out
