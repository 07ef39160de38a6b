"""Provide the centre prior, a map that depends on no image, as photographed objects are usually in the middle."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_count

__all__ = ["WIDTH", "centre_prior"]

WIDTH = 0.25
"""Standard deviation of the Gaussian, as a share of the image's side; it does not change a square's ranking."""


def centre_prior(height: int, width: int) -> Tensor:
    """Compute a Gaussian about the image's centre, scaled to the image's height and width.

    ``exp(-(u^2 + v^2) / (2 WIDTH^2))``, u and v the distances from the centre as shares of height and width.

    Args:
        height: height of the image in pixels, at least 1.
        width: width of the image in pixels, at least 1.

    Returns:
        (height, width) float32 on the CPU, in (0, 1], symmetric along both axes.

    Raises:
        TypeError: a size that is not a whole number.
        ValueError: a size below 1.
    """
    rows, columns = (_falling(check_count(name, side)) for name, side in (("height", height), ("width", width)))
    return (rows[:, None] * columns).float()


def _falling(side: int) -> Tensor:
    # In float64: float32 would tie pixels whose distances differ.
    place = torch.arange(side, dtype=torch.float64, device="cpu")
    share = (place - (side - 1) / 2) / side
    return torch.exp(-(share**2) / (2 * WIDTH**2))
