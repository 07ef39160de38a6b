"""The scores of a study on disk: a line of JSON per image and variant, so that an interrupted study goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..files import json_text
from .records import Journal


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
        image: SHA-256 of the file's bytes; empty in records that do not say.
    """

    file: str
    position: int
    variant: str
    target: int
    insertion: float
    deletion: float
    image: str = ""


_AREAS = ("insertion", "deletion")  # null where they are NaN


class Records:
    """A file of records; its first line says what they were made with."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open a file; it is made with the first record.

        Args:
            path: of the file; its folder is made if missing.
            settings: all that the scores depend on besides the image, as JSON takes it.

        Raises:
            ValueError: the file was made with other settings, or is not one of this class.
            OSError: it cannot be read or written, or another process has it open.
        """
        head = json.loads(json_text({"settings": settings}))
        self._known: dict[tuple[str, str], Record] = {}
        self._journal = Journal(path, head, "a study")
        try:
            if self._journal.head.get("settings") != head["settings"]:
                raise ValueError(f"{path} holds {_difference(self._journal.head, head)}: give another folder")
            for number, line in enumerate(self._journal.lines, 2):
                try:
                    record = Record(**{**line, **{name: math.nan for name in _AREAS if line.get(name, 0) is None}})
                except TypeError as error:
                    raise ValueError(f"{path}, line {number} is not a record: {error}") from error
                self._known[record.file, record.variant] = record
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let another process have the file."""
        self._journal.close()

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._known

    def __getitem__(self, key: tuple[str, str]) -> Record:
        """The record of a file and a variant."""
        return self._known[key]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._known.values())

    def add(self, *records: Record) -> None:
        """Write down what was scored together, at once.

        Raises:
            OSError: they cannot be written; those before them are whole.
        """
        before = self._journal.count
        try:
            self._journal.append(*map(asdict, records))
        finally:  # an interrupt may come once the lines are there
            if self._journal.count > before:
                self._known.update({(record.file, record.variant): record for record in records})


def _difference(head: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """What distinguishes two first lines, in words."""
    found = head.get("settings")
    if not isinstance(found, dict):
        return "no records of a study"
    keys = [key for key in wanted["settings"] if found.get(key) != wanted["settings"][key]]
    return f"a study with other settings ({', '.join(keys) or 'more of them'})"
