"""Keep freed memory for the next pass: on a CPU, returning it and faulting it in again can take as long as a pass.

A pass allocates and frees the same large blocks over and over. glibc takes those above a threshold straight from the
system and gives them back at once, and the system clears every page before it hands it out anew. MobileNetV2's forward
and backward passes of eight images take 22 ms each where the memory is kept, and 30 to 65 ms where it is not. A map of
one pass is one such pass, so the memory is kept from call to call, and goes back when no call has come for a while.
"""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

VARIABLE = "FAMPE_FAST_KEEP_MEMORY"

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Kept: blocks up to a GiB come from the heap, and the heap does not shrink.
_KEEP = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1}
# The values that glibc's adaptive thresholds reach after large blocks have been freed.
_USUAL = {_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}

IDLE = 1.0
"""Seconds after the last call until free memory goes back to the system."""

_lock = threading.Lock()
_users = 0
_last = 0.0
_waiting = False


@contextmanager
def kept_memory(device: torch.device) -> Iterator[None]:
    """Keep the memory of freed CPU tensors in the process while this context is open, for later tensors.

    The setting applies to the whole process until the last such context has been closed for ``IDLE`` seconds: free
    memory then goes back to the system, by a thread that ends with it. The peak is the same. Does nothing on other
    devices and systems, with ``FAMPE_FAST_KEEP_MEMORY=0``, and where the environment sets glibc's thresholds itself
    (``MALLOC_...``, ``GLIBC_TUNABLES``).

    Args:
        device: the images' device.
    """
    allocator = _glibc() if device.type == "cpu" and _wanted() else None
    if allocator is None:
        yield
        return
    global _users, _last, _waiting
    with _lock:
        _users += 1
        if _users == 1:
            _keep(allocator)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            _last = time.monotonic()
            start = _users == 0 and not _waiting
            _waiting = _waiting or start
        if start:
            threading.Thread(target=_give_back_later, args=(allocator,), name="kept memory", daemon=True).start()


def _give_back_later(allocator: ctypes.CDLL) -> None:
    """Wait until no context has been open for ``IDLE`` seconds; one that is open starts another wait when it closes."""
    global _waiting
    while True:
        with _lock:
            left = _last + IDLE - time.monotonic()
            if _users or left <= 0:
                _waiting = False
                if not _users:
                    _give_back(allocator)
                return
        time.sleep(left)


def _forget_thread() -> None:
    """In a forked process, which has no such thread."""
    global _waiting, _lock
    _waiting, _lock = False, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_thread)


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
    # The threshold applies only to the heap's end: one small block in use there would keep all free memory below it.
    allocator.malloc_trim(0)


def _set(allocator: ctypes.CDLL, values: dict[int, int]) -> None:
    for name, value in values.items():
        if not allocator.mallopt(name, value):  # older versions limit the threshold
            allocator.mallopt(name, _USUAL[name])
