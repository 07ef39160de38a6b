"""A fingerprint of a model for records, as its name does not tell it from another."""

from __future__ import annotations

from ..runtime.model import Model
from .digest import digest_of

# How it is called, and how its classes are.
_NAMES = ("name", "class_names")


def identity_of(model: Model) -> dict[str, object]:
    """Give a model's name and a fingerprint of all that its answers depend on; a classifier's, to an image file.

    Args:
        model: with its weights; reads every one of them (a tenth of a second per 100 MB).

    Returns:
        ``model``, its name or, where it has none, its class; and ``fingerprint``, 16 hexadecimal digits of SHA-256 over
        the modules with their classes' code and all their settings, every parameter and buffer (the normalisation among
        them), input size, transform and every other attribute of the classifier but its names. It is the same in every
        process, on every device and in every memory format, as long as the Python version is (of classes and functions
        that belong to no library, the compiled code counts).
    """
    name = getattr(model, "name", None)
    return {
        "model": name if isinstance(name, str) else type(model).__name__,
        "fingerprint": digest_of(model, without=_NAMES)[:16],
    }
