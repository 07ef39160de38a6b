"""Recognise the errors after which this process cannot use a device any more."""

from __future__ import annotations

import torch


def is_of_device(error: Exception) -> bool:
    """Tell whether an error means that this process has lost its device, so that every later image would fail too."""
    kind = getattr(torch, "AcceleratorError", None)
    return (kind is not None and isinstance(error, kind)) or str(error).startswith(("CUDA error", "HIP error"))
