"""Ask object stores: again where one fails for a time, and with errors of one line that name the place."""

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
    """Ask the store of an address, again after pauses where it fails.

    Args:
        address: a URL.
        question: takes fsspec's file system and the path in it.
        retry: how often and how patiently; default: ``Retry()``.

    Raises:
        FileNotFoundError: there is no such file, or no such bucket.
        PermissionError: the store refuses.
        OSError: it fails still.
        ImportError: a package that this kind of address needs is not installed.
    """
    system, path = filesystem_of(address)

    def once() -> Answer:
        try:
            return question(system, path)
        except (FileNotFoundError, PermissionError, ImportError, MemoryError):
            raise
        except Exception as error:  # of foreign file systems, which raise what they like
            raise TransientError(first_line(error)) from error

    with told(address):
        return (retry or Retry()).call(once)


@contextmanager
def told(address: str) -> Iterator[None]:
    """Have errors of a store name the address, without what is secret in it, and be of the three kinds of ``ask``."""
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
    """A file in a store, of which each part that is read is asked for by itself.

    fsspec's own files read 50 MB ahead, and one failure in the middle of a file ends all of it.
    """

    def __init__(self, address: str) -> None:
        """Ask for its size.

        Raises:
            OSError: as ``ask``.
        """
        self._address = address
        self._size = int(ask(address, lambda system, path: system.size(path)))
        self._place = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that it can be read from any place."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """Return the place."""
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
