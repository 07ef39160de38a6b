"""Read the labels or image ids of image files from a JSON or CSV file."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ..errors import warn
from ..files import read_text

# pandas writes whole numbers as fractions beside missing ones.
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")
_ANY_NUMBER = re.compile(r"[+-]?\.?[0-9]")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with repeated keys, of which a dict would silently keep only the last."""


@dataclass(frozen=True)
class _Words:
    """Words for a number, for several, and for its kind, in messages."""

    one: str
    all: str
    number: str


_LABELS = _Words("label", "labels", "class index")
_IDS = _Words("id", "image ids", "image id")


def read_labels(path: Path) -> dict[str, int]:
    """Read class indices by file name.

    Args:
        path: UTF-8 text, with or without a byte order mark: JSON ``{"name.jpg": 7}`` or ``{"name.jpg": {"index": 7,
            ...}}``, or CSV with rows ``name.jpg,7`` and optionally a header. A name may begin with folders.

    Raises:
        ValueError: not readable as either, or an image has two labels; the message names the entry.
    """
    return _read(path, _LABELS)


def read_image_ids(path: Path) -> dict[str, int]:
    """Read image ids by file name, from a file in the format of ``read_labels``.

    Raises:
        ValueError: not readable, or an image has two ids; the message names the entry.
    """
    return _read(path, _IDS)


def _read(path: Path, words: _Words) -> dict[str, int]:
    text = read_text(path, words.all)
    if path.suffix.lower() == ".csv":
        try:
            return _each_once(_from_csv(text, path, words), path, words)
        except csv.Error as error:
            raise ValueError(f"the {words.all} {path} are not CSV: {error}") from error
    try:
        entries = json.loads(text, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError) as error:  # ValueError also for a number with thousands of digits
        raise ValueError(
            f"the {words.all} {path} are not JSON ({error}); expected JSON, or CSV in a file named *.csv"
        ) from error
    if not isinstance(entries, _Pairs):
        raise ValueError(
            f"the {words.all} {path} must be a JSON object from file name to {words.number}, got a list or a value"
        )
    found = ((name, index) for name, entry in entries for index in _indices(name, entry, path, words))
    return _each_once(found, path, words)


def _indices(name: str, entry: object, path: Path, words: _Words) -> list[int]:
    """Read the number of an entry, or several if its key is repeated."""
    given = [value for key, value in entry if key == "index"] if isinstance(entry, _Pairs) else [entry]
    found = [index for index in given if isinstance(index, int) and not isinstance(index, bool)]
    if not found or len(found) < len(given):
        shown = dict(entry) if isinstance(entry, _Pairs) else entry
        article = "an" if words.number[0] in "aeiou" else "a"
        raise ValueError(
            f"the {words.all} {path} give {name!r} as {shown!r}; expected {article} {words.number} or {{'index': ...}}"
        )
    return found


def _from_csv(text: str, path: Path, words: _Words) -> Iterable[tuple[str, int]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    first = True
    for row in reader:
        if not row:
            continue
        head, first = first, False
        if len(row) > 1 and _NUMBER.fullmatch(row[1].strip()):
            yield row[0].strip(), int(row[1].partition(".")[0])
        elif not head or (len(row) > 1 and _ANY_NUMBER.match(row[1].strip())):  # a header has no number there
            raise ValueError(
                f"the {words.all} {path}, line {reader.line_num}: expected 'file name,{words.number}', got "
                f"{_shown(row)}"
            )


def _shown(row: list[str]) -> str:
    text = repr(row)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _each_once(entries: Iterable[tuple[str, int]], path: Path, words: _Words) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, index in entries:
        if found.setdefault(name, index) != index:
            raise ValueError(f"the {words.all} {path} give {name!r} twice, as {found[name]} and as {index}")
    return found


def labels_of(paths: Sequence[Path], labels: dict[str, int], classes: int | None) -> list[int]:
    """Find the label of every file by its name, or by the end of its path, independent of Unicode normalisation.

    Warns (``FampeWarning``) where files in several folders share a name and its label.

    Raises:
        ValueError: files without a label or with two, or a label that is not a class of the model.
    """
    found = _of_files(paths, labels, _LABELS)
    for path, label in zip(paths, found, strict=True):
        check_label(path, label, classes)
    return found


def image_ids_of(paths: Sequence[Path], ids: dict[str, int]) -> list[int]:
    """Find the image id of every file by its name, or by the end of its path, independent of Unicode normalisation.

    Raises:
        ValueError: files without an id or with two.
    """
    return _of_files(paths, ids, _IDS)


def _of_files(paths: Sequence[Path], numbers: dict[str, int], words: _Words) -> list[int]:
    """Find each file's number by the longest end of its path that is a key."""
    exact, spellings = _by_path(numbers, str), _by_path(numbers, _composed)
    most = max((key.count("/") + 1 for key in spellings), default=0)
    chosen: list[set[int]] = []
    shared: dict[str, set[Path]] = {}
    for path in paths:
        place = Path(os.path.abspath(path))
        ends = ["/".join(place.parts[-count:]) for count in range(min(most, len(place.parts)), 0, -1)]
        found = ((end, exact.get(end) or spellings.get(_composed(end))) for end in ends)
        end, some = next(((end, some) for end, some in found if some), ("", set()))
        chosen.append(some)
        shared.setdefault(end, set()).add(place)
    missing = [path.name for path, some in zip(paths, chosen, strict=True) if not some]
    if missing:
        raise ValueError(f"{len(missing)} of {len(paths)} images have no {words.one}, {missing[0]!r} first")
    for path, some in zip(paths, chosen, strict=True):
        if len(some) > 1:
            raise ValueError(f"{path.name!r} has the {words.all} {', '.join(map(str, sorted(some)))}; expected one")
    for end, of in shared.items():
        if len(of) > 1:
            warn(
                f"{len(of)} images are named {end!r} and have the same {words.one}: to tell them apart, write their "
                f"folders into the {words.all}, such as {'/'.join(min(of).parts[-2:])!r}"
            )
    return [min(some) for some in chosen]


def _by_path(numbers: dict[str, int], spell: Callable[[str], str]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, index in numbers.items():
        found.setdefault(spell("/".join(PurePath(name).parts)), set()).add(index)
    return found


def check_label(path: Path, label: int, classes: int | None) -> None:
    """Refuse a label that is not a class of a model with the given number of classes; None if unknown."""
    if label < 0:
        raise ValueError(f"the label {label} of {path.name!r} is out of range: class indices begin at 0")
    if classes is not None and label >= classes:
        raise ValueError(f"the label {label} of {path.name!r} is out of range: the model has {classes} classes")


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)
