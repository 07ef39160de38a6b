"""Compute a fingerprint of a model for records, as its name does not identify it."""

from __future__ import annotations

from ..runtime.model import Model
from .digest import digest_of

# Attributes that only name the model and its classes.
_NAMES = ("name", "class_names")


def identity_of(model: Model) -> dict[str, object]:
    """Return a model's name and a fingerprint of everything that its outputs (a classifier's, for files) depend on.

    Args:
        model: the model, all of whose weights are read (a tenth of a second per 100 MB).

    Returns:
        ``model``, its name or, without one, its class; and ``fingerprint``, 16 hexadecimal digits of SHA-256 over
        the modules with their classes' code and all their settings, every parameter and buffer (including the
        normalisation), input size, transform and every other attribute of the classifier except its names. It is the
        same in every process, on every device and in every memory format, for the same Python version (as it contains
        the compiled code of classes and functions outside libraries).
    """
    name = getattr(model, "name", None)
    return {
        "model": name if isinstance(name, str) else type(model).__name__,
        "fingerprint": digest_of(model, without=_NAMES)[:16],
    }
