"""List the image files of folders, globs and URLs."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import IMAGE, mark_of
from ..images import IMAGE_EXTENSIONS
from .found import Found, Note, suffix_of
from .stores import ask
from .urls import is_url, without_secrets

_WILD = "*?["
TABLES, TARS = (".csv", ".parquet", ".pq"), (".tar",)
"""Suffixes of the other kinds of source."""
_NO_TEXT = "with a name that is not UTF-8"


def has_wildcards(source: str) -> bool:
    """Tell whether a source is a pattern; web addresses are not."""
    return any(sign in source for sign in _WILD) and not source.lower().startswith(("http://", "https://"))


def kind_at(address: str) -> str | None:
    """Return "file" or "directory" for an address, or None if nothing exists there.

    Raises:
        OSError: the store refuses or fails.
    """
    try:
        # Not isfile(), which returns False if the store refuses.
        return str(ask(address, lambda system, path: system.info(path)["type"]))
    except FileNotFoundError:
        return None


def folder_before_wildcards(pattern: str) -> str:
    """Return the folder that contains all matches of a pattern."""
    return pattern[: min(place for sign in _WILD if (place := pattern.find(sign)) >= 0)].rpartition("/")[0]


def files_of_glob(pattern: str, note: Note) -> list[str]:
    """List the files that match a pattern and can be sources, sorted by name.

    Args:
        pattern: absolute path or URL, with ``*``, ``?``, ``[...]`` or ``**`` in it.
        note: told of what is left out.

    Raises:
        ValueError: no such file matches.
    """
    if is_url(pattern):
        matched = ask(pattern, _matched)
    else:
        matched = [name for name in glob.iglob(pattern, recursive=True) if os.path.isfile(name)]
    kinds = (*IMAGE_EXTENSIONS, *TABLES, *TARS)
    visible = [name for name in matched if suffix_of(name) in kinds and not name.rpartition("/")[2].startswith(".")]
    found = [name for name in visible if _is_text(name)]
    shown = without_secrets(pattern)
    if not found:
        raise ValueError(f"{shown} matches no files of images, no tables and no tar files" + _said(_kinds(matched)))
    left_out = _kinds(name for name in matched if suffix_of(name) not in kinds)
    if len(found) < len(visible):
        left_out[_NO_TEXT] = len(visible) - len(found)
    if left_out:
        note(f"left out of {shown}: {_counted(left_out)}")
    return sorted(found, key=lambda name: name.split("/"))


def images_of_folder(folder: str, note: Note) -> Iterator[Found]:
    """List the image files in a folder and in all of its folders, sorted by name.

    Hidden files and folders are left out, and so are the figures that this package writes.

    Args:
        folder: absolute path or URL.
        note: told of what is left out.

    Raises:
        ValueError: there are no images.
        OSError: a folder in it cannot be read.
    """
    left_out: Counter[str] = Counter()
    some = False
    for name in _files_at(folder) if is_url(folder) else _files_in(Path(folder), ()):
        if suffix_of(name) not in IMAGE_EXTENSIONS:
            left_out[suffix_of(name) or "without an ending"] += 1
        elif not is_url(name) and _is_figure(name):
            left_out["figures of this package"] += 1
        elif not _is_text(name):
            left_out[_NO_TEXT] += 1
        else:
            some = True
            yield Found(name)
    shown = without_secrets(folder)
    if not some:
        hint = next((kind for kind in (*TABLES, *TARS) if left_out[kind]), None)
        told = "" if hint is None else f": name them as sources ('{shown.rstrip('/')}/*{hint}')"
        raise ValueError(f"there are no images in {shown}" + _said(left_out) + told)
    if left_out:
        note(f"left out of {shown}: {_counted(left_out)}")


def _files_in(folder: Path, parents: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """List files depth first, so that memory is needed only for the largest folder."""
    info = os.stat(folder)
    place = (info.st_dev, info.st_ino)
    if place in parents:  # a link to a parent folder
        return
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files_in(Path(entry.path), (*parents, place))
        elif entry.is_file() or entry.is_symlink():  # a broken link becomes a row with an error
            yield entry.path


def _files_at(folder: str) -> list[str]:
    return ask(folder, _found)


def _found(system: Any, path: str) -> list[str]:
    start = len(path.rstrip("/")) + 1
    inside = [name for name in system.find(path) if not any(part[:1] == "." for part in name[start:].split("/"))]
    # Stores represent folders made in their web consoles as empty files with such names.
    files = [name for name in inside if not name.endswith("/")]
    return [_address(system, name) for name in sorted(files, key=lambda name: name.split("/"))]


def _matched(system: Any, path: str) -> list[str]:
    found = system.glob(path, detail=True)
    return [_address(system, name) for name, info in found.items() if info.get("type") == "file"]


def _address(system: Any, name: str) -> str:
    return str(system.unstrip_protocol(name))


def _is_text(path: str) -> bool:
    """Tell whether a path can be stored: a system may have names in another encoding than UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_figure(path: str) -> bool:
    """Tell whether a file is a figure of this package; only PNG files have its mark, and others are not opened."""
    mark = mark_of(path) if suffix_of(path) == ".png" else None
    return mark is not None and mark.kind != IMAGE


def _kinds(names: Iterator[str] | list[str]) -> Counter[str]:
    return Counter(suffix_of(name) or "without an ending" for name in names)


def _counted(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(left_out.items()))


def _said(left_out: Counter[str]) -> str:
    return f" (found: {_counted(left_out)})" if left_out else ""
