"""Compute radial Gaussian masks: a low-pass L around DC and its complement."""

from __future__ import annotations

import torch
from torch import Tensor

from .radius import squared_radius


def radial_mask(cutoff: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Compute ``L = exp(-r^2 / (2 cutoff^2))`` and ``Hi = 1 - L`` for a batch of cut-offs.

    Args:
        cutoff: (B,), float32 or float64, cycles over the shorter side, 1e-15 to 1e15: float32 holds their squares.
        height: H, pixels.
        width: W, pixels.

    Returns:
        L and Hi, each (B, H, W//2+1), in the dtype of ``cutoff``, values in [0, 1].
    """
    squared = squared_radius(height, width, cutoff.device, cutoff.dtype)
    low = torch.exp(-squared / (2 * cutoff[:, None, None] ** 2))
    return low, 1 - low
