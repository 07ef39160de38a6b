"""Define the package's exceptions and its one warning class."""

from __future__ import annotations

import os
import sys
import warnings

_PACKAGE = __name__.partition(".")[0]


class FampeWarning(UserWarning):
    """Something the caller should know, although the result is valid (a zero gradient, a fallback)."""


def warn(message: str) -> None:
    """Issue a ``FampeWarning`` that points to the line that called the package, however deep the cause is."""
    level, frame = 2, sys._getframe(1)
    # Frames of torch's and contextlib's decorators are between the package's own functions.
    between = (_PACKAGE, "torch", "contextlib")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in between:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, FampeWarning, stacklevel=level)


class ImageReadError(ValueError):
    """A file could not be read as an image.

    Attributes:
        path: the file, as given.
        reason: description of the problem.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(f"{self.path}: {reason}")


class WeightsUnavailableError(RuntimeError):
    """Pretrained weights are not available; the message says which, and what to do instead."""


class BackendUnavailableError(RuntimeError):
    """A backend that was chosen by name cannot run here; the message says why."""


def kind_and_line(error: BaseException) -> str:
    """Return the class name of an error and the first line of its message."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class name if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
