"""The one switch for tf32, TensorFloat-32, in which a GPU may round the factors of matrix products to 11 bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def tensor_float32(enabled: bool) -> Iterator[None]:
    """Allow or forbid tf32 for matrix products and convolutions; what was set before comes back.

    Torch 2.9 renamed these switches, and mixing old and new names raises there.
    """
    owners: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    modern = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    if modern:
        owners[1] = torch.backends.cudnn.conv  # type: ignore[attr-defined, unused-ignore]
    name = "fp32_precision" if modern else "allow_tf32"
    value: object = ("tf32" if enabled else "ieee") if modern else enabled
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, value)
        yield
    finally:
        for owner, old in zip(owners, before, strict=True):
            setattr(owner, name, old)
