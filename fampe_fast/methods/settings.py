"""Describe everything that a method's maps depend on besides the images."""

from __future__ import annotations

import secrets
from typing import Any

from ..models.classifier import Classifier
from ..models.identity import identity_of
from .base import AttributionMethod, describe


def everything_of(method: AttributionMethod, classifier: Classifier) -> dict[str, object]:
    """Describe everything that a method's maps of this classifier depend on; unknown parts compare unequal.

    This package's methods describe their settings; those of other libraries are unknown, so nothing is reused.
    """
    settings: dict[str, object] = describe(method)
    inner: Any = method
    own = True
    while own:
        own = type(inner).__module__.partition(".")[0] == __name__.partition(".")[0]
        if not callable(getattr(getattr(inner, "method", None), "attribute", None)):
            break
        inner = inner.method
    explorer = getattr(inner, "explorer", None)
    if isinstance(explorer, Classifier):
        settings["explorer"] = identity_of(explorer)
    elif explorer is not None:
        own = False
    if not own or getattr(inner, "forward_func", None) is not classifier:
        settings["unknown"] = never_twice()
    return settings


def unfiltered(method: Any) -> Any:
    """Return the method inside any filters of its maps."""
    while callable(getattr(getattr(method, "method", None), "attribute", None)):
        method = method.method
    return method


def never_twice() -> str:
    """Make a value that no other run has, so that results that depend on something unknown are never reused."""
    return secrets.token_hex(8)
