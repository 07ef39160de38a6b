"""List the images of a run's sources, each with its address, id and class."""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from ..images import IMAGE_EXTENSIONS
from .found import Found, Note, suffix_of
from .plan import Row
from .source_files import (
    TABLES,
    TARS,
    files_of_glob,
    folder_before_wildcards,
    has_wildcards,
    images_of_folder,
    kind_at,
)
from .source_table import images_of_csv, images_of_parquet
from .source_tar import images_of_tar
from .stores import told
from .urls import check_url, filesystem_of, is_url, local_path_of, without_secrets

Target = int | Literal["model"] | None
"""The class of every image; "model" for the model's prediction; None for the sources' targets, if there are any."""

_LARGEST_ID = 2**32 - 2
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
_EXPECTED = "expected a folder, a glob, images, .csv, .parquet or .tar"


def absolute(source: str) -> str:
    """Make a source independent of the working directory.

    Raises:
        ValueError: the source is empty, or a URL with a user name or password.
    """
    if not source:
        raise ValueError(f"a source is empty; {_EXPECTED}")
    check_url(source)
    local = local_path_of(source)
    return source if local is None else os.path.abspath(local)


def check_sources(sources: Sequence[str]) -> None:
    """Refuse invalid sources before any work.

    Raises:
        ValueError: a source is empty, a URL with a user name or password, or does not exist.
        OSError: a store refuses or fails.
    """
    for source in map(absolute, sources):
        place = folder_before_wildcards(source) if has_wildcards(source) else source
        if is_url(source):
            nothing = not _is_web_or_chained(source) and is_url(place) and kind_at(place) is None
        else:
            nothing = place == source and not os.path.lexists(source)
        if nothing:
            raise ValueError(f"there is no {without_secrets(place)}; {_EXPECTED}")


def list_rows(
    sources: Sequence[str],
    *,
    target: Target = None,
    sample: int | None = None,
    seed: int = 0,
    classes: int | None = None,
    note: Note = lambda line: None,
) -> Iterator[Row]:
    """List the images of sources, in order.

    An image's id is the one in its table, else its position among all images of the sources; it is the same in a sample
    and in the whole.

    Args:
        sources: folders (searched recursively), globs, image files, CSV and Parquet tables, tar files; paths or URLs.
        target: see ``Target``.
        sample: number of images drawn uniformly at random; None for all.
        seed: seed of the sample.
        classes: the model's number of classes; None does not check the targets.
        note: called with a line about files that are left out.

    Raises:
        ValueError: a source that does not exist or is invalid, unexpected columns or cells, ids that are not unique, a
            target that is not a class, an unknown kind of URL, or fewer images than the sample.
        ImportError: a package for a kind of source is not installed.
        OSError: a source cannot be read.
    """
    rows = _checked(sources, target, classes, note)
    if sample is None:
        yield from (row._replace(position=k) for k, row in enumerate(rows))
        return
    drawn = _drawn(rows, sample, seed)
    yield from (row._replace(position=k) for k, row in enumerate(drawn))


def _drawn(rows: Iterator[Row], count: int, seed: int) -> list[Row]:
    """Draw the rows whose positions have the smallest random numbers."""
    kept: list[tuple[int, Row]] = []  # the largest first, as a heap of their negatives
    total = 0
    for row in rows:
        total += 1
        number = hashlib.blake2b(f"{seed} {row.position}".encode(), digest_size=8).digest()
        entry = (-int.from_bytes(number, "big"), row)
        if len(kept) < count:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    if total < count:
        raise ValueError(f"there are {total} images in the sources, fewer than the sample of {count}")
    return sorted((row for _, row in kept), key=lambda row: row.position)


def _checked(sources: Sequence[str], target: Target, classes: int | None, note: Note) -> Iterator[Row]:
    check_sources(sources)
    seen = SeenIds()
    stores: set[str] = set()
    place = 0
    for source in sources:
        for found in _images_of(absolute(source), note, targets=target is None):
            image_id = place if found.image_id is None else found.image_id
            chosen = found.target if target is None else None if target == "model" else target
            row = Row(place, image_id, found.uri, found.container, found.offset, found.size, chosen)
            if image_id > _LARGEST_ID:
                raise ValueError(f"{row.address} is image {image_id}; a plan has 2^32 - 1 at most")
            if not seen.add(image_id):
                raise ValueError(f"image ids must be unique; {row.address} has {image_id}, as an earlier image has")
            if chosen is not None and not 0 <= chosen < (classes or chosen + 1):
                raise ValueError(
                    f"the target {chosen} of {row.address} is out of range: the model has {classes} classes "
                    "(--target model explains its own choices)"
                )
            _check_text(row)
            if is_url(row.uri) and (store := row.uri.partition("://")[0]) not in stores:
                filesystem_of(row.uri)  # it may need a package that is not installed
                stores.add(store)
            yield row
            place += 1


class SeenIds:
    """A set of ids with one bit each, so that a billion ids need 128 MB."""

    def __init__(self) -> None:
        self._parts: dict[int, bytearray] = {}

    def add(self, number: int) -> bool:
        """Add an id; return False if it was present."""
        part = self._parts.get(number >> 16)
        if part is None:
            part = self._parts[number >> 16] = bytearray(2**13)
        byte, bit = number >> 3 & 2**13 - 1, 1 << (number & 7)
        if part[byte] & bit:
            return False
        part[byte] |= bit
        return True


def _check_text(row: Row) -> None:
    try:
        row.uri.encode()
        (row.container or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{row.address!r} is not a name in UTF-8: rename the file") from error


def _images_of(source: str, note: Note, targets: bool) -> Iterator[Found]:
    if is_url(source):
        yield from _images_at(source, note, targets)
        return
    path = Path(source)
    if path.is_dir():
        yield from images_of_folder(source, note)
    elif os.path.lexists(path):
        yield from _images_in_file(source, note, targets)
    else:
        for file in files_of_glob(source, note):
            yield from _images_in_file(file, note, targets)


def _images_at(source: str, note: Note, targets: bool) -> Iterator[Found]:
    filesystem_of(source)
    if has_wildcards(source) and "::" not in source:
        for file in files_of_glob(source, note):
            yield from _images_in_file(file, note, targets)
        return
    kind = "file" if _is_web_or_chained(source) else kind_at(source)
    if kind is None:
        raise ValueError(f"there is no {without_secrets(source)}; {_EXPECTED}")
    if kind == "file":
        yield from _images_in_file(source, note, targets)
    else:
        yield from images_of_folder(source, note)


def _is_web_or_chained(source: str) -> bool:
    """Tell whether an address can only be that of a file."""
    return source.lower().startswith(("http://", "https://")) or "::" in source


def _images_in_file(file: str, note: Note, targets: bool) -> Iterator[Found]:
    with told(file) if is_url(file) else nullcontext():
        yield from _images_of_its_kind(file, note, targets)


def _images_of_its_kind(file: str, note: Note, targets: bool) -> Iterator[Found]:
    suffix = suffix_of(file)
    if suffix in IMAGE_EXTENSIONS:
        yield Found(file)
    elif suffix == ".csv":
        yield from images_of_csv(file, note, targets)
    elif suffix in TABLES:
        yield from images_of_parquet(file, note, targets)
    elif suffix in TARS:
        yield from images_of_tar(file, note)
    elif suffix in _COMPRESSED:
        raise ValueError(
            f"{without_secrets(file)} is compressed, so that its images cannot be read in place: unpack it"
        )
    else:
        raise ValueError(f"{without_secrets(file)} is not of a kind that can be read; {_EXPECTED}")
