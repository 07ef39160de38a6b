"""Define the package's exceptions and its one warning class."""

from __future__ import annotations

import os
import sys
import warnings

_PACKAGE = __name__.partition(".")[0]


class FampeWarning(UserWarning):
    """Something the caller should know, though the result stands (a zero gradient, a fallback taken)."""


def warn(message: str) -> None:
    """Give a ``FampeWarning`` that names the line which called the package, however deep inside it the reason lies."""
    level, frame = 2, sys._getframe(1)
    # torch's and contextlib's decorators stand between the package's own functions.
    between = (_PACKAGE, "torch", "contextlib")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in between:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, FampeWarning, stacklevel=level)


class ImageReadError(ValueError):
    """A file could not be read as an image.

    Attributes:
        path: the file, as it was given.
        reason: what is wrong with it, in words.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")


class WeightsUnavailableError(RuntimeError):
    """Pretrained weights could not be had; the message says which and what to do instead."""


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why."""


def first_line(error: BaseException) -> str:
    """Take the first line of an error's message, or its class name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
