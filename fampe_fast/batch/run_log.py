"""Log times and other values that differ between runs, which shards must not contain: JSON lines per process."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator
from typing import Any

from ..files import json_content, json_text
from .storage import Storage

FOLDER = "log"
KIND = "batch log"
EVERY = 60.0
"""Seconds between two writes of a log in an object store, where files cannot be appended to."""


class RunLog:
    """The log of a process, with a line per event and its seconds since the epoch.

    In a local folder a line is written at once; in an object store the whole file is written occasionally and at the
    end, so that a killed process loses only the last minute of its log.
    """

    def __init__(self, storage: Storage, **head: Any) -> None:
        """Set the file, which is created with the first line.

        Args:
            storage: storage of the run.
            **head: values of the first line.
        """
        host = re.sub(r"[^A-Za-z0-9-]", "-", platform.node()).strip("-") or "host"
        self.name = f"{FOLDER}/{host}-{os.getpid()}-{int(time.time() * 1000)}.jsonl"
        self._storage = storage
        self._lines = [json_content(KIND, {"time": _now(), "host": host, "process": os.getpid(), **head}, indent=None)]
        self._begun = False
        self._written = 0.0

    def write(self, event: str, **values: Any) -> None:
        """Add a line.

        Raises:
            OSError: the line cannot be written.
        """
        self._lines.append(json_text({"time": _now(), "event": event, **values}))
        if self._storage.local_path is not None or time.monotonic() - self._written > EVERY:
            self.flush()

    def flush(self) -> None:
        """Write the remaining lines."""
        if not self._lines or (not self._begun and len(self._lines) == 1):
            return
        content = "".join(f"{line}\n" for line in self._lines).encode()
        folder = self._storage.local_path
        if folder is None:
            self._storage.write(self.name, content)
        elif self._begun:
            with open(folder / self.name, "ab") as file:
                file.write(content)
        else:
            self._storage.write(self.name, content)
        if folder is not None:
            self._lines.clear()
        self._begun, self._written = True, time.monotonic()


def _now() -> float:
    return round(time.time(), 3)


def logged(storage: Storage, event: str) -> Iterator[dict[str, Any]]:
    """Read the lines of one event from the logs of all processes, without incomplete lines."""
    for name in storage.names(f"{FOLDER}/"):
        for line in storage.read(name).splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and found.get("event") == event:
                yield found
