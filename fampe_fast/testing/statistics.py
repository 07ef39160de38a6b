"""Test noise and multipliers statistically.

Every threshold is a number of standard errors of the statistic that it bounds, five by default: with fixed seeds they
pass or fail for good, and another seed would fail a right generator with odds of about 1e-6 for each comparison.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reference.radius import multiplicity
from .error_rule import assert_same, assert_true

SIGMAS = 5.0


def assert_near(statistic: float, expected: float, error: float, what: str, sigmas: float = SIGMAS) -> None:
    """Assert that ``statistic`` is within ``sigmas`` standard errors of ``expected``."""
    off = abs(statistic - expected) / error
    assert_true(off <= sigmas, f"{what}: {statistic:.6g}, expected {expected:.6g}, {off:.1f} standard errors off")


def assert_uniform(values: Tensor, what: str = "multiplier", sigmas: float = SIGMAS) -> None:
    """Assert independent draws from U(-1, 1): range, mean, variance, fourth moment and a histogram of 32 bins.

    Args:
        values: any shape, at least a few hundred.
        what: name in the message.
        sigmas: standard errors allowed.

    Raises:
        AssertionError: one of them is off.
    """
    values = values.detach().cpu().double().flatten()
    count = values.numel()
    assert_true(bool((values.abs() < 1).all()), f"{what}: a value lies outside (-1, 1), or is not finite")
    for power, mean, variance in ((1, 0.0, 1 / 3), (2, 1 / 3, 1 / 5 - 1 / 9), (4, 1 / 5, 1 / 9 - 1 / 25)):
        moment = float((values**power).mean())
        assert_near(moment, mean, math.sqrt(variance / count), f"{what}: moment {power}", sigmas)
    bins = torch.bincount(((values + 1) * 16).long(), minlength=32).double()
    chi_square = float(((bins - count / 32) ** 2).sum() / (count / 32))
    assert_near(chi_square, 31, math.sqrt(2 * 31), f"{what}: chi-square of 32 bins", sigmas)


def assert_independent(first: Tensor, second: Tensor, what: str = "multipliers", sigmas: float = SIGMAS) -> None:
    """Assert that two sets of draws from U(-1, 1), same shape, are uncorrelated, and so are their squares.

    Raises:
        AssertionError: a correlation is further from 0 than its standard error 1/sqrt(count) allows.
    """
    first, second = (t.detach().cpu().double().flatten() for t in (first, second))
    for what_else, one, other in (("", first, second), (" squared", first**2, second**2)):
        correlation = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
        assert_near(correlation, 0, 1 / math.sqrt(len(one)), f"{what}{what_else}: correlation", sigmas)


def assert_white(pixels: Tensor, what: str = "noise", sigmas: float = SIGMAS) -> None:
    """Assert white Gaussian noise of unit variance over pixels, made from a spectrum that is uniform per coefficient.

    Mean; variance over all and at every pixel; correlation at every spatial shift; excess kurtosis, whose expectation
    for such noise is about -1.2/(HW).

    Args:
        pixels: (n, H, W), independent images.
        what: name in the message.
        sigmas: standard errors allowed.

    Raises:
        AssertionError: one of them is off.
    """
    pixels = pixels.detach().cpu().double()
    images, height, width = pixels.shape
    count = pixels.numel()
    assert_true(bool(pixels.isfinite().all()), f"{what}: not finite")
    assert_near(float(pixels.mean()), 0, 1 / math.sqrt(count), f"{what}: mean", sigmas)
    square = pixels**2
    assert_near(float(square.mean()), 1, math.sqrt(2 / count), f"{what}: variance", sigmas)
    worst = float(square.mean(0).flatten()[(square.mean(0) - 1).abs().argmax()])
    assert_near(worst, 1, math.sqrt(2 / images), f"{what}: variance at the worst pixel", sigmas)
    power = torch.fft.fft2(pixels).abs().square().mean(0)
    correlation = torch.fft.ifft2(power).real / (height * width)
    correlation[0, 0] = 0
    worst = float(correlation.flatten()[correlation.abs().argmax()])
    # A shift by half a period pairs every two pixels twice: half as many independent products.
    assert_near(worst, 0, math.sqrt(2 / count), f"{what}: correlation at the worst shift", sigmas)
    kurtosis = float((square**2).mean() / square.mean() ** 2) - 3
    assert_near(kurtosis, -1.2 / (height * width), math.sqrt(24 / count), f"{what}: excess kurtosis", sigmas)


def assert_hermitian(spectrum: Tensor, width: int, what: str = "spectrum") -> None:
    """Assert the symmetry of a real image's transform, to the bit, in a half spectrum's columns DC and Nyquist.

    Args:
        spectrum: (..., H, W//2+1), complex.
        width: W of the images.
        what: name in the message.

    Raises:
        AssertionError: a value at row H-u is not the conjugate of the one at row u.
    """
    spectrum = spectrum.detach().cpu().resolve_conj()
    for column in (multiplicity(width) == 1).nonzero().flatten().tolist():
        values = spectrum[..., column]
        mirrored = values.roll(-1, -1).flip(-1).conj().resolve_conj()  # row H-u
        assert_same(values, mirrored, f"{what}: column {column} against its conjugate mirror")
