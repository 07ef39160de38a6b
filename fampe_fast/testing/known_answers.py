"""Keep results known from publications or from the formula itself, for tests that do not use the reference."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class PhiloxVector(NamedTuple):
    """One published vector of Philox4x32."""

    rounds: int
    counter: tuple[int, ...]
    """Four words."""
    key: tuple[int, ...]
    """Two words, the low half of a 64-bit seed first."""
    words: tuple[int, ...]
    """The four words of the result."""


def _vector(rounds: int, counter: str, key: str, words: str) -> PhiloxVector:
    numbers = (tuple(int(word, 16) for word in text.split()) for text in (counter, key, words))
    return PhiloxVector(rounds, *numbers)


PHILOX: tuple[PhiloxVector, ...] = (
    _vector(7, "00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    _vector(7, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    _vector(7, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    _vector(10, "00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    _vector(10, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    _vector(10, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
)
"""Random123 1.14.0, tests/kat_vectors (Salmon et al., SC 2011)."""


def uniform_of(word: int) -> float:
    """Turn a word into a number in (-1, 1): ``2 * ((w >> 8) * 2^-24 + 2^-25) - 1``, exactly."""
    return 2 * ((word >> 8) * 2.0**-24 + 2.0**-25) - 1


UNIFORM_WORDS: tuple[int, ...] = (0, 255, 256, 2**31 - 1, 2**31, 2**32 - 256, 2**32 - 1)
"""Words at the ends and in the middle of the range, and on both sides of a step of ``uniform_of``."""


class CutoffTies(NamedTuple):
    """A spectrum with energy in three shells, and cut-offs for exactly and slightly more than its discs' shares."""

    spectrum: Tensor
    """(1, 1, 16, 9) complex64."""
    width: int
    expected: tuple[tuple[float, int], ...]
    """(tau, cut-off)."""


def cutoff_ties() -> CutoffTies:
    """Put energies 8, 4, 4 at the radii 2, 5 (exactly: 3, 4) and 6 of a 16 x 16 image."""
    spectrum = torch.zeros(1, 1, 16, 9, dtype=torch.complex64)
    spectrum[0, 0, 0, 2] = 2  # inside the half spectrum, counted twice: 8 of 16
    spectrum[0, 0, 3, 4] = torch.tensor(1 + 1j)  # 4 of 16
    spectrum[0, 0, 6, 0] = 2  # in the DC column, once: 4 of 16
    return CutoffTies(spectrum, 16, ((0.5, 2), (0.5000001, 5), (0.75, 5), (0.7500001, 6), (1.0, 6)))


def wave(height: int, width: int, across: int, down: int, offset: float = 0.0) -> Tensor:
    """Draw a sine with given numbers of periods along width and height, (1, 1, H, W) float32.

    All its energy but the offset's lies at radius ``min(H, W) * sqrt((down/H)^2 + (across/W)^2)``.
    """
    rows = torch.arange(height, dtype=torch.float64)[:, None] * down / height
    columns = torch.arange(width, dtype=torch.float64) * across / width
    return (torch.sin(2 * math.pi * (rows + columns) + 0.3) + offset).float()[None, None]
