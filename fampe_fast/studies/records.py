"""The scores of a study on disk: a line of JSON per image and variant, so that an interrupted study goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One image's scores with one variant.

    Attributes:
        file: name of the image file.
        position: its place among the study's images, which names it in the random stream.
        variant: label of the variant.
        target: class explained.
        insertion: area in [0, 1], higher is better.
        deletion: area in [0, 1], lower is better.
    """

    file: str
    position: int
    variant: str
    target: int
    insertion: float
    deletion: float


class Records:
    """A file of records; its first line says what they were made with."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open a file, or begin one.

        Args:
            path: of the file; its folder is made if missing.
            settings: all that the scores depend on besides the image, as JSON takes it.

        Raises:
            ValueError: the file was made with other settings, or is not one of this class.
            OSError: it cannot be read or written.
        """
        self._path = path
        self._known: dict[tuple[str, str], Record] = {}
        head = json.dumps({"settings": settings}, sort_keys=True)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(head + "\n", encoding="utf-8")
            return
        lines = path.read_text(encoding="utf-8").split("\n")
        if lines[0] != head:
            raise ValueError(f"{path} holds {_difference(lines[0], json.loads(head))}: give another folder")
        for number, line in enumerate(lines[1:-1], 2):
            try:
                record = Record(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is not a record: {error}") from error
            self._known[record.file, record.variant] = record
        if lines[-1]:  # the line that was being written when the study was killed
            path.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._known

    def __getitem__(self, key: tuple[str, str]) -> Record:
        """The record of a file and a variant."""
        return self._known[key]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._known.values())

    def add(self, record: Record) -> None:
        """Write one down at once."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        self._known[record.file, record.variant] = record


def _difference(head: str, wanted: dict[str, Any]) -> str:
    """What distinguishes two first lines, in words."""
    try:
        found = json.loads(head)["settings"]
        keys = [key for key in wanted["settings"] if found.get(key) != wanted["settings"][key]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return "no records of a study"
    return f"a study with other settings ({', '.join(keys) or 'more of them'})"
