"""Fill fresh memory so that unwritten values are found."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill memory that torch hands out uninitialised inside the context with NaN, or the largest integer.

    It is torch's own switch (``torch.utils.deterministic.fill_uninitialized_memory``), so it reaches allocations made
    in C++ extensions through ATen too; memory from elsewhere (``cudaMalloc``, a library's workspace) it does not reach.
    Torch's deterministic algorithms are on as a side effect; both switches are put back at the end.
    """
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined, unused-ignore]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        try:
            torch.use_deterministic_algorithms(True, warn_only=True)
            deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined, unused-ignore]
            yield
        finally:
            deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined, unused-ignore]
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
