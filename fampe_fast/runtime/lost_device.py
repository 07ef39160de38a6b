"""Recognise the errors after which a device is of no use to this process any more."""

from __future__ import annotations

import torch


def is_of_device(error: Exception) -> bool:
    """Tell whether the device is lost to this process, and every later image with it."""
    kind = getattr(torch, "AcceleratorError", None)
    return (kind is not None and isinstance(error, kind)) or str(error).startswith(("CUDA error", "HIP error"))
