"""Switch tf32 on and off: TensorFloat-32, in which a GPU may round the factors of matrix products to 11 bits."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch


@contextmanager
def tensor_float32(enabled: bool | None) -> Iterator[None]:
    """Allow or forbid tf32 for matrix products and convolutions; what was set before comes back.

    The switches belong to the whole process. Threads that want the same share them, and the last to leave puts them
    back; a thread that wants the other waits until they have left. Of blocks within each other the innermost counts
    alone: a thread that waits holds nothing that others wait for.

    Torch 2.9 added new switches beside the old ones, which then refuse to be read, by inductor among others, once the
    two disagree. Setting an old one sets the new ones along, so the old ones are set, and the new ones put back after.

    Args:
        enabled: whether tf32 may be used inside; None for what the process has set outside of all such blocks.
    """
    thread = threading.get_ident()
    with _TURN:
        wanted = _WANTED.setdefault(thread, [])
        _change(thread, enabled)
        wanted.append(enabled)
    try:
        yield
    finally:
        with _TURN:
            wanted.pop()
            if wanted:
                _change(thread, wanted[-1])
            else:
                del _WANTED[thread]
                _leave(thread)


def matrix_precision() -> str | bool:
    """Return how products of float32 matrices are computed on a GPU now: torch's newer word or its older switch."""
    matmul: Any = torch.backends.cuda.matmul
    return matmul.fp32_precision if hasattr(matmul, "fp32_precision") else bool(matmul.allow_tf32)


def tf32_in_use() -> tuple[bool, bool]:
    """Tell whether a GPU may use tf32 now for products of float32 matrices, and for convolutions."""
    cudnn: Any = torch.backends.cudnn
    convolutions = cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else bool(cudnn.allow_tf32)
    return matrix_precision() in ("tf32", True), convolutions in ("tf32", True)


@dataclass
class _Setting:
    """The setting that threads share now, and how to undo it."""

    enabled: bool | None = None
    put_back: Callable[[], None] = lambda: None
    threads: set[int] = field(default_factory=set)


_TURN = threading.Condition()
_WANTED: dict[int, list[bool | None]] = {}
_NOW = _Setting()


def _change(thread: int, enabled: bool | None) -> None:
    """Leave the setting that a thread holds, unless it is this one, and wait for this one."""
    if thread in _NOW.threads and _NOW.enabled == enabled:
        return
    _leave(thread)
    _TURN.wait_for(lambda: not _NOW.threads or _NOW.enabled == enabled)
    if not _NOW.threads:
        _NOW.enabled, _NOW.put_back = enabled, _set(enabled)
    _NOW.threads.add(thread)


def _leave(thread: int) -> None:
    _NOW.threads.discard(thread)
    if not _NOW.threads:
        _NOW.put_back()
        _NOW.put_back = lambda: None
        _TURN.notify_all()


def _set(enabled: bool | None) -> Callable[[], None]:
    """Set the switches; the result puts them back.

    For None only an old switch is set that cannot be read, to what the new one says.
    """
    old: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    new = [part for part in (old[0], *_parts(old[1])) if hasattr(part, "fp32_precision")]
    with _quiet():
        before = [_read(owner) for owner in old]
        wanted = dict.fromkeys(range(len(old)), enabled)
        if enabled is None:
            wanted = {k: now for k, now in enumerate(tf32_in_use()) if before[k] is None}
        precisions = [owner.fp32_precision for owner in new]
        for k, value in wanted.items():
            old[k].allow_tf32 = value
        for part in new:
            if enabled is False and part.fp32_precision == "tf32":  # inherited from a switch above these
                part.fp32_precision = "ieee"

    def put_back() -> None:
        with _quiet():
            for k, value in wanted.items():
                old[k].allow_tf32 = value if before[k] is None else before[k]
            for part, precision in zip(new, precisions, strict=True) if wanted else ():
                part.fp32_precision = precision

    return put_back


def _parts(cudnn: Any) -> list[Any]:
    return [getattr(cudnn, name) for name in ("conv", "rnn") if hasattr(cudnn, name)]


def _read(owner: Any) -> bool | None:
    """Read an old switch; None where the caller has set the new ones otherwise."""
    try:
        return bool(owner.allow_tf32)
    except RuntimeError:
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's advice to use the new switches, which is not for our callers.

    Only inside the lock: the filters belong to the whole process.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
