"""Store finished work on disk, keyed by content, so that a command resumes where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .._version import __version__
from ..files import MARK, cannot_write, json_text, mark_of, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RECORDS = "records"
"""The kind of these files."""


class Journal:
    """An append-only file of JSON objects, one per line; each line is on disk once it is added.

    The first line has the package's mark. An incomplete last line, left by a killed process or a full disk, is dropped.
    The file is created with the first added line, and only one process can have it open.

    Attributes:
        path: path of the file.
        head: its first line.
        lines: the other lines that have been read or added.
        count: number of added lines.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], whose: str) -> None:
        """Open a file, if there is one.

        Args:
            path: path of the file.
            whose: owner of the lines, for messages.
            head: content of a new file's first line beside the mark.

        Raises:
            ValueError: the file is not one of this class, or one of its lines is not JSON; the message names it.
            OSError: the file cannot be read or written, or another process has it open.
        """
        self.path, self._whose = path, whose
        self.head: dict[str, Any] = {MARK: RECORDS, **head}
        self.lines: list[dict[str, Any]] = []
        self.count = 0
        self._handle: int | None = None
        self._end = 0
        if path.exists():
            try:
                self._open()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file for other processes."""
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            os.close(handle)

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Add lines together; when this returns, either all or none of them are on disk.

        Raises:
            OSError: the file cannot be written; the message names it and the reason.
        """
        if self._handle is None:
            if not self.path.exists():
                write_atomically(self.path, (json_text(self.head) + "\n").encode())
            known, self.lines = self.lines, []
            self._open()
            if len(self.lines) != len(known):
                raise OSError(f"{self.path}: another process has written to it meanwhile")
        assert self._handle is not None
        content = "".join(f"{json_text(line)}\n" for line in lines).encode()
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._handle, rest) :]
            os.fsync(self._handle)
        except OSError as error:
            self._take_back()
            raise cannot_write(self.path, error) from error
        except BaseException:
            # After an interrupt complete lines are kept, so that the following summary includes them.
            if os.fstat(self._handle).st_size == self._end + len(content):
                self._added(content, lines)
            else:
                self._take_back()
            raise
        self._added(content, lines)

    def _take_back(self) -> None:
        assert self._handle is not None
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, self._end)

    def _added(self, content: bytes, lines: tuple[Mapping[str, Any], ...]) -> None:
        self._end += len(content)
        self.count += len(lines)
        self.lines += map(dict, lines)

    def _open(self) -> None:
        mark = mark_of(self.path)
        if mark is None or mark.kind != RECORDS:
            raise ValueError(f"{self.path} holds no records of {self._whose}: give another folder")
        try:
            self._handle = os.open(self.path, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise cannot_write(self.path, error) from error
        if fcntl is not None:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OSError(f"{self.path}: another run of {MARK} is writing to it") from error
            except OSError:
                pass  # a file system without locks
        content = self.path.read_bytes()
        self._end = content.rfind(b"\n") + 1
        if self._end < len(content):  # an incomplete line of a killed process
            os.ftruncate(self._handle, self._end)
        for number, line in enumerate(content[: self._end].split(b"\n")[:-1], 1):
            try:
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise ValueError(f"expected a JSON object, got {type(found).__name__}")
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number} is not a record: {error}") from error
            if number == 1:
                self.head = found
            else:
                self.lines.append(found)


@dataclass(frozen=True)
class Item:
    """An image of a run, with everything that identifies its results.

    Attributes:
        path: the image's file.
        position: its position in the run.
        image_id: its id in the random stream.
        digest: SHA-256 of the file's bytes; None if they cannot be read.
        target: the given class; None if the model chooses.
    """

    path: Path
    position: int
    image_id: int
    digest: str | None
    target: int | None


class Records:
    """Stores the results of a command by image content, id, target and all settings.

    Each line of the file is one piece of work, usually a batch, so that a resumed run has the same batches.
    """

    def __init__(self, path: Path, command: str) -> None:
        """Open the records, if they exist.

        Args:
            path: path of the file, which is created with the first result.
            command: name of the command.

        Raises:
            ValueError: the file is another command's, or not one of this class; the message names it.
            OSError: the file cannot be read, or another process has it open.
        """
        self._journal = Journal(path, {"command": command}, command)
        self._known: dict[tuple[str, str, str, int, int | None], dict[str, Any]] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        self._written: set[str] = set()
        try:
            self._read(command)
        except BaseException:
            self.close()
            raise

    def _read(self, command: str) -> None:
        path = self._journal.path
        if self._journal.head.get("command") != command:
            raise ValueError(f"{path} holds records of another command than {command}: give another folder")
        for number, line in enumerate(self._journal.lines, 2):
            try:
                context = line["context"]
                if "settings" in line:
                    self._written.add(context)
                    continue
                for entry in line["results"]:
                    key = (context, line["part"], entry["image"], entry["id"], entry["target"])
                    if not isinstance(entry["result"], dict):
                        raise TypeError("a result must be an object")
                    self._known[key] = entry["result"]
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is not a record: {error!r}") from error
        self._journal.lines.clear()  # keep only one copy

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file for other processes."""
        self._journal.close()

    def context(self, settings: Mapping[str, Any]) -> str:
        """Make a key of everything that results depend on besides the image, including the package's version.

        Args:
            settings: values for JSON.
        """
        whole = {"version": __version__, **settings}
        name = digest_of_settings(whole)
        self._settings[name] = whole
        return name

    def get(self, context: str, item: Item, part: str = "") -> dict[str, Any] | None:
        """Look up the result of an image; None if there is none yet."""
        if item.digest is None:
            return None
        return self._known.get((context, part, item.digest, item.image_id, item.target))

    def add(self, context: str, items: Sequence[Item], results: Sequence[dict[str, Any]], part: str = "") -> None:
        """Store the results of images that were processed together.

        Args:
            context: from ``context``.
            items: the images.
            results: one per image, as values for JSON.
            part: distinguishes several results of one image in one context.

        Raises:
            OSError: they cannot be written; earlier results are complete.
        """
        settings = [] if context in self._written else [{"context": context, "settings": self._settings[context]}]
        entries = [
            {
                "file": item.path.name,
                "image": item.digest,
                "id": item.image_id,
                "target": item.target,
                "result": result,
            }
            for item, result in zip(items, results, strict=True)
        ]
        # In the form that is read back: tuples become lists, and NaN null.
        keys = [(context, part, item.digest, item.image_id, item.target) for item in items if item.digest]
        read = [json.loads(json_text(result)) for item, result in zip(items, results, strict=True) if item.digest]
        before = self._journal.count
        try:
            self._journal.append(*settings, {"context": context, "part": part, "results": entries})
        finally:  # an interrupt may come after the line is written
            if self._journal.count > before:
                self._known.update(zip(keys, read, strict=True))
                self._written.add(context)
                self._journal.lines.clear()


def digest_of_settings(settings: Mapping[str, Any]) -> str:
    """Hash settings to 16 hexadecimal digits."""
    return hashlib.sha256(json_text(settings, sort_keys=True).encode()).hexdigest()[:16]
