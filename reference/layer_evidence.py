"""Evidence of a layer: where its activation, times the loss's gradient, speaks for the target (HiResCAM's product)."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_SUMS = 256
"""Running sums of a pixel at most."""


def layer_evidence(activation: Tensor, gradient: Tensor) -> Tensor:
    """Compute ``relu(-sum_c gradient[b, c, y, x] * activation[b, c, y, x])`` (HiResCAM, arXiv 2011.08891, of a loss).

    HiResCAM takes the gradient of a class's score, which rises where the loss falls: hence the minus. The channels are
    dealt to ``running_sums(C)`` sums, then neighbours among these are added in pairs: neither batch nor strides change
    a bit.

    Args:
        activation: (B, C, H, W), float16, bfloat16, float32 or float64; any strides.
        gradient: (B, C, H, W), of the loss with respect to ``activation``; likewise, also of another dtype.

    Returns:
        (B, H, W), contiguous, float64 if an argument is, else float32, in which halves are multiplied and added. NaN
        where a product is NaN.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: the shapes differ, or have not four dimensions.
    """
    dtype = evidence_dtype(activation, gradient)
    batch, channels, height, width = activation.shape
    count = running_sums(channels)
    memory_format = torch.channels_last if activation.stride(1) == 1 else torch.contiguous_format
    sums = torch.empty(
        (batch, count, height, width), dtype=dtype, device=activation.device, memory_format=memory_format
    ).zero_()
    for first in range(0, channels, count):
        part = slice(first, first + count)
        product = gradient[:, part].to(dtype) * activation[:, part].to(dtype)
        sums[:, : product.shape[1]] += product
    while sums.shape[1] > 1:
        sums = sums[:, 0::2] + sums[:, 1::2]
    return torch.relu(-sums[:, 0]).contiguous()


def running_sums(channels: int) -> int:
    """Return to how many running sums the channels of a pixel are dealt, channel c to sum c modulo their number.

    A power of two: of the channels' number, up to 32; above 256 channels an eighth of it, ``MOST_SUMS`` at most.
    """
    power = 1 << (max(channels, 1) - 1).bit_length()
    return min(power, max(32, power // 8), MOST_SUMS)


def evidence_dtype(activation: Tensor, gradient: Tensor) -> torch.dtype:
    """Return the result's dtype.

    Raises:
        TypeError: a tensor is none of ``DTYPES``.
        ValueError: the shapes differ, or have not four dimensions.
    """
    dtypes = activation.dtype, gradient.dtype
    if not set(dtypes) <= set(DTYPES):
        raise TypeError(
            f"layer_evidence takes float16, bfloat16, float32 or float64 tensors, got {dtypes[0]} and {dtypes[1]}"
        )
    if activation.ndim != 4 or activation.shape != gradient.shape:
        raise ValueError(
            "layer_evidence takes an activation and its gradient, both (B, C, H, W), "
            f"got shapes {tuple(activation.shape)} and {tuple(gradient.shape)}"
        )
    return torch.float64 if torch.float64 in dtypes else torch.float32
