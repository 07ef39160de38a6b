"""Writing figures so that a file is there whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure as a PNG of exactly its size times its dpi.

    The file is written under a temporary name in the same folder and renamed: an interrupted or failed run leaves
    neither half a file nor a damaged earlier one. Missing folders are made.

    Args:
        figure: any matplotlib figure.
        path: the file, ending in `.png`.

    Returns:
        The path.

    Raises:
        ValueError: the name does not end in `.png`.
        OSError: the file cannot be written; the message names it and the reason.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"expected a file name ending in .png, got {os.fspath(path)!r}")
    write_atomically(target, png_bytes(figure))
    return target


def png_bytes(figure: Figure) -> bytes:
    """A figure as an opaque PNG.

    Args:
        figure: any matplotlib figure; its canvas is left as it was.

    Returns:
        The file's content; the same figure gives the same bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    before = figure.canvas
    canvas = before if isinstance(before, FigureCanvasAgg) else FigureCanvasAgg(figure)
    try:
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    finally:
        if canvas is not before:
            figure.set_canvas(before)
    buffer = io.BytesIO()
    resolution = float(figure.dpi)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", compress_level=6, dpi=(resolution, resolution))
    return buffer.getvalue()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, making missing folders.

    Args:
        path: the file.
        content: its bytes.

    Raises:
        OSError: it cannot be written; the message names it and the reason.
    """
    # Not the full name: a long one plus a suffix may pass the file system's limit.
    temporary = path.parent / f".{path.name[:32]}.{secrets.token_hex(4)}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            reason = "a file stands where a folder is needed"
        raise OSError(error.errno, f"cannot write the picture: {reason}", os.fspath(path)) from error
    finally:
        # Also after Ctrl-C; gone already where the renaming succeeded.
        with contextlib.suppress(OSError):
            temporary.unlink()
