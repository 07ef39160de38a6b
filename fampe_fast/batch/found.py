"""Describe the images found in a source, before they get positions in a plan."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from .urls import filesystem_of, is_url

# pandas writes whole numbers as fractions beside missing ones.
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")

Note = Callable[[str], None]
"""A function that is called with a line about files that are left out."""


class Found(NamedTuple):
    """An image in a source; the fields are those of ``plan.Row``.

    ``image_id`` is None if the source has none.
    """

    uri: str
    container: str | None = None
    offset: int | None = None
    size: int | None = None
    target: int | None = None
    image_id: int | None = None


def open_file(place: str) -> BinaryIO:
    """Open a source's file for reading at any place in it.

    Args:
        place: absolute path or URL.

    Raises:
        OSError: it cannot be read.
    """
    if not is_url(place):
        return Path(place).open("rb")
    system, path = filesystem_of(place)
    return cast(BinaryIO, system.open(path, "rb"))


def suffix_of(place: str) -> str:
    """Return the suffix of a path or an address in lower case, such as ".png"."""
    if is_url(place) and place.lower().startswith(("http://", "https://")):
        place = place.partition("?")[0]
    return os.path.splitext(place.rpartition("/")[2])[1].lower()


def whole_number(value: Any, low: int, high: int) -> int | None:
    """Read a whole number in [low, high] from a table's cell; None for anything else."""
    if isinstance(value, str):
        if not _WHOLE.fullmatch(value.strip()):
            return None
        value = int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high else None
