"""Step along the path: from a summed gradient to the next images and their attribution."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class StepResult(NamedTuple):
    """Result of ``gradient_step``; all new tensors."""

    images: Tensor
    """(B, C, H, W): x_{t+1}."""
    momentum: Tensor
    """(B, C, H, W): g_t."""
    attribution: Tensor
    """(B, C, H, W): the sum so far."""
    scale: Tensor
    """(B,): mean absolute value of the smoothed mean gradient; 0 or not finite where it could not be used."""


def smooth(gradient: Tensor, kernel: Tensor) -> Tensor:
    """Correlate separably with a kernel (K,), K odd, zero padding (TI-FGSM, arXiv 1904.02884, eq. 6).

    Added tap by tap: a convolution would be rounded to tf32 on a GPU, where that is torch's default.
    """
    radius = len(kernel) // 2
    height, width = gradient.shape[2:]
    weights = kernel.to(gradient.dtype)
    padded = F.pad(gradient, (radius, radius))
    along_rows = torch.zeros_like(gradient)
    for k in range(len(kernel)):
        along_rows = along_rows + weights[k] * padded[..., k : k + width]
    padded = F.pad(along_rows, (0, 0, radius, radius))
    smoothed = torch.zeros_like(gradient)
    for k in range(len(kernel)):
        smoothed = smoothed + weights[k] * padded[:, :, k : k + height]
    return smoothed


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
) -> StepResult:
    """Average, smooth, normalise, add momentum, step by sign, project, clamp and attribute, in this order.

    ``g = decay * momentum + s / mean|s|`` with ``s = smooth(gradient_sum / samples)``;
    ``x' = clamp(origin + clip(x - step_size * sign(g) - origin, -eps, eps), lower, upper)``;
    ``A' = A - sign(step_size) * (x' - x) * g`` (AttEXplore: Zhu et al., ICLR 2024, algorithm 1, and its public code).

    Args:
        images: x_t, (B, C, H, W), float32 or float64.
        origin: x_0, (B, C, H, W).
        gradient_sum: sum of the loss gradients over the samples, (B, C, H, W).
        momentum: g_{t-1}, (B, C, H, W); zeros at the first step.
        attribution: A so far, (B, C, H, W).
        kernel: (K,) smoothing kernel of odd length, applied along both axes; of length 0 for none.
        samples: N.
        decay: factor on the previous momentum.
        step_size: eps/T, positive to descend the loss, negative to ascend it.
        eps: radius of the projection (maximum norm).
        lower: smallest pixel value.
        upper: largest pixel value.

    Returns:
        A ``StepResult``. An image whose gradient is zero or not finite adds nothing to its momentum.
    """
    gradient = gradient_sum / samples
    if len(kernel):
        gradient = smooth(gradient, kernel)
    scale = gradient.abs().mean((1, 2, 3))
    usable = (scale > 0) & scale.isfinite()
    divisor = torch.where(usable, scale, torch.ones_like(scale))[:, None, None, None]
    gradient = decay * momentum + torch.where(
        usable[:, None, None, None], gradient / divisor, torch.zeros_like(gradient)
    )
    moved = images - step_size * gradient.sign() - origin
    stepped = (origin + moved.clamp(-eps, eps)).clamp(lower, upper)
    change = (stepped - images) * gradient
    return StepResult(stepped, gradient, attribution - change if step_size >= 0 else attribution + change, scale)
