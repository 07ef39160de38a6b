"""Smooth a perturbation along its image, so that it follows the image's flat areas and edges.

Zhang, Avrithis, Furon and Amsaleg, "Smooth Adversarial Examples", arXiv 1903.11862 (2019): Laplacian smoothing on the
graph of neighbouring pixels, each edge weighted by the similarity of its pixels, normalised to preserve constants.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import check_number

_LIKENESS = 0.05
"""Distance of two colours, in units of the image's range, at which their edge has the weight exp(-1/2)."""

_ERROR = 1e-5
"""Largest relative error of the solution, by the bound of Chebyshev's iteration."""

_PAIRS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Half of the eight neighbours, as steps down and across; the others are their opposites."""


def check_smoothness(value: object) -> float:
    """Check a smoothness in [0, 1).

    Raises:
        TypeError: not a real number.
        ValueError: NaN or out of range; above 0.9999 the smoothing would take thousands of iterations.
    """
    return check_number("smoothness", value, 0, 0.9999, expected="at least 0 and at most 0.9999")


class GuidedSmoothing:
    """Solve ``(I - a S) y = (1 - a) z``, divided by the solution for ``z = 1``: a weighted mean over nearby pixels.

    S is the adjacency of each pixel's eight neighbours with weights ``exp(-d^2 / (2 * 0.05^2))``, d the Euclidean
    distance of their colours, normalised by the square roots of its row and column sums. Its eigenvalues lie in
    [-1, 1], so that Chebyshev's iteration solves it in a number of rounds that depends only on ``a``, and not on the
    other images of a batch.

    Args:
        images: (B, C, H, W) floating-point, which the smoothing follows; their range is assumed to be 1.
        smoothness: a, in [0, 0.9999]; a perturbation spreads farther for larger values.

    Raises:
        TypeError, ValueError: a smoothness out of range.
    """

    def __init__(self, images: Tensor, smoothness: float) -> None:
        self._share = check_smoothness(smoothness)
        self._weights = _normalised([_likeness(images, *pair) for pair in _PAIRS], images[:, :1])
        # The error halves in every 1 / log2((sqrt(k) + 1) / (sqrt(k) - 1)) rounds, k the condition number.
        root = math.sqrt((1 + self._share) / (1 - self._share))
        self._rounds = math.ceil(math.log(2 / _ERROR) / math.log((root + 1) / (root - 1))) if self._share else 1
        self._mean = self._solved(torch.ones_like(images[:, :1]))

    def __call__(self, perturbation: Tensor) -> Tensor:
        """Smooth a perturbation (B, C, H, W), channel by channel."""
        return self._solved(perturbation) / self._mean

    def _solved(self, values: Tensor) -> Tensor:
        half = self._share / 2
        found, rest = torch.zeros_like(values), (1 - self._share) * values
        direction, step = rest, 1.0
        for number in range(self._rounds):
            if number:
                turn = (self._share * step) ** 2 / 2 if number == 1 else (half * step) ** 2
                step = 1 / (1 - turn / step)
                direction = rest + turn * direction
            found = found + step * direction
            rest = rest - step * (direction - self._share * self._spread(direction))
        return found

    def _spread(self, values: Tensor) -> Tensor:
        """Multiply by S."""
        found = torch.zeros_like(values)
        for (down, across), weight in zip(_PAIRS, self._weights, strict=True):
            here, there = _edges(values, down, across)
            into_here, into_there = _edges(found, down, across)
            into_here += weight * there
            into_there += weight * here
        return found


def _edges(values: Tensor, down: int, across: int) -> tuple[Tensor, Tensor]:
    """View the two ends of all edges of one kind, both (B, C, H - down, W - |across|)."""
    height, width = values.shape[-2:]
    left, right = max(-across, 0), max(across, 0)
    here = values[..., : height - down, left : width - right]
    there = values[..., down:, right : width - left]
    return here, there


def _likeness(images: Tensor, down: int, across: int) -> Tensor:
    here, there = _edges(images, down, across)
    return torch.exp((here - there).square().sum(1, keepdim=True) / (-2 * _LIKENESS**2))


def _normalised(weights: list[Tensor], one: Tensor) -> list[Tensor]:
    """Divide each edge by the square roots of its two pixels' sums of weights."""
    total = torch.zeros_like(one)
    for (down, across), weight in zip(_PAIRS, weights, strict=True):
        for end in _edges(total, down, across):
            end += weight
    root = total.clamp(min=1e-30).rsqrt()
    return [
        weight * here * there
        for weight, (here, there) in zip(weights, (_edges(root, *pair) for pair in _PAIRS), strict=True)
    ]
