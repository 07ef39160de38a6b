"""Name the files of a run."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path


def unique_names(paths: Sequence[Path]) -> list[str]:
    """List file names without extensions; all but the first of equal ones get a number.

    Names that differ only in case or Unicode normalisation are equal on some file systems.
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
