"""Divide the frequencies of an image size into sectors by the direction of their waves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_count
from ..reference.radius import signed_frequencies
from .coefficients import check_half_spectrum

# Tolerance of an angle in sectors: float64's rounding error for a frequency on an edge.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class OrientationSectors:
    """S sectors of equal angle that contain all frequencies except DC, which has no direction.

    Sector k is centred on ``180 k / S`` degrees, anticlockwise from the horizontal of the displayed image: waves of
    sector 0 run horizontally, with vertical stripes. A frequency on an edge belongs half to each of both sectors, as
    does the highest frequency of an even side, which has two directions.

    Attributes:
        size: (H, W), pixels.
        weights: (S, H, W//2+1) float64 on the CPU, the share of each coefficient of the half spectrum in each sector.
    """

    size: tuple[int, int]
    weights: Tensor

    @property
    def count(self) -> int:
        """Number of sectors, S."""
        return len(self.weights)

    def edges(self) -> Tensor:
        """Return the sectors' edges in degrees, (S + 1,) float64, from half a sector below 0 to half one below 180."""
        return (torch.arange(self.count + 1, dtype=torch.float64, device="cpu") - 0.5) * (180 / self.count)

    def sums(self, values: Tensor) -> Tensor:
        """Sum values of the half spectrum, (B, H, W//2+1), in each sector: (B, S) float64 on the CPU.

        Raises:
            ValueError: values of another size.
        """
        return torch.einsum("bhw,shw->bs", check_half_spectrum(values, self.size).cpu().double(), self.weights)


def orientation_sectors(height: int, width: int, count: int) -> OrientationSectors:
    """Split the spectrum into ``count`` sectors of equal angle.

    Args:
        height: H, pixels.
        width: W, pixels.
        count: S.

    Raises:
        TypeError: a number that is not whole.
        ValueError: a number below 1, or so many sectors that one would have no frequency.
    """
    height, width = check_count("height", height), check_count("width", width)
    count = check_count("sectors", count)
    rows, columns = signed_frequencies(height, width)
    rows, columns = rows.expand(-1, columns.shape[1]), columns.expand(len(rows), -1)
    ambiguous = (2 * rows.abs() == height) | (2 * columns == width)
    parts: list[tuple[Tensor, Tensor]] = []
    for sign in (1, -1):
        share = torch.where(ambiguous, 0.5, 1.0 if sign == 1 else 0.0).double()
        share[0, 0] = 0
        # Rows go down, so a wave with positive frequencies down and to the right has a negative angle.
        angle = torch.atan2(-sign * rows.double() / height, columns.double() / width)
        place = angle * (count / math.pi) + 0.5
        # Near an edge these are the two neighbours; elsewhere they are the same sector.
        parts += [(shifted.floor().long() % count, share / 2) for shifted in (place - _ROUNDING, place + _ROUNDING)]
    # Checked before the weights are made, whose memory grows with the number of sectors.
    held = torch.unique(torch.cat([sector[share > 0] for sector, share in parts])).tolist()
    if len(held) < count:
        empty = next(k for k in range(count) if k >= len(held) or held[k] != k)
        raise ValueError(
            f"{count} sectors are too many for {height} x {width} pixels: sector {empty} would hold no frequency"
        )
    weights = torch.zeros(count, *rows.shape, dtype=torch.float64, device="cpu")
    for sector, share in parts:
        weights.scatter_add_(0, sector[None], share[None])
    return OrientationSectors((height, width), weights)
