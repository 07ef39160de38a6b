"""Recognise torch's errors for want of memory, and say what to change."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is torch's for want of memory, which on a CPU has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def release_memory(device: torch.device) -> None:
    """Give back the memory of tensors that nobody holds any more, before something smaller is tried."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def with_advice(error: BaseException, size: int, images: Sequence[int]) -> torch.OutOfMemoryError:
    """Make the error that says what to change, in place of the one that says how many bytes were missing.

    Args:
        error: torch's.
        size: images per model pass.
        images: (B, C, H, W), the shape of the call's images.
    """
    batch, *shape = images
    return torch.OutOfMemoryError(
        f"out of memory with {size} images of {tuple(shape)} per model pass: give a smaller internal_batch_size, or "
        f"fewer than {batch} images at a time if 1 is still too many. {error}"
    )
