"""Errors of a device: those after which it is lost, and those that ask for a smaller attempt."""

from __future__ import annotations

import pytest
import torch

from fampe_fast.runtime.lost_device import is_of_device
from fampe_fast.runtime.out_of_memory import is_out_of_memory


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA driver error: unknown error",
        "HIP error: the operation cannot be performed in the present state",
        "Triton Error [CUDA]: an illegal memory access was encountered",
        "Triton Error [HIP]: Code: 700, Messsage: invalid",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_a_device_is_lost(message: str) -> None:
    assert is_of_device(RuntimeError(message))
    assert not is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_memory_is_short_and_the_device_is_there(error: RuntimeError) -> None:
    assert is_out_of_memory(error)
    assert not is_of_device(error)


@pytest.mark.parametrize("message", ["mat1 and mat2 have other shapes", "cuDNN error: CUDNN_STATUS_BAD_PARAM"])
def test_other_errors_are_of_neither_kind(message: str) -> None:
    assert not is_of_device(RuntimeError(message))
    assert not is_out_of_memory(RuntimeError(message))


def test_torch_s_own_kind_of_error_is_of_the_device() -> None:
    kind = getattr(torch, "AcceleratorError", None)
    if kind is None:
        pytest.skip("this torch has no AcceleratorError")
    assert is_of_device(kind("an ECC error"))
    assert not is_of_device(kind("CUDA error: out of memory"))
