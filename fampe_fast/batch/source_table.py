"""List the images that CSV and Parquet files refer to or contain."""

from __future__ import annotations

import csv
import difflib
import io
import os
import posixpath
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checks import LARGEST_ID
from ..errors import first_line
from .extras import parquet_modules
from .found import Found, Note, open_file, whole_number
from .urls import check_url, is_url, local_path_of, without_secrets

if TYPE_CHECKING:
    import pyarrow as pa

_URIS = ("uri", "path", "file", "file_name", "filename", "url", "image")
_TARGETS = ("target", "label")
_IDS = ("image_id",)
_EXPECTED = (
    "expected a column uri (or path, file, url), or one with images as Hugging Face's data sets have it, and perhaps "
    "target (or label) and image_id"
)
_ALIKE = 0.86  # "labels" is probably "label", but "image_width" not "image_id"
_LARGEST_CLASS = 2**31 - 1
_ROWS = 8192


class _Columns(NamedTuple):
    """Names of the columns that are read."""

    uri: str | None
    target: str | None
    image_id: str | None


def _columns(names: Sequence[str], shown: str, note: Note, image: str | None = None) -> _Columns:
    """Find the columns that are read, independent of case.

    Raises:
        ValueError: there is no column of images, a name occurs twice, or one seems to be misspelt.
    """
    folded = [name.strip().casefold() for name in names]
    twice = next((name for name in folded if name and folded.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{shown} has several columns {twice!r}")
    by_name = dict(zip(folded, names, strict=True))

    def first(known: Sequence[str]) -> str | None:
        return next((by_name[name] for name in known if name in by_name and by_name[name] != image), None)

    found = _Columns(None if image else first(_URIS), first(_TARGETS), first(_IDS))
    unread = [name for name in names if name not in (*found, image) and name]
    missing = [
        name for known, there in zip((_TARGETS, _IDS), found[1:], strict=True) if there is None for name in known
    ]
    for name in unread:
        meant = difflib.get_close_matches(name.strip().casefold(), missing, 1, _ALIKE)
        if meant:
            raise ValueError(
                f"{shown} has a column {name!r}, which is unknown: rename it if {meant[0]!r} is meant, or drop it"
            )
    if found.uri is None and image is None:
        raise ValueError(f"{shown} has the columns {', '.join(names) or '(none)'}; {_EXPECTED}")
    if unread:
        note(f"left out of {shown}: columns {', '.join(unread[:8])}{', ...' if len(unread) > 8 else ''}")
    return found


class _Reader:
    """Interprets the cells of a table, with messages that name the row."""

    def __init__(self, place: str, note: Note, targets: bool) -> None:
        self.place, self.shown, self.note, self._targets = place, without_secrets(place), note, targets

    def target(self, value: Any, row: str) -> int | None:
        if value in (None, "") or not self._targets:
            return None
        found = whole_number(value, 0, _LARGEST_CLASS)
        if found is None:
            raise ValueError(
                f"{self.shown}, {row}: the target is {value!r}; expected a class index, a whole number of 0 or more "
                "(--target model explains the model's own choices)"
            )
        return found

    def image_id(self, value: Any, row: str) -> int:
        found = whole_number(value, 0, LARGEST_ID)
        if found is None:
            raise ValueError(
                f"{self.shown}, {row}: the image id is {value!r}; expected a whole number in [0, 2^32 - 2]"
            )
        return found

    def uri(self, value: Any, row: str) -> str:
        """Resolve a path against the table's folder."""
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{self.shown}, {row}: the place of the image is {value!r}; expected a path or a URL")
        try:
            return beside(self.place, value)
        except ValueError as error:
            raise ValueError(f"{self.shown}, {row}: {error}") from error


def beside(table: str, path: str) -> str:
    """Resolve a path or URL that a table names against the table's folder.

    Raises:
        ValueError: a URL with a name or password.
    """
    check_url(path)
    local = local_path_of(path)
    if local is None:
        return path
    if os.path.isabs(local) or not is_url(table):
        return os.path.normpath(os.path.join(os.path.dirname(table), local))
    start, _, inside = table.partition("://")
    return f"{start}://{posixpath.normpath(posixpath.join(posixpath.dirname(inside), local))}"


def images_of_csv(place: str, note: Note, targets: bool = True) -> Iterator[Found]:
    """List the images of a CSV file, whose first line has the names of its columns.

    Args:
        place: absolute path or URL of the file, UTF-8 with or without a byte order mark.
        note: told of columns that are not read.
        targets: whether to read the targets.

    Raises:
        ValueError: unexpected columns or cells; the message names the line.
        OSError: the file cannot be read.
    """
    reader = _Reader(place, note, targets)
    try:
        with open_file(place) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text)
            names = next(rows, [])
            columns = _columns(names, reader.shown, note)
            where = {name: k for k, name in enumerate(names)}
            for cells in rows:
                if not cells:
                    continue
                row = f"line {rows.line_num}"
                if len(cells) != len(names):
                    raise ValueError(
                        f"{reader.shown}, {row}: {len(cells)} cells; expected {len(names)}, as the first line has"
                    )

                def cell(name: str | None, cells: list[str] = cells) -> str | None:
                    return None if name is None else cells[where[name]].strip()

                yield Found(
                    reader.uri(cell(columns.uri), row),
                    target=reader.target(cell(columns.target), row),
                    image_id=None if columns.image_id is None else reader.image_id(cell(columns.image_id), row),
                )
    except UnicodeDecodeError as error:
        raise ValueError(f"{reader.shown} is not UTF-8 text: {error.reason}; save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{reader.shown} is not CSV: {error}") from error


def images_of_parquet(place: str, note: Note, targets: bool = True) -> Iterator[Found]:
    """List the images that a Parquet file refers to, or contains in a column of struct<bytes, path> or bytes.

    Args:
        place: absolute path or URL of the file.
        note: told of columns that are not read.
        targets: whether to read the targets.

    Raises:
        ValueError: not a Parquet file, or unexpected columns or cells; the message names the row.
        ImportError: pyarrow is not installed.
        OSError: the file cannot be read.
    """
    pa, pq = parquet_modules()
    reader = _Reader(place, note, targets)
    try:
        with open_file(place) as stream, pq.ParquetFile(stream) as file:
            schema = file.schema_arrow
            image = image_column(schema)
            columns = _columns(schema.names, reader.shown, note, image)
            named = image is not None and _has_paths(schema.field(image).type)
            wanted = [name for name in columns if name is not None] + ([f"{image}.path"] if named else [])
            number = 0
            for batch in file.iter_batches(_ROWS, columns=wanted):
                cells = {name: batch.column(name).to_pylist() for name in batch.schema.names}
                for k in range(batch.num_rows):
                    row = f"row {number}"

                    def cell(name: str | None, k: int = k, cells: dict[str, list[Any]] = cells) -> Any:
                        return None if name is None else cells[name][k]

                    target = reader.target(cell(columns.target), row)
                    image_id = None if columns.image_id is None else reader.image_id(cell(columns.image_id), row)
                    if image is None:
                        yield Found(reader.uri(cell(columns.uri), row), target=target, image_id=image_id)
                    else:
                        inner = (cell(image) or {}).get("path") if named else None
                        yield Found(inner or row, place, number, None, target, image_id)
                    number += 1
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{reader.shown} is not a Parquet file, or damaged: {first_line(error)}") from error


def image_column(schema: pa.Schema) -> str | None:
    """Find the column with the images' bytes: a struct with ``bytes`` in it, or bytes called ``image`` or ``bytes``.

    Returns:
        Its name; of several the one called ``image``, else the first; None if there is none.
    """
    import pyarrow as pa

    def holds_bytes(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def holds_images(field: Any) -> bool:
        if pa.types.is_struct(field.type):
            inner = field.type.get_field_index("bytes")
            return inner >= 0 and holds_bytes(field.type.field(inner).type)
        return holds_bytes(field.type) and field.name.casefold() in ("image", "bytes")

    names = [field.name for field in schema if holds_images(field)]
    return next((name for name in names if name.casefold() == "image"), names[0] if names else None)


def _has_paths(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind) and kind.get_field_index("path") >= 0)
