"""Write figures atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..files import FIGURE, png_content, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: str | os.PathLike[str], *, key: str = "") -> Path:
    """Write a figure as a PNG of exactly its size times its dpi.

    The file is written under a temporary name in the same folder and renamed: an interrupted or failed run leaves
    neither half a file nor a damaged earlier one. Missing folders are made.

    Args:
        figure: any matplotlib figure.
        path: the file, ending in ``.png``.
        key: hash of the figure's inputs, for the package's mark.

    Returns:
        The path.

    Raises:
        ValueError: the name does not end in ``.png``.
        OSError: the file cannot be written; the message names it and the reason.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"expected a file name ending in .png, got {os.fspath(path)!r}")
    write_atomically(target, png_bytes(figure, key=key))
    return target


def png_bytes(figure: Figure, *, key: str = "") -> bytes:
    """Draw a figure as an opaque PNG with the package's mark.

    Args:
        figure: any matplotlib figure; its canvas is not changed.
        key: hash of the figure's inputs, for the mark.

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
    resolution = float(figure.dpi)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return png_content(image, FIGURE, key, compress_level=6, dpi=(resolution, resolution))
