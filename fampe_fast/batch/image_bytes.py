"""Read the bytes of a plan's images from files, ranges of tar files and cells of Parquet files."""

from __future__ import annotations

import bisect
import errno
import os
import stat
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, NoReturn

from ..errors import first_line
from .extras import parquet_modules
from .failures import PermanentError, TransientError
from .found import open_file
from .plan import Row
from .retry import Retry
from .source_table import beside, image_column
from .urls import filesystem_of, hide_secrets, is_url

# Permanent errors of local files; all others (an unmounted file system, a permission) may be temporary.
_GONE = {
    errno.ENOENT: "no such file",
    errno.ENOTDIR: "no such file",
    errno.EISDIR: "is a directory, not an image file",
    errno.ELOOP: "the link leads to itself",
    errno.ENAMETOOLONG: "the name is too long",
}


def read_bytes(row: Row, max_bytes: int, retry: Retry | None = None) -> bytes:
    """Read the bytes of an image, with several attempts.

    Args:
        row: row of a plan.
        max_bytes: largest size of an image; at most this many bytes are read.
        retry: number of attempts and pauses; default: ``Retry()``.

    Raises:
        PermanentError: the image is missing in a local folder, empty, too large, or in a damaged file.
        TransientError: the image cannot be read now.
        ImportError: a package for its kind of address is not installed.
    """
    return (retry or Retry()).call(lambda: _read(row, max_bytes))


def _read(row: Row, max_bytes: int) -> bytes:
    if row.size is not None and row.size > max_bytes:
        raise _too_large(max_bytes)
    place = row.uri if row.container is None else row.container
    read = _remote if is_url(place) else _local
    try:
        if row.container is None:
            data = read(place, None, max_bytes)
        elif row.size is None:
            assert row.offset is not None
            data = _cell(place, row.offset, max_bytes)
        else:
            assert row.offset is not None
            data = read(place, (row.offset, row.offset + row.size), max_bytes) if row.size else b""
            if len(data) < row.size:
                raise PermanentError("the tar file is shorter than it was when it was listed")
            if len(data) > row.size:
                raise PermanentError("the server gives no parts of files, which images in tar files need")
    except (PermanentError, TransientError, ImportError):
        raise
    except MemoryError as error:
        raise TransientError("the image does not fit into memory") from error
    except Exception as error:  # foreign file systems may raise anything
        _raise_of_its_kind(error, remote=is_url(place))
    if not data:
        raise PermanentError("the file is empty (0 bytes)")
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _too_large(max_bytes: int) -> PermanentError:
    return PermanentError(f"the file is larger than the limit of {max_bytes} bytes")


def _raise_of_its_kind(error: Exception, *, remote: bool) -> NoReturn:
    if remote:
        reason = "no such file" if isinstance(error, FileNotFoundError) else hide_secrets(first_line(error))
        raise TransientError(f"cannot be read: {reason} ({type(error).__name__})") from error
    number = error.errno if isinstance(error, OSError) else None
    if number in _GONE:
        raise PermanentError(_GONE[number]) from error
    if isinstance(error, OSError) and number is not None:
        raise TransientError(f"cannot be read: {error.strerror or error}") from error
    raise PermanentError(f"cannot be read: {first_line(error)}") from error


def _local(path: str, part: tuple[int, int] | None, max_bytes: int) -> bytes:
    info = os.stat(path)
    if not stat.S_ISREG(info.st_mode):  # a pipe would wait for a writer
        raise PermanentError(
            "is a directory, not an image file" if stat.S_ISDIR(info.st_mode) else "is not a regular file"
        )
    with open(path, "rb") as file:
        if part is None:
            return file.read(max_bytes + 1)
        file.seek(part[0])
        return file.read(part[1] - part[0])


def _remote(url: str, part: tuple[int, int] | None, max_bytes: int) -> bytes:
    system, path = filesystem_of(url)
    start, end = part or (0, max_bytes + 1)
    try:
        return bytes(system.cat_file(path, start=start, end=end))
    except (FileNotFoundError, PermissionError, ImportError):
        raise
    except Exception:
        if part is None and _is_empty(system, path):  # special files cannot be read in ranges
            return b""
        raise


def _is_empty(system: Any, path: str) -> bool:
    try:
        return bool(system.size(path) == 0)
    except Exception:
        return False


class _Images(NamedTuple):
    """The images in a Parquet file."""

    column: str
    """Name of the image column."""
    starts: list[int]
    """First row of each row group."""
    rows: int


def _cell(place: str, row: int, max_bytes: int) -> bytes:
    images = _images_in(place)
    if row >= images.rows:
        raise PermanentError("the Parquet file has fewer rows than when it was listed")
    group = bisect.bisect_right(images.starts, row) - 1
    value = _group(place, group, images.column)[row - images.starts[group]].as_py()
    found, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    if found is not None:
        return bytes(found)
    if not path:
        raise PermanentError("the row holds no image")
    file = beside(place, path)  # as in Hugging Face's data sets whose images are in other files
    return (_remote if is_url(file) else _local)(file, None, max_bytes)


@lru_cache(maxsize=16)
def _images_in(place: str) -> _Images:
    _, pq = parquet_modules()
    with open_file(place) as stream, pq.ParquetFile(stream) as file:
        column = image_column(file.schema_arrow)
        if column is None:
            raise PermanentError("the Parquet file has no images any more")
        rows = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
    return _Images(column, [0, *accumulate(rows)][:-1], sum(rows))


@lru_cache(maxsize=1)  # rows are read in order, and a group may be large
def _group(place: str, group: int, column: str) -> Any:
    _, pq = parquet_modules()
    with open_file(place) as stream, pq.ParquetFile(stream) as file:
        return file.read_row_group(group, columns=[column], use_threads=False).column(0)
