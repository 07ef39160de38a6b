"""List the images in tar files without unpacking: each image is a range of the tar's bytes."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from ..images import IMAGE_EXTENSIONS
from .found import Found, Note, open_file, suffix_of, whole_number
from .urls import without_secrets

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LARGEST_CLASS = 2**31 - 1


def images_of_tar(place: str, note: Note) -> Iterator[Found]:
    """List the images of a tar in WebDataset's layout: the member "7.cls" has the class of the image "7.jpg".

    The members of an image have the same name up to the first dot, and are adjacent. Names are never used as paths.

    Args:
        place: absolute path or URL of the tar.
        note: told of what is left out.

    Raises:
        ValueError: a compressed or damaged tar, one without images, or a class that is not a whole number.
        OSError: it cannot be read.
    """
    shown = without_secrets(place)
    left_out: Counter[str] = Counter()
    some = False
    with open_file(place) as stream:
        _check_plain(stream, shown)
        length = stream.seek(0, 2)
        stream.seek(0)
        images: list[tarfile.TarInfo] = []
        key, target = "", None
        for member in _members(stream, length, shown):
            name = member.name
            if not member.isreg():
                if not member.isdir():
                    left_out["links or special files"] += 1
                continue
            stem = f"{name.rpartition('/')[0]}/{name.rpartition('/')[2].partition('.')[0]}"
            if stem != key:
                yield from _found(place, images, target)
                images, key, target = [], stem, None
            suffix = suffix_of(name)
            if name.rpartition("/")[2].startswith("."):
                continue
            if suffix in IMAGE_EXTENSIONS:
                images.append(member)
                some = True
            elif suffix == ".cls":
                target = _class_in(stream, member, shown)
            else:
                left_out[suffix or "without an ending"] += 1
        yield from _found(place, images, target)
    if not some:
        raise ValueError(f"there are no images in {shown}")
    if left_out:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))
        note(f"left out of {shown}: {kinds}")


def _found(place: str, images: list[tarfile.TarInfo], target: int | None) -> Iterator[Found]:
    for member in images:
        yield Found(member.name, place, member.offset_data, member.size, target)


def _check_plain(stream: BinaryIO, shown: str) -> None:
    start = stream.read(6)
    for sign, name in _COMPRESSED.items():
        if start.startswith(sign):
            raise ValueError(
                f"{shown} is compressed ({name}), so that its images cannot be read in place: unpack it to .tar"
            )


def _members(stream: BinaryIO, length: int, shown: str) -> Iterator[tarfile.TarInfo]:
    """List the members without reading their data."""
    last = ""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # else the memory holds every name
                last = member.name
                if member.issparse():
                    raise ValueError(f"{shown}: {last} is stored with holes, and cannot be read in place")
                if member.offset_data + member.size > length:
                    raise ValueError(f"{shown} is truncated: it ends within {last}")
                yield member
            stream.seek(archive.offset)  # an unreadable header ends the list like the end of the file
            if any(stream.read(tarfile.BLOCKSIZE)):
                raise tarfile.ReadError("the next header cannot be read")
    except tarfile.TarError as error:
        after = f" after {last}" if last else ""
        raise ValueError(f"{shown} is not a tar file, or damaged{after}: {error}") from error


def _class_in(stream: BinaryIO, member: tarfile.TarInfo, shown: str) -> int:
    before = stream.tell()
    stream.seek(member.offset_data)
    text = stream.read(min(member.size, 64)).decode("utf-8", "replace").strip()
    stream.seek(before)
    target = whole_number(text, 0, _LARGEST_CLASS)
    if target is None:
        raise ValueError(f"{shown}: {member.name} holds {text!r}; expected a class index, a whole number of 0 or more")
    return target
