"""Draw random numbers with Philox4x32, the counter-based generator that the whole package uses.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Ten rounds are the authors' choice with a safety margin (seven already pass BigCrush) and the published default.
ROUNDS = 10

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor], rounds: int = ROUNDS) -> Words:
    """Draw four random 32-bit words for every counter.

    Args:
        counter: four int64 tensors with values in [0, 2^32), of shapes that broadcast together.
        key: two int64 tensors with values in [0, 2^32), broadcast against the counter.
        rounds: number of rounds, 10 unless a test wants another published vector.

    Returns:
        Four int64 tensors of the broadcast shape, values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_ in range(rounds):
        if round_:
            k0 = (k0 + _WEYL[0]) & _MASK
            k1 = (k1 + _WEYL[1]) & _MASK
        # The 64-bit product wraps into the sign bit; shift and mask read its two halves all the same.
        p0 = c0 * _MULTIPLIERS[0]
        p1 = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) & _MASK ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) & _MASK ^ c3 ^ k1, p0 & _MASK
    return c0, c1, c2, c3


def split_seed(seed: Tensor) -> tuple[Tensor, Tensor]:
    """Split a 64-bit seed (int64, any shape) into the key: its low and its high 32 bits."""
    return seed & _MASK, (seed >> 32) & _MASK


def to_uniform(words: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert words in [0, 2^32) to numbers in the open interval (-1, 1): ``2 * ((w >> 8) * 2^-24 + 2^-25) - 1``.

    Evaluated as an odd integer times 2^-24, which float32 holds exactly; term by term the sum would round, and reach 1.
    """
    return ((words >> 8) * 2 - 0xFFFFFF).to(dtype) * 2.0**-24
