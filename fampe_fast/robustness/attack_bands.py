"""Define the frequency bands that attacks are limited to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_choice, check_cutoff
from ..frequency.low_pass import low_pass

Band = Literal["low", "middle", "high", "all"]

BANDS: tuple[Band, ...] = get_args(Band)

_ROOM = 1 + 1e-12  # tolerance for rounded radii: a radius equal to the limit is inside, as in ``low_pass``


@dataclass(frozen=True)
class BandLimit:
    """A band of frequencies: the radii ``inner < r <= outer`` in cycles over the shorter side.

    Attributes:
        band: ``low``: up to the cut-off, the mean included; ``middle``: from there to the upper cut-off; ``high``: all
            beyond; ``all``: every frequency.
        cutoff: radius where the low band ends, 0 or more; has no effect for ``all``.
        upper_cutoff: radius where the high band begins, at least ``cutoff``; None is the cut-off, without a middle
            band.

    Raises:
        TypeError: a radius that is not a number.
        ValueError: an unknown band, a radius that is negative or not finite, an upper cut-off below the cut-off, or a
            middle band without a radius.
    """

    band: Band = "all"
    cutoff: float = 30.0
    upper_cutoff: float | None = None

    def __post_init__(self) -> None:
        check_choice("band", self.band, BANDS)
        object.__setattr__(self, "cutoff", check_cutoff("cutoff", self.cutoff))
        if self.upper_cutoff is not None:
            object.__setattr__(self, "upper_cutoff", check_cutoff("upper_cutoff", self.upper_cutoff))
            if self._beginning_of_high < self.cutoff:
                raise ValueError(
                    f"upper_cutoff must be at least the cut-off of {self.cutoff:g}, got {self.upper_cutoff:g}"
                )
        if self.band == "middle" and self._beginning_of_high == self.cutoff:
            raise ValueError(
                f"the middle band is empty: give an upper_cutoff above the cut-off of {self.cutoff:g}, got "
                f"{self.upper_cutoff}"
            )

    @property
    def _beginning_of_high(self) -> float:
        return self.cutoff if self.upper_cutoff is None else self.upper_cutoff

    @property
    def inner(self) -> float:
        """The radius above which the band begins; below 0 if the band contains the mean."""
        return {"middle": self.cutoff, "high": self._beginning_of_high}.get(self.band, -1.0)

    @property
    def outer(self) -> float:
        """The largest radius of the band."""
        return {"low": self.cutoff, "middle": self._beginning_of_high}.get(self.band, math.inf)

    def holds(self, squared: Tensor) -> Tensor:
        """Mark the squared radii, float64, that lie in the band."""
        inside = squared <= self.outer**2 * _ROOM
        return inside if self.inner < 0 else inside & (squared > self.inner**2 * _ROOM)

    def project(self, perturbation: Tensor) -> Tensor:
        """Project a perturbation (..., H, W) onto the band's Fourier coefficients."""
        found = perturbation if math.isinf(self.outer) else low_pass(perturbation, self.outer)
        return found if self.inner < 0 else found - low_pass(perturbation, self.inner)

    def check_size(self, height: int, width: int, squared: Tensor) -> None:
        """Refuse an image size that has no frequency in the band.

        Args:
            height: H, pixels.
            width: W, pixels.
            squared: the squared radii of images of this size, float64.

        Raises:
            ValueError: the band is empty.
        """
        if not bool(self.holds(squared).any()):
            raise ValueError(
                f"the {self.band} band is empty for {height} x {width} pixels: none of their frequencies has a radius "
                f"above {self.inner:g} and up to {self.outer:g}"
            )


def share_inside(projected: Tensor, whole: Tensor) -> Tensor:
    """Compute the share of the energy that a projection has kept.

    Args:
        projected: (B, ...) float64, the projection.
        whole: (B, ...) float64, the projected values before.

    Returns:
        (B,) float64; 1 for an energy of zero.
    """
    total, inside = (values.square().flatten(1).sum(1) for values in (whole, projected))
    return torch.where(total > 0, inside / total.clamp(min=1e-300), torch.ones_like(total))
