"""Recognise torch's out-of-memory errors, and add advice to them."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch

_WORDS = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "Triton Error [HIP]: out of memory",
    "STATUS_ALLOC_FAILED",  # of cuBLAS and cuDNN
    "CUFFT_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error is torch's out-of-memory error, which has no type of its own on a CPU, or a library's."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    )


def release_memory(device: torch.device) -> None:
    """Free the memory of unreferenced tensors before a smaller attempt."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def with_advice(error: BaseException, size: int, images: Sequence[int]) -> torch.OutOfMemoryError:
    """Make an out-of-memory error that says what to change.

    Args:
        error: torch's own error.
        size: images per model pass.
        images: (B, C, H, W), the shape of the call's images.
    """
    batch, *shape = images
    return torch.OutOfMemoryError(
        f"out of memory with {size} images of {tuple(shape)} per model pass: give a smaller internal_batch_size, or "
        f"fewer than {batch} images at a time if 1 is still too many. {error}"
    )
