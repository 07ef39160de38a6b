"""In which arithmetic the model runs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ..runtime.tf32 import tensor_float32
from .config import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# A confident model's gradients lie below float16's smallest number; the step divides by their mean: a factor is free.
LOSS_SCALE = {"fp16": 2.0**12}


def matrix_precision(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """On a GPU: ``tf32`` allows tf32, everything else forbids it; to be entered around the model's passes."""
    return tensor_float32(precision == "tf32") if device.type == "cuda" else nullcontext()


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """``bf16`` and ``fp16``: autocast of what runs inside, which is the model alone."""
    if precision not in _AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])
