"""Recognise the errors after which this process cannot use a device any more."""

from __future__ import annotations

import re

import torch

from .out_of_memory import is_out_of_memory

_WORDS = re.compile(r"(CUDA|HIP)( driver)? error|Triton Error \[(CUDA|HIP)\]|(cuDNN|MIOpen) error: \w*EXECUTION_FAILED")


def is_of_device(error: Exception) -> bool:
    """Tell whether an error means that this process has lost its device, so that every later image would fail too."""
    kind = getattr(torch, "AcceleratorError", None)
    if is_out_of_memory(error):
        return False
    return (kind is not None and isinstance(error, kind)) or _WORDS.match(str(error)) is not None
