"""Switch tf32 on and off: TensorFloat-32, in which a GPU may round the factors of matrix products to 11 bits."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@contextmanager
def tensor_float32(enabled: bool) -> Iterator[None]:
    """Allow or forbid tf32 for matrix products and convolutions; what was set before comes back.

    The switches belong to the whole process. Threads that want the same share them, and the last to leave puts them
    back; a thread that wants the other waits until they have left.

    Torch 2.9 added new switches beside the old ones, which then refuse to be read, by inductor among others, once the
    two disagree. Setting an old one sets the new ones along, so the old ones are set, and the new ones put back after.

    Args:
        enabled: whether tf32 may be used inside.
    """
    thread = threading.get_ident()
    with _TURN:
        _TURN.wait_for(
            lambda: not _LEVELS or _LEVELS[-1].enabled == enabled or all(set(v.threads) <= {thread} for v in _LEVELS)
        )
        if not _LEVELS or _LEVELS[-1].enabled != enabled:
            _LEVELS.append(_Level(enabled, _set(enabled), Counter()))
        level = _LEVELS[-1]
        level.threads[thread] += 1
    try:
        yield
    finally:
        with _TURN:
            level.threads[thread] -= 1
            if not level.threads[thread]:
                del level.threads[thread]
            while _LEVELS and not _LEVELS[-1].threads:
                _LEVELS.pop().put_back()
            _TURN.notify_all()


def matrix_precision() -> str | bool:
    """Return how products of float32 matrices are computed on a GPU now: torch's newer word or its older switch."""
    matmul: Any = torch.backends.cuda.matmul
    return matmul.fp32_precision if hasattr(matmul, "fp32_precision") else bool(matmul.allow_tf32)


@dataclass
class _Level:
    """A setting, how to undo it, and how often each thread has asked for it."""

    enabled: bool
    put_back: Callable[[], None]
    threads: Counter[int]


_TURN = threading.Condition()
_LEVELS: list[_Level] = []


def _set(enabled: bool) -> Callable[[], None]:
    """Set the switches; the result puts them back."""
    old: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    new = [part for part in (old[0], *_parts(old[1])) if hasattr(part, "fp32_precision")]
    with _quiet():
        before = [_read(owner) for owner in old]
        precisions = [owner.fp32_precision for owner in new]
        for owner in old:
            owner.allow_tf32 = enabled
        for part in new:
            if not enabled and part.fp32_precision == "tf32":  # inherited from a switch above these
                part.fp32_precision = "ieee"

    def put_back() -> None:
        with _quiet():
            for owner, value in zip(old, before, strict=True):
                owner.allow_tf32 = enabled if value is None else value
            for part, precision in zip(new, precisions, strict=True):
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
