"""Combine evidence maps of several sizes into one: a weighted sum, multiplied by a second weighted sum, the gate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_LAYERS = 8
"""Layers at most."""

SMALL, MOVE = 2.0**-40, 2.0**-64
"""A level whose sum lies below ``SMALL``, or above ``1 / SMALL``, is divided, or multiplied, by ``MOVE``."""


def combine_layers(
    pixels: Tensor,
    evidence: Tensor,
    sizes: Sequence[int],
    weights: Sequence[float],
    gates: Sequence[float],
    floor: float,
) -> Tensor:
    """Compute ``(sum_l weights[l] * up(n_l)) * (floor + sum_l gates[l] * up(n_l))`` at every pixel.

    Level 0 is ``pixels``, level l the l-th layer; ``n_l`` is the level divided by its mean over the image, and ``up``
    resizes bilinearly to the pixels' size: half-pixel centres, edges repeated, no smoothing where a layer is larger.

    Args:
        pixels: (B, H, W), float32 or float64, not negative: the evidence at the image's own size.
        evidence: (B, K), in the dtype of ``pixels``, not negative: the layers' evidence, row by row, one layer behind
            the other.
        sizes: h_1, w_1, h_2, w_2, ... of the layers, at most ``MOST_LAYERS`` of them, possibly none.
        weights: the weights in the sum, of the pixels and then of each layer.
        gates: the weights in the gate, likewise.
        floor: constant added to the gate.

    Returns:
        (B, H, W), contiguous, in the dtype of ``pixels``. A level without evidence in an image stays 0; an image of
        which a level has NaN or infinity is NaN. No other float32 is too large or too small, be it 1e-40.

    Raises:
        TypeError: a tensor is neither float32 nor float64, or they differ.
        ValueError: shapes and lengths do not fit together.
    """
    layers = layer_sizes(pixels, evidence, sizes, weights, gates)
    batch, *size = pixels.shape
    parts = torch.split(evidence, [height * width for height, width in layers], 1)
    levels = [pixels, *(part.reshape(batch, *layer) for part, layer in zip(parts, layers, strict=True))]
    scales = [_scales_of(level) for level in levels]
    unused = [
        0 * factor  # or NaN
        for (_, factor), weight, share in zip(scales, weights, gates, strict=True)
        if not weight and not share
    ]
    total = sum(unused, pixels.new_zeros(batch, 1, 1))
    total, gate = total.expand(pixels.shape).clone(), pixels.new_full(pixels.shape, floor)
    for level, (power, factor), weight, share in zip(levels, scales, weights, gates, strict=True):
        if weight or share:
            level = (level * power).mul_(factor)
            if level.shape[1:] != total.shape[1:]:
                level = F.interpolate(level[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
            for part, number in ((total, weight), (gate, share)):
                if number:
                    part.add_(level, alpha=number)
    return total.mul_(gate)


def layer_sizes(
    pixels: Tensor, evidence: Tensor, sizes: Sequence[int], weights: Sequence[float], gates: Sequence[float]
) -> list[tuple[int, int]]:
    """Return (h, w) of every layer.

    Raises:
        TypeError: a tensor is neither float32 nor float64, or they differ.
        ValueError: shapes and lengths do not fit together.
    """
    dtypes = pixels.dtype, evidence.dtype
    if dtypes not in ((torch.float32,) * 2, (torch.float64,) * 2):
        raise TypeError(
            f"combine_layers takes pixels and evidence both float32 or both float64, got {dtypes[0]} and {dtypes[1]}"
        )
    if pixels.ndim != 3 or 0 in pixels.shape[1:]:
        raise ValueError(f"pixels must be (B, H, W), with a pixel at least, got shape {tuple(pixels.shape)}")
    if len(sizes) % 2 or len(sizes) > 2 * MOST_LAYERS or any(side < 1 for side in sizes):
        raise ValueError(
            f"sizes must be height and width, at least 1 each, of at most {MOST_LAYERS} layers, got {list(sizes)}"
        )
    layers = list(zip(sizes[::2], sizes[1::2], strict=True))
    for name, numbers in (("weights", weights), ("gates", gates)):
        if len(numbers) != 1 + len(layers):
            raise ValueError(
                f"{name} must be {1 + len(layers)} numbers, of the pixels and {len(layers)} layers, got {len(numbers)}"
            )
    expected = pixels.shape[0], sum(height * width for height, width in layers)
    if tuple(evidence.shape) != expected:
        raise ValueError(
            f"evidence must have shape {expected}, for layers of sizes {list(sizes)}, got {tuple(evidence.shape)}"
        )
    return layers


def _scales_of(level: Tensor) -> tuple[Tensor, Tensor]:
    """Find two numbers for every image of a level (B, h, w) whose product divides it by its mean, each (B, 1, 1).

    The second is 0 where the mean is 0, and NaN where that is not finite. The sum is formed in float64, which holds
    any; a row first, so that no thread's share depends on the batch. The first is a power of two that moves level and
    sum to where factor and quotient are normal numbers: it loses cells below 2^-80 of the mean.
    """
    cells = level.shape[1] * level.shape[2]
    total = level.contiguous().sum(2, dtype=torch.float64).sum(1)
    power = torch.ones_like(total).masked_fill_(total < SMALL, 1 / MOVE).masked_fill_(total > 1 / SMALL, MOVE)
    factor = (cells / (total * power)).masked_fill_(total == 0, 0.0).masked_fill_(~total.isfinite(), math.nan)
    return power.to(level.dtype)[:, None, None], factor.to(level.dtype)[:, None, None]
