"""Keep the files of a run in a local folder or an object store; each is written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from ..files import remove_leftovers, write_atomically
from .stores import RemoteFile, ask
from .urls import check_url, filesystem_of, local_path_of, without_secrets

_AHEAD = 2**16
"""Bytes that are read at least: as many as cost a store about as much as one."""
_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Storage:
    """A folder, here or in an object store, whose files are called by names relative to it ("maps/000/000001.parquet").

    Names are letters, digits, ``-``, ``_``, ``.`` and ``/`` without a part that begins with a dot, so that nothing is
    read or written outside the folder. Two storages of one place are equal, and one can be sent to another process.

    Attributes:
        address: of the folder: an absolute local path, or a URL.
        local_path: the folder; None in an object store.
    """

    address: str
    local_path: Path | None = field(compare=False)

    def __str__(self) -> str:
        return without_secrets(self.address)

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        if self.local_path is not None:
            return self._local(name).is_file()
        try:
            # Not isfile(), to which a store that fails is one where there is nothing.
            return bool(ask(self._remote(name), lambda system, path: system.info(path)["type"] == "file"))
        except FileNotFoundError:
            return False

    def names(self, prefix: str = "") -> Iterator[str]:
        """List the names of all files that begin with a text, sorted; hidden ones are left out.

        Args:
            prefix: "maps/" for what is in a folder; empty for the whole storage.
        """
        folder = prefix.rpartition("/")[0]
        found: Iterable[str]
        if self.local_path is not None:
            found = _walk(self._local(folder) if folder else self.local_path, f"{folder}/" if folder else "")
        else:
            found = self._found(folder)
        yield from (name for name in found if name.startswith(prefix))

    def _found(self, folder: str) -> list[str]:
        root = filesystem_of(self.address)[1].rstrip("/")
        try:
            found = ask(self._remote(folder) if folder else self.address, lambda system, path: system.find(path))
        except FileNotFoundError:
            return []
        names = (path[len(root) :].lstrip("/") for path in found)
        # A store's own pages show a folder that they have made as an empty file whose name ends so.
        return sorted(name for name in names if name[-1:] not in ("", "/") and name.rpartition("/")[2][0] != ".")

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            OSError: it is not there or cannot be read.
        """
        if self.local_path is not None:
            return self._local(name).read_bytes()
        return bytes(ask(self._remote(name), lambda system, path: system.cat_file(path)))

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading at any place in it."""
        if self.local_path is not None:
            return self._local(name).open("rb")
        return cast(BinaryIO, io.BufferedReader(RemoteFile(self._remote(name)), _AHEAD))

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all, replacing one of this name; it is stored when this returns.

        Raises:
            OSError: it cannot be written.
        """
        if self.local_path is not None:
            write_atomically(self._local(name), content)
            return
        # One put: a stream that an exception closes would leave a part of the object.
        ask(self._remote(name), lambda system, path: system.pipe_file(path, content))

    def size(self, name: str) -> int:
        """Return the bytes of a file.

        Raises:
            OSError: it is not there.
        """
        if self.local_path is not None:
            return self._local(name).stat().st_size
        return int(ask(self._remote(name), lambda system, path: system.size(path)))

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            if self.local_path is not None:
                self._local(name).unlink()
            else:
                ask(self._remote(name), lambda system, path: system.rm_file(path))

    def check_writable(self) -> None:
        """Write a hidden file into an object store and remove it, which shows whether bucket and credentials are right.

        Raises:
            OSError: nothing can be written, or removed; the message says why.
        """
        if self.local_path is None:
            probe = f"{self.address}/.fampe_fast"
            ask(probe, lambda system, path: system.pipe_file(path, b""))
            ask(probe, lambda system, path: system.rm_file(path))

    def remove_leftovers(self) -> None:
        """Remove what processes of this machine that were killed while they wrote have left in local folders."""
        if self.local_path is not None:
            for folder, _, _ in os.walk(self.local_path):
                remove_leftovers(Path(folder))

    def _local(self, name: str) -> Path:
        assert self.local_path is not None
        return self.local_path / _checked(name)

    def _remote(self, name: str) -> str:
        return f"{self.address}/{_checked(name)}"


def open_storage(place: str | os.PathLike[str]) -> Storage:
    """Open the folder that a path or an address stands for; it need not be there yet, and nothing is made.

    Args:
        place: a local path, or a URL that fsspec writes to, such as "s3://bucket/folder".

    Raises:
        ValueError: it is empty, a file, or a URL with a name or password or of an unknown kind.
        ImportError: fsspec or what it needs for this kind of URL is not installed.
    """
    text = os.fspath(place)
    if not text:
        raise ValueError("the place of the results is empty; expected a folder or a URL")
    path = local_path_of(text)
    if path is not None:
        folder = Path(os.path.abspath(path))
        there = next((parent for parent in (folder, *folder.parents) if os.path.lexists(parent)), folder)
        if os.path.lexists(folder) and not folder.is_dir():
            raise ValueError(
                f"{text} is a file, where a folder is needed; choose another place for the results (--out)"
            )
        if not there.is_dir():
            raise ValueError(f"{text} cannot be a folder: {there} is a file; choose another place (--out)")
        return Storage(str(folder), folder)
    check_url(text)
    storage = Storage(text.rstrip("/"), None)
    filesystem_of(storage.address)
    return storage


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a file in the results' folder")
    return name


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name.startswith("."):  # what is being written
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}"
