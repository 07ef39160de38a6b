"""The one switch for tf32, TensorFloat-32, in which a GPU may round the factors of matrix products to 11 bits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tensor_float32(enabled: bool) -> Iterator[None]:
    """Allow or forbid tf32 for matrix products and convolutions; what was set before comes back.

    Torch 2.9 added new switches beside the old ones, which then refuse to be read, by inductor among others, once the
    two disagree. Setting an old one sets the new ones along, so the old ones are set, and the new ones put back after.
    """
    old: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    new = [part for part in (old[0], *_parts(old[1])) if hasattr(part, "fp32_precision")]
    with _quiet():
        before = [_read(owner) for owner in old]
        precisions = [owner.fp32_precision for owner in new]
        for owner in old:
            owner.allow_tf32 = enabled
        for part in new:
            if not enabled and part.fp32_precision == "tf32":  # inherited from a switch above these
                part.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _quiet():
            for owner, value in zip(old, before, strict=True):
                owner.allow_tf32 = enabled if value is None else value
            for part, precision in zip(new, precisions, strict=True):
                part.fp32_precision = precision


def _parts(cudnn: Any) -> list[Any]:
    return [getattr(cudnn, name) for name in ("conv", "rnn") if hasattr(cudnn, name)]


def _read(owner: Any) -> bool | None:
    """An old switch; None where the caller has set the new ones otherwise."""
    try:
        return bool(owner.allow_tf32)
    except RuntimeError:
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice to use the new switches, which is not for our callers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
