"""Access object stores, with retries and with one-line errors that name the address."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..errors import first_line
from .failures import TransientError
from .retry import Retry
from .urls import filesystem_of, hide_secrets, without_secrets

Answer = TypeVar("Answer")


def ask(address: str, question: Callable[[Any, str], Answer], *, retry: Retry | None = None) -> Answer:
    """Call the store of an address, with retries after pauses.

    Args:
        address: a URL.
        question: function of fsspec's file system and the path in it.
        retry: number of attempts and pauses; default: ``Retry()``.

    Raises:
        FileNotFoundError: there is no such file, or no such bucket.
        PermissionError: the store refuses.
        OSError: the store still fails.
        ImportError: a package for this kind of address is not installed.
    """
    system, path = filesystem_of(address)

    def once() -> Answer:
        try:
            return question(system, path)
        except (FileNotFoundError, PermissionError, ImportError, MemoryError):
            raise
        except Exception as error:  # foreign file systems may raise anything
            raise TransientError(first_line(error)) from error

    with told(address):
        return (retry or Retry()).call(once)


@contextmanager
def told(address: str) -> Iterator[None]:
    """Convert a store's errors to the three kinds of ``ask``, naming the address without secrets."""
    shown = without_secrets(address)
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{shown}: there is no such file or bucket ({_reason(error)})") from error
    except PermissionError as error:
        raise PermissionError(
            f"{shown}: the store refuses ({_reason(error)}); fsspec needs credentials that may read and write there"
        ) from error
    except (ImportError, ValueError, MemoryError):
        raise
    except Exception as error:
        raise OSError(f"{shown}: the store fails ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    return hide_secrets(first_line(error))


class RemoteFile(io.RawIOBase):
    """A file in a store of which every part is requested separately.

    fsspec's own files read 50 MB ahead, and one failure ends the whole file.
    """

    def __init__(self, address: str) -> None:
        """Request the file's size.

        Raises:
            OSError: as ``ask``.
        """
        self._address = address
        self._size = int(ask(address, lambda system, path: system.size(path)))
        self._place = 0

    def readable(self) -> bool:
        """Return True: the file can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: any position can be read."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """Return the position."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes."""
        view = memoryview(buffer).cast("B")
        first, last = self._place, min(self._place + len(view), self._size)
        if last <= first:
            return 0
        part = ask(self._address, lambda system, path: system.cat_file(path, start=first, end=last))
        view[: len(part)] = part
        self._place += len(part)
        return len(part)
