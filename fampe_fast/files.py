"""Write files atomically, mark them as this package's, and protect other files from being replaced.

The mark is inside a file, so that copies keep it: a text chunk of a PNG, the first key of a JSON object, an entry of an
``.npz``, the first line of JSON lines and of Markdown.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import platform
import re
import secrets
import stat
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MARK = "fampe_fast"
"""The name of the mark; its value is the kind of the file."""
FIGURE, IMAGE = "figure", "image"
"""Two kinds of picture: a figure of maps or curves, which is never an input, and an image that can be classified."""
FOLDER = "folder"
"""The kind of an output that contains other outputs."""

_PNG = b"\x89PNG\r\n\x1a\n"
_LARGEST_JSON = 2**26  # foreign files may be of any size
_HEAD = re.compile(rb'\s*\{\s*"' + MARK.encode() + rb'"\s*:\s*"([a-z ]+)"')
_COMMENT = re.compile(rb"<!-- " + MARK.encode() + rb": ([a-z ]+) -->")
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:4]
_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{4})-(\d+)-[0-9a-f]{8}\.tmp")


@dataclass(frozen=True)
class Mark:
    """The package's mark in one of its files.

    Attributes:
        kind: kind of the file.
        key: hash of the content's inputs; empty if the file has none.
    """

    kind: str
    key: str = ""


@dataclass(frozen=True)
class Output:
    """A file that will be written.

    Attributes:
        path: the file.
        kind: kind in its mark; a ``FOLDER`` has no mark.
    """

    path: Path
    kind: str


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically, making missing folders; it is on disk when this returns.

    A link to a file is kept, and its target is replaced.

    Args:
        path: the file.
        content: its bytes.

    Raises:
        OSError: the file cannot be written; the message names it and the reason.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    # Not the full name: a long one plus a suffix may exceed the file system's limit.
    temporary = target.parent / f".{_short(target.name)}.{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        # Also after Ctrl-C; it no longer exists if the renaming succeeded.
        with contextlib.suppress(OSError):
            temporary.unlink()


def cannot_write(path: Path, error: OSError) -> OSError:
    """Make the error for a file that cannot be written."""
    reason = error.strerror or str(error)
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        reason = "a file exists where a folder is needed"
    return OSError(error.errno, f"cannot write the file: {reason}", os.fspath(path))


def _short(name: str) -> str:
    """Cut a name to its first 32 bytes, in whole characters."""
    return os.fsencode(name)[:32].decode("utf-8", "ignore")


def _sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk; where that is impossible, the file's content is on disk anyway."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Remove incomplete files that killed processes of this machine have left in a folder."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            found = _TEMPORARY.fullmatch(entry.name)
            if found and found[1] == _HOST and not _alive(int(found[2])):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _alive(process: int) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


# Contents that carry the mark -----------------------------------------------------------------------------------------


def png_content(image: Image.Image, kind: str, key: str = "", **options: Any) -> bytes:
    """Encode an image as a marked PNG.

    Args:
        image: an image in a mode of PNG.
        kind: ``FIGURE`` or ``IMAGE``.
        key: hash of the inputs.
        **options: options of Pillow's PNG writer.
    """
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Software", MARK)
    text.add_text(MARK, kind)
    if key:
        text.add_text(f"{MARK} key", key)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text, **options)
    return buffer.getvalue()


def npz_content(kind: str, key: str = "", **arrays: Any) -> bytes:
    """Encode arrays as a marked, compressed ``.npz``."""
    buffer = io.BytesIO()
    every: dict[str, Any] = {MARK: np.array(kind), "key": np.array(key), **arrays}
    np.savez_compressed(buffer, **every)
    return buffer.getvalue()


def json_content(kind: str, content: Mapping[str, Any], *, indent: int | None = 1) -> str:
    """Encode a marked JSON object."""
    return json_text({MARK: kind, **content}, indent=indent)


def json_text(content: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Encode standard JSON: NaN becomes null, infinities become "inf" and "-inf"."""
    return json.dumps(_finite(content), indent=indent, sort_keys=sort_keys, allow_nan=False)


def markdown_content(kind: str, text: str) -> str:
    """Encode marked Markdown."""
    return f"<!-- {MARK}: {kind} -->\n\n{text}"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


