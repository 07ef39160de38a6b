"""Compute Spearman's rank correlation, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rank_agreement", "rank_correlation", "ranks"]


def ranks(values: Tensor) -> Tensor:
    """Rank each row from 1; equal values get the mean of their ranks.

    Args:
        values: (B, n), finite, of any real type.

    Returns:
        (B, n) float64.
    """
    values = values.contiguous()
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values)
    not_above = torch.searchsorted(ordered, values, right=True)
    return (below + not_above + 1).double() / 2


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Compute Pearson's correlation of two rows' ranks.

    Args:
        a: (B, n), finite.
        b: (B, n), finite; n the same.

    Returns:
        (B,) float64 in [-1, 1]; 0 where a row is constant, as its ranks have no correlation.
    """
    middle = (a.shape[1] + 1) / 2
    first, second = ranks(a) - middle, ranks(b) - middle
    spread = ((first**2).sum(1) * (second**2).sum(1)).sqrt()
    return ((first * second).sum(1) / torch.where(spread > 0, spread, 1)).clamp(-1, 1)


def rank_agreement(a: Tensor, b: Tensor) -> Tensor:
    """Compute the rank correlation, with 1 for two rows of the same order, also for two constant rows.

    Args and result as of ``rank_correlation``.
    """
    same = (ranks(a) == ranks(b)).all(1)
    return torch.where(same, 1, rank_correlation(a, b))
