"""Describe a method and its model for a record, and name files."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..methods.base import AttributionMethod, describe
from ..models.classifier import Classifier
from ..models.identity import identity_of
from .records import never_twice


def everything_of(method: AttributionMethod, classifier: Classifier) -> dict[str, object]:
    """Describe all that a method's maps of this classifier depend on; what cannot be known equals nothing else.

    The methods of this package say what they are set to; of others nobody knows what is the same the next time.
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


def unique_names(paths: Sequence[Path]) -> list[str]:
    """List file names without their endings; where several files share one, all but the first get a number.

    Names that differ in case or in the way accents are written are one and the same on some file systems.
    """
    taken: set[str] = set()
    next_number: dict[str, int] = {}
    names = []
    for path in paths:
        stem = _folded(path.stem)
        name = path.stem
        if stem in taken:
            number = next_number.get(stem, 2)
            while _folded(f"{path.stem}_{number}") in taken:
                number += 1
            next_number[stem] = number + 1
            name = f"{path.stem}_{number}"
        taken.add(_folded(name))
        names.append(name)
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