def mark_of(path: str | os.PathLike[str]) -> Mark | None:
    """Read the mark of a file; None if it has none, is not a regular file or cannot be read."""
    try:
        # A pipe would wait for a writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            start = file.read(256)
            if start.startswith(_PNG):
                file.seek(len(_PNG))
                return _mark_of_png(file)
            if start.startswith(b"PK"):
                return _mark_of_npz(path)
            found = _HEAD.match(start) or _COMMENT.match(start)
            if found:
                return Mark(found[1].decode())
            if start.lstrip().startswith(b"{") and os.path.getsize(path) <= _LARGEST_JSON:
                file.seek(0)
                content = json.loads(file.read())  # other programs may have reordered the keys
                kind = content.get(MARK) if isinstance(content, dict) else None
                return Mark(kind) if isinstance(kind, str) else None
    except (OSError, ValueError, RecursionError):
        pass
    return None


def _mark_of_png(file: io.BufferedReader) -> Mark | None:
    texts: dict[bytes, bytes] = {}
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"IDAT", b"IEND"):
            break
        if kind == b"tEXt" and length < 4096:
            name, _, text = file.read(length).partition(b"\0")
            texts[name] = text
            length = 0
        file.seek(length + 4, io.SEEK_CUR)
    if texts.get(b"Software") != MARK.encode() or MARK.encode() not in texts:
        return None
    return Mark(texts[MARK.encode()].decode("latin-1"), texts.get(f"{MARK} key".encode(), b"").decode("latin-1"))


def _mark_of_npz(path: str | os.PathLike[str]) -> Mark | None:
    try:
        with np.load(path) as archive:
            if MARK in archive.files:
                return Mark(str(archive[MARK]), str(archive["key"]) if "key" in archive.files else "")
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError):
        pass
    return None


# The guard ------------------------------------------------------------------------------------------------------------


def check_outputs(outputs: Iterable[Output], inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse outputs that would replace an input or a file that this package did not write as the same kind of file.

    Args:
        outputs: all files that will be written.
        inputs: all files that are read, also through links and other spellings or cases of a name.

    Raises:
        ValueError: there are such outputs; the message names the first, and says how many there are.
        OSError: a folder of the outputs cannot be written to.
    """
    read = {_place(item) for item in inputs} - {None}
    refused: dict[str, list[Path]] = {}
    folders: set[Path] = set()
    for output in outputs:
        reason = _objection(output, read)
        if reason is not None:
            refused.setdefault(reason, []).append(output.path)
        folders.add(output.path if output.kind == FOLDER else output.path.parent)
    for reason, paths in refused.items():
        number = "" if len(paths) == 1 else f" (the first of {len(paths)} such files)"
        raise ValueError(f"{paths[0]} {reason}{number}; choose another place for the outputs (--out)")
    for folder in folders:
        check_folder(folder)


def _place(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _objection(output: Output, read: set[tuple[int, int] | None]) -> str | None:
    path = output.path
    place = _place(path)
    if place is None:
        return "is a broken link, and would be replaced" if os.path.islink(path) else None
    if place in read and output.kind != FOLDER:
        return "is one of the inputs, and would be replaced by an output"
    if path.is_dir():
        return None if output.kind == FOLDER else "is a folder, where a file would be written"
    if output.kind == FOLDER:
        return "is a file, where a folder is needed"
    mark = mark_of(path)
    if mark is None:
        return f"exists already and was not written by {MARK}, and would be replaced"
    if mark.kind != output.kind:
        return f"holds what {MARK} calls {mark.kind!r}, and would be replaced by {output.kind!r}"
    return None


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before any work.

    Raises:
        OSError: the message names the folder and the reason.
    """
    there = folder
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise cannot_write(folder, NotADirectoryError(20, "Not a directory"))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(13, "cannot write into the folder: permission denied", os.fspath(there))


# Reading --------------------------------------------------------------------------------------------------------------


def digest_of(path: str | os.PathLike[str]) -> str | None:
    """Compute the SHA-256 of a file's bytes, in hexadecimal; None if it is not a regular file or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while part := file.read(2**20):
                digest.update(part)
            return digest.hexdigest()
    except (OSError, ValueError):
        return None


def read_text(path: Path, what: str) -> str:
    """Read a text file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.
        what: its content, for the message.

    Raises:
        ValueError: the file cannot be read, or is in another encoding; the message names it.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"cannot read the {what} {path}: not UTF-8 text (byte {error.object[error.start]:#04x} at position "
            f"{error.start}); save the file as UTF-8"
        ) from error
    except OSError as error:
        raise ValueError(f"cannot read the {what} {path}: {error.strerror or error}") from error
