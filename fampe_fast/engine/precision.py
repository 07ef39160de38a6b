"""In which arithmetic the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .config import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# A confident model's gradients lie below float16's smallest number; the step divides by their mean: a factor is free.
LOSS_SCALE = {"fp16": 2.0**12}


@contextmanager
def model_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run the model's passes inside this: ``bf16`` and ``fp16`` by autocast, ``tf32`` on or off on a GPU."""
    if precision in _AUTOCAST:
        with torch.autocast(device.type, dtype=_AUTOCAST[precision]):
            yield
        return
    if device.type != "cuda":
        yield
        return
    with _tensor_float32(precision == "tf32"):
        yield


@contextmanager
def _tensor_float32(enabled: bool) -> Iterator[None]:
    """Torch 2.9 renamed these switches, and mixing old and new names raises there."""
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
