"""Choose the precision that the model runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from ..runtime.tf32 import tensor_float32, tf32_in_use
from .config import Precision

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}

# A confident model's gradients underflow in float16; the step divides by their mean, so scaling them has no effect.
LOSS_SCALE = {"fp16": 2.0**12}


def matrix_precision(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Allow tf32 on a GPU for ``tf32``, follow the process for ``auto``, and forbid it for all else.

    Opened around the model's passes. The samples and the sums that lie between them use no product that it rounds:
    ``ops.separable_transform`` forbids tf32 for itself.
    """
    if device.type != "cuda":
        return nullcontext()
    return tensor_float32(None if precision == "auto" else precision == "tf32")


def settled_precision(precision: Precision, device: torch.device) -> str:
    """Name the arithmetic that ``auto`` stands for on a device in this process; other names are their own.

    Args:
        precision: of a configuration.
        device: where the model runs.

    Returns:
        "fp32", "tf32", or "fp32 with tf32 convolutions" or "fp32 with tf32 products" where the process allows tf32 for
        one of the two alone, as torch does for convolutions by default.
    """
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    with tensor_float32(None):
        products, convolutions = tf32_in_use()
    if products and convolutions:
        return "tf32"
    part = "products" if products else "convolutions" if convolutions else ""
    return f"fp32 with tf32 {part}" if part else "fp32"


def cast_dtype(precision: Precision) -> torch.dtype | None:
    """Return the dtype that autocast converts weights to; None without autocast."""
    return _AUTOCAST.get(precision)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Run the model's passes inside the context under autocast for ``bf16`` and ``fp16``."""
    if precision not in _AUTOCAST:
        return nullcontext()
    return torch.autocast(device.type, dtype=_AUTOCAST[precision])


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run a model's passes inside as a configuration's precision has them."""
    with matrix_precision(precision, device), autocast(precision, device):
        yield
