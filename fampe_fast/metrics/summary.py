"""Summarise the scores of many images by a mean and its standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RESAMPLES", "Estimate", "bootstrap_interval", "mean_and_error", "paired_difference", "student_interval"]

RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A mean over images.

    Attributes:
        mean: the arithmetic mean.
        standard_error: sample standard deviation (n - 1) over the square root of n; None for a single value.
        n: the number of values.
    """

    mean: float
    standard_error: float | None
    n: int

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.3f}"
        return f"{self.mean:.3f}{error} (n={self.n})"


def mean_and_error(values: Tensor | Sequence[float]) -> Estimate:
    """Compute the mean and standard error of one score per image.

    Args:
        values: (n,), n at least 1, finite; bool counts as 0 and 1.

    Raises:
        ValueError: not one-dimensional, empty, NaN or infinity (naming the index).
    """
    return _estimate(_checked(values, "values"))


def paired_difference(a: Tensor | Sequence[float], b: Tensor | Sequence[float]) -> Estimate:
    """Compute the mean and standard error of `a - b`, image by image.

    Use it for two methods scored on the same images: the variation between images cancels, which it does not in the
    errors of the two means.

    Args:
        a: (n,), n at least 1, finite.
        b: (n,), the same images in the same order.

    Raises:
        ValueError: lengths that differ, not one-dimensional, empty, NaN or infinity (naming the index).
    """
    first, second = _checked(a, "a"), _checked(b, "b")
    if len(first) != len(second):
        raise ValueError(f"paired values must have the same number, got {len(first)} and {len(second)}")
    return _estimate(first - second)


def _checked(values: Tensor | Sequence[float], name: str) -> Tensor:
    # To the CPU first, as some devices have no float64.
    numbers = values.detach().cpu() if isinstance(values, Tensor) else values
    found = torch.as_tensor(numbers, dtype=torch.float64, device="cpu")
    if found.ndim != 1 or len(found) == 0:
        raise ValueError(f"{name} must be (n,) with n at least 1, got shape {tuple(found.shape)}")
    bad = ~found.isfinite()
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        raise ValueError(f"{name} must be finite, got {float(found[index])} at index {index}")
    return found


def _estimate(values: Tensor) -> Estimate:
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else None
    return Estimate(float(values.mean()), error, n)


def bootstrap_interval(
    values: Tensor, confidence: float = 0.95, seed: int = 0, statistic: Callable[[Tensor], Tensor] | None = None
) -> Tensor | None:
    """Compute the percentile bootstrap interval of the mean over rows (Efron and Tibshirani 1993, chapter 13).

    Whole rows are drawn with replacement, so that the correlation of an image's columns is kept. It makes no assumption
    about the distribution, but for few rows it is too narrow, by a factor of about sqrt((n - 1) / n) and by the
    difference between the normal's quantile and Student's.

    Args:
        values: (n, K), finite.
        confidence: coverage of the interval, in (0, 1).
        seed: seed of the draws; the same values give the same interval.
        statistic: function of drawn rows (R, n, K) float64 that returns (R, L), in place of their mean (R, K).

    Returns:
        (2, K) float64, or (2, L), lower and upper ends; None for n below 2.

    Raises:
        ValueError: not (n, K), NaN or infinity, or a confidence outside (0, 1).
    """
    _check_rows(values, confidence)
    count = len(values)
    if count < 2:
        return None
    rows = values.detach().cpu().double()
    generator = torch.Generator().manual_seed(seed)
    found = []
    at_once = max(1, 2**22 // rows.numel())  # keeps the drawn rows to some 32 MiB
    for start in range(0, RESAMPLES, at_once):
        drawn = torch.randint(count, (min(at_once, RESAMPLES - start), count), generator=generator)
        found.append(rows[drawn].mean(1) if statistic is None else statistic(rows[drawn]))
    tail = (1 - confidence) / 2
    ordered = torch.cat(found).sort(0).values  # torch.quantile refuses large inputs
    low, high = math.floor(tail * (RESAMPLES - 1)), math.ceil((1 - tail) * (RESAMPLES - 1))
    return torch.stack([ordered[low], ordered[high]])


def student_interval(values: Tensor, confidence: float = 0.95) -> Tensor | None:
    """Compute Student's interval of the mean over rows, for too few rows for a bootstrap, such as seeds.

    Args:
        values: (n, K), finite.
        confidence: coverage of the interval, in (0, 1); exact for normally distributed rows.

    Returns:
        (2, K) float64, lower and upper ends; None for n below 2.

    Raises:
        ValueError: not (n, K), NaN or infinity, or a confidence outside (0, 1).
    """
    _check_rows(values, confidence)
    count = len(values)
    if count < 2:
        return None
    rows = values.detach().cpu().double()
    reach = _student_quantile(confidence, count - 1) * rows.std(0) / math.sqrt(count)
    return torch.stack([rows.mean(0) - reach, rows.mean(0) + reach])


def _student_quantile(confidence: float, freedom: int) -> float:
    """Find t with ``P(|T| <= t) = confidence``, by bisection of the angle whose tangent is ``t / sqrt(freedom)``."""
    odd = freedom % 2
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        # Abramowitz and Stegun, 26.7.3 and 26.7.4.
        total, term = 0.0, math.cos(angle) ** odd
        for power in range(odd, freedom - 1, 2):
            total += term
            term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
        inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
        low, high = (angle, high) if inside < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _check_rows(values: Tensor, confidence: float) -> None:
    if values.ndim != 2 or not bool(values.isfinite().all()):
        raise ValueError(f"values must be (n, K) and finite, got shape {tuple(values.shape)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
