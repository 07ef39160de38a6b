"""Keep freed memory for the next pass: on a CPU giving it back and faulting it in again can cost as much as a model.

A pass allocates and frees the same large blocks over and over. glibc takes those above a threshold straight from the
system and gives them back at once, and the system clears every page before it hands it out anew. MobileNetV2's forward
and backward passes of eight images take 22 ms each where the memory is kept, and 30 to 65 ms where it is not.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

VARIABLE = "FAMPE_FAST_KEEP_MEMORY"

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Kept: blocks up to a GiB come from the heap, and the heap does not shrink.
_KEEP = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1}
# Where glibc's own, adaptive thresholds arrive once large blocks have been freed.
_USUAL = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}

_lock = threading.Lock()
_users = 0


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep memory that a CPU's tensors free in the process while this is open, for the tensors that come.

    It is a setting of the whole process, and ends with the last block that asked for it: what is free then goes back to
    the system. The peak is the same. Does nothing on other devices and systems, where
    ``FAMPE_FAST_KEEP_MEMORY=0`` says so, and where the environment sets glibc's thresholds itself (``MALLOC_...``,
    ``GLIBC_TUNABLES``).

    Args:
        device: of the images.
    """
    allocator = _glibc() if device.type == "cpu" and _wanted() else None
    if allocator is None:
        yield
        return
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _keep(allocator)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _give_back(allocator)


def _wanted() -> bool:
    own = any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ
    return not own and os.environ.get(VARIABLE, "1") != "0"


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def _keep(allocator: ctypes.CDLL) -> None:
    _set(allocator, _KEEP)


def _give_back(allocator: ctypes.CDLL) -> None:
    _set(allocator, _USUAL)
    # The threshold only looks at the heap's end: one small block that lives there would hold all that is free below it.
    allocator.malloc_trim(0)


def _set(allocator: ctypes.CDLL, values: dict[int, int]) -> None:
    for name, value in values.items():
        if not allocator.mallopt(name, value):  # older versions take no larger threshold than their adaptive ones reach
            allocator.mallopt(name, _USUAL[name])
