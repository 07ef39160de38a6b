"""Store the files of a run in a local folder or an object store, each written atomically."""

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
"""Least number of bytes to read, which take a store about as long as one byte."""
_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Storage:
    """A local folder or one in an object store, with relative file names such as "maps/000/000001.parquet".

    Names have letters, digits, ``-``, ``_``, ``.`` and ``/``, and no part that begins with a dot, so that nothing is
    read or written outside the folder. Two storages of the same folder are equal, and a storage can be pickled.

    Attributes:
        address: address of the folder: an absolute local path, or a URL.
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
            # Not isfile(), which returns False if the store fails.
            return bool(ask(self._remote(name), lambda system, path: system.info(path)["type"] == "file"))
        except FileNotFoundError:
            return False

    def names(self, prefix: str = "") -> Iterator[str]:
        """List the sorted names of all files with a prefix, without hidden ones.

        Args:
            prefix: "maps/" for the files of a folder; empty for the whole storage.
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
        # Stores represent folders made in their web consoles as empty files with such names.
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
        """Write a file atomically, replacing one of this name; it is stored when this returns.

        Raises:
            OSError: it cannot be written.
        """
        if self.local_path is not None:
            write_atomically(self._local(name), content)
            return
        # A single put, as a stream closed by an exception would leave a part of the object.
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
        """Remove a file if it exists."""
        with contextlib.suppress(FileNotFoundError):
            if self.local_path is not None:
                self._local(name).unlink()
            else:
                ask(self._remote(name), lambda system, path: system.rm_file(path))

    def check_writable(self) -> None:
        """Write a hidden file to an object store and remove it, to check the bucket and the credentials.

        Raises:
            OSError: the file cannot be written or removed; the message says why.
        """
        if self.local_path is None:
            probe = f"{self.address}/.fampe_fast"
            ask(probe, lambda system, path: system.pipe_file(path, b""))
            ask(probe, lambda system, path: system.rm_file(path))

    def remove_leftovers(self) -> None:
        """Remove incomplete files that killed processes of this machine have left in local folders."""
        if self.local_path is not None:
            for folder, _, _ in os.walk(self.local_path):
                remove_leftovers(Path(folder))

    def _local(self, name: str) -> Path:
        assert self.local_path is not None
        return self.local_path / _checked(name)

    def _remote(self, name: str) -> str:
        return f"{self.address}/{_checked(name)}"


def open_storage(place: str | os.PathLike[str]) -> Storage:
    """Open the folder of a path or URL, which need not exist, without creating it.

    Args:
        place: a local path, or a URL that fsspec can write to, such as "s3://bucket/folder".

    Raises:
        ValueError: the place is empty, a file, or a URL with a user name or password or of an unknown kind.
        ImportError: fsspec or a package for this kind of URL is not installed.
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
        raise ValueError(f"{name!r} is not a file name in the results' folder")
    return name


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.name.startswith("."):  # incomplete files
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}"
