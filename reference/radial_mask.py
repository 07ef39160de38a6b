"""Compute radial masks: a low-pass L around DC, in one of three shapes, and its complement."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_choice
from .radius import inside_radius, squared_radius

Shape = Literal["gaussian", "disc", "butterworth"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


def radial_mask(cutoff: Tensor, height: int, width: int, shape: str = "gaussian") -> tuple[Tensor, Tensor]:
    """Compute L and ``Hi = 1 - L`` for a batch of cut-offs.

    L falls from 1 at DC with the radius r, and the cut-off c says how fast:

    - ``gaussian``: ``exp(-r^2 / (2 c^2))``, which is 0.607 at the cut-off;
    - ``disc``: 1 where ``r <= c``, else 0, decided without rounding (``inside_radius``);
    - ``butterworth``: ``1 / (1 + (r/c)^4)``, order 2, which is 1/2 at the cut-off: half of the amplitude, as in image
      processing. (In electronics the cut-off is where half of the power is left, ``L^2 = 1/2``.)

    Args:
        cutoff: (B,), float32 or float64, cycles over the shorter side, 1e-15 to 1e15: float32 holds their squares.
        height: H, pixels.
        width: W, pixels.
        shape: one of ``SHAPES``.

    Returns:
        L and Hi, each (B, H, W//2+1), in the dtype of ``cutoff``, values in [0, 1].

    Raises:
        ValueError: an unknown shape.
    """
    check_choice("shape", shape, SHAPES)
    if shape == "disc":
        low = inside_radius(cutoff, height, width).to(cutoff.dtype)
    else:
        squared = squared_radius(height, width, cutoff.device, cutoff.dtype)
        squared_cutoff = cutoff[:, None, None] ** 2
        if shape == "butterworth":
            low = 1 / (1 + (squared / squared_cutoff) ** 2)
        else:
            low = torch.exp(-squared / (2 * squared_cutoff))
    return low, 1 - low
