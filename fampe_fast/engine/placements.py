"""Place resized samples in larger frames at random: input diversity (Xie et al., arXiv 1803.06978).

One draw per step and sample number, the same for all images, as in AttEXplore's public code: it does not depend on
which images share a batch, and a chunk keeps one shape.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..reference.philox import philox4x32, split_seed

RESIZE_RATE = 1.15
# No coefficient index and no image id reach it, so these draws share no counter with the noise.
_RESERVED = 0xFFFFFFFF


class Placement(NamedTuple):
    """The place of the resized sample inside the padded frame, in pixels."""

    height: int
    width: int
    top: int
    left: int


def padded_size(size: int) -> int:
    """Compute the side of the frame for a side of ``size`` pixels."""
    return int(size * RESIZE_RATE)


def draw_placements(seed: int, steps: int, samples: int, height: int, width: int) -> list[list[Placement | None]]:
    """Draw a placement for each step and sample number, or, with probability 1/2, None for an unchanged sample.

    Args:
        seed: the run's seed.
        steps: T.
        samples: N.
        height: H of the images, at least 8.
        width: W of the images, at least 8.

    Returns:
        T lists of N placements; those of a step do not depend on the number of steps or samples.
    """
    with torch.device("cpu"):  # whatever the process's default device is
        step, number = torch.arange(steps)[:, None], torch.arange(samples)
        reserved = torch.tensor(_RESERVED)
        words = philox4x32((reserved, number, step, reserved), split_seed(torch.tensor(seed)))
    unit = (torch.stack(words, -1).double() * 2.0**-32).tolist()
    return [
        # The first word decides, three are left for the place.
        [_place(u[1:], height, width) if u[0] < 0.5 else None for u in of_step]
        for of_step in unit
    ]


@lru_cache(maxsize=16)
def resize_matrix(size: int, new_size: int, device: torch.device) -> Tensor:
    """Compute a bilinear resize of one side (half-pixel centres) as a matrix (new_size, size), float32; rows sum to 1.

    A model of one image size gets the frames of input diversity in its own size, as in the later public code of
    AttEXplore's authors (LMBTough/LA, ``DIResize``).
    """
    with torch.inference_mode(False):
        places = torch.arange(new_size, dtype=torch.float64, device="cpu")
        centres = ((places + 0.5) * (size / new_size) - 0.5).clamp(min=0)
        lower = centres.floor().long()
        upper = (lower + 1).clamp(max=size - 1)
        share = centres - lower
        weights = torch.zeros(new_size, size, dtype=torch.float64, device="cpu")
        row = torch.arange(new_size, device="cpu")
        weights[row, lower] += 1 - share
        weights[row, upper] += share
        return weights.to(device, torch.float32)


def _place(unit: list[float], height: int, width: int) -> Placement:
    full_height, full_width = padded_size(height), padded_size(width)
    new_width = width + int(unit[0] * (full_width - width))
    new_height = min(full_height, max(1, round(height * new_width / width)))
    top = int(unit[1] * max(1, full_height - new_height))
    left = int(unit[2] * max(1, full_width - new_width))
    return Placement(new_height, new_width, top, left)
