"""Choose the precision that the model runs in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from ..runtime.tf32 import tensor_float32
from .config import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# A confident model's gradients underflow in float16; the step divides by their mean, so scaling them has no effect.
LOSS_SCALE = {"fp16": 2.0**12}


def matrix_precision(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Allow tf32 on a GPU for ``tf32`` and forbid it for all else, around the model's passes."""
    return tensor_float32(precision == "tf32") if device.type == "cuda" else nullcontext()


def cast_dtype(precision: Precision) -> torch.dtype | None:
    """Return the dtype that autocast converts weights to; None without autocast."""
    return _AUTOCAST.get(precision)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Run the model's passes inside the context under autocast for ``bf16`` and ``fp16``."""
    if precision not in _AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])
