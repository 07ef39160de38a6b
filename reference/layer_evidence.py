"""Compute a layer's evidence for the target: activation times loss gradient, where negative (HiResCAM's product)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MOST_SUMS = 256
"""Running sums of a pixel at most."""

_BLOCK = 1 << 20
"""Products that a thread of a CPU makes before it sums them, 4 MiB of float32: they stay in its cache."""


def layer_evidence(activation: Tensor, gradient: Tensor) -> Tensor:
    """Compute ``relu(-sum_c gradient[b, c, y, x] * activation[b, c, y, x])`` (HiResCAM, arXiv 2011.08891, of a loss).

    HiResCAM takes the gradient of a class's score, which rises where the loss falls: hence the minus. The channels are
    divided among ``running_sums(C)`` sums, and neighbouring sums are then added in pairs: the result is bitwise
    independent of batch and strides.

    Args:
        activation: (B, C, H, W), float16, bfloat16, float32 or float64; any strides.
        gradient: (B, C, H, W), of the loss with respect to ``activation``; its dtype may differ.

    Returns:
        (B, H, W), contiguous, float64 if an argument is, else float32, in which halves are multiplied and added. NaN
        where a product is NaN.

    Raises:
        TypeError: a tensor of another dtype.
        ValueError: the shapes differ, or do not have four dimensions.
    """
    dtype = evidence_dtype(activation, gradient)
    batch, _, height, width = activation.shape
    out = torch.empty((batch, height, width), dtype=dtype, device=activation.device)
    for images, rows in _blocks(activation):
        part = images, slice(None), rows
        out[images, rows] = _sum_channels(gradient[part].to(dtype) * activation[part].to(dtype))
    return out.neg_().relu_()


def _blocks(activation: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut a CPU's work into some images, or some rows of one, at a time."""
    batch, channels, height, width = activation.shape
    if activation.device.type != "cpu":
        yield slice(None), slice(None)
        return
    most = max(1, _BLOCK * torch.get_num_threads() // max(1, channels * width))  # rows
    images, rows = max(1, most // max(1, height)), max(1, min(most, height))
    for image in range(0, batch, images):
        for row in range(0, height, rows):
            yield slice(image, image + images), slice(row, row + rows)


def _sum_channels(products: Tensor) -> Tensor:
    """Sum (B, C, H, W) over the channels."""
    count = running_sums(products.shape[1])
    first, *others = torch.split(products, count, 1)
    sums = F.pad(first, (0, 0, 0, 0, 0, count - first.shape[1]))
    for other in others:
        sums[:, : other.shape[1]] += other
    while sums.shape[1] > 1:
        sums = sums[:, 0::2] + sums[:, 1::2]
    return sums[:, 0]


def running_sums(channels: int) -> int:
    """Return the number of running sums for a pixel's channels; channel c is added to sum c modulo that number.

    A power of two: of the channels' number, up to 32; above 256 channels an eighth of it, ``MOST_SUMS`` at most.
    """
    power = 1 << (max(channels, 1) - 1).bit_length()
    return min(power, max(32, power // 8), MOST_SUMS)


def evidence_dtype(activation: Tensor, gradient: Tensor) -> torch.dtype:
    """Return the result's dtype.

    Raises:
        TypeError: a tensor is none of ``DTYPES``.
        ValueError: the shapes differ, or do not have four dimensions.
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
