"""Draw many images and several methods on one page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .canvas import FAINT, add_axes, add_scale, add_text, new_figure, to_bytes
from .colours import FloatArray, default_smoothing, image_to_rgb, overlay_rgb, scale_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Inches.
_MARGIN = 0.25
_GAP = 0.07
_CELL = 1.4
_TALLEST = 1.5  # times the cell's width; a taller image is fitted in
_FLATTEST = 0.2
_LINE = 0.2
_SCALE = 2.8
_SCALE_HEIGHT = 0.58
_BETWEEN_SCALES = 0.4
# Thumbnails have 64 levels per colour, which is not visible and makes the file a third smaller.
_LEVELS = np.rint(np.rint(np.arange(256) * 63 / 255) * 255 / 63).astype(np.uint8)


def contact_sheet(
    images: Tensor | Sequence[Tensor],
    maps_by_method: Mapping[str, Tensor | Sequence[Tensor]],
    titles: Sequence[str] | None = None,
    *,
    scores: Mapping[str, Tensor | Sequence[float]] | None = None,
    score_name: str = "insertion − deletion",
    title: str | None = None,
    percentile: float = 99.0,
    smoothing: float | None = None,
    dpi: int = 100,
) -> Figure:
    """Draw a row for every image and a column for every method: overlays side by side.

    Every map has its own colour scale, so colours compare places within a map, not strengths between maps.

    Args:
        images: (B, C, H, W) in [0, 1], or a sequence of (C, H, W) of any sizes.
        maps_by_method: for each method, in the order of the columns, maps of the images' sizes.
        titles: one line for each image, such as its class.
        scores: for methods of ``maps_by_method``, one number for each image: written under each map, the mean in the
            column's head. NaN is left out.
        score_name: name of the scores.
        title: title of the page.
        percentile: the share of each map's magnitudes inside its colour scale, in (0, 100].
        smoothing: standard deviation in pixels of a Gaussian over the maps; None is a ninetieth of the shorter side.
        dpi: pixels per inch; a cell is 1.4 inches wide.

    Returns:
        The figure, for ``save_figure``.

    Raises:
        TypeError: something that is not a tensor of the kind described.
        ValueError: no image, no method, numbers of images, maps, titles or scores that differ, sizes that differ.
    """
    count = len(images)
    _check_counts(count, maps_by_method, titles, scores)
    scores = scores or {}
    methods = list(maps_by_method)
    heights = [_row_height(image) for image in images]
    # The pictures come first: thumbnails are small, and the scales they need decide the height of the foot.
    rows: list[list[_Thumbnail]] = []
    for i in range(count):
        rgb = image_to_rgb(images[i])
        sigma = default_smoothing(*rgb.shape[:2]) if smoothing is None else smoothing
        row = [_Thumbnail(_shrink(rgb, heights[i], dpi))]
        for method in methods:
            scaled = scale_map(maps_by_method[method][i], percentile=percentile, smoothing=sigma)
            row.append(_Thumbnail(_shrink(overlay_rgb(rgb, scaled), heights[i], dpi), scaled.signed, scaled.empty))
        rows.append(row)
    scales = sorted({bool(cell.signed) for row in rows for cell in row[1:]})

    page_width = max(2 * _MARGIN + (1 + len(methods)) * (_CELL + _GAP) - _GAP, 2 * _MARGIN + _SCALE)
    room = page_width - 2 * _MARGIN
    abreast = room >= 2 * _SCALE + _BETWEEN_SCALES
    head = 0.2 + (0.32 if title else 0.0) + (0.44 if scores else 0.26)
    tops = [head + sum(heights[:i]) + i * (_LINE + _GAP) for i in range(count)]
    bottom = tops[-1] + heights[-1] + _LINE + 0.15
    scales_height = _SCALE_HEIGHT * (1 if abreast else len(scales))
    figure = new_figure(page_width, bottom + scales_height + (0.35 if scores else 0.1), dpi)
    _write_head(figure, title, methods, scores, head)

    # One pair of axes for the whole page, in inches: a hundred axes take seconds to draw.
    width, height = figure.get_size_inches()
    page = add_axes(figure, 0.0, 0.0, width, height)
    page.set_label("page")
    for i, (row, top) in enumerate(zip(rows, tops, strict=True)):
        for column, cell in enumerate(row):
            _place(page, cell.pixels, _left(column), top, heights[i], dpi)
        caption = top + heights[i] + 0.14
        if titles is not None:
            add_text(figure, _left(0), caption, titles[i], size=8, smallest=6.5, max_width=_CELL)
        for column, method in enumerate(methods, start=1):
            words = ["no evidence"] if row[column].empty else []
            if method in scores:
                words.append(_number(float(scores[method][i])))
            centre = _left(column) + _CELL / 2
            add_text(figure, centre, caption, ", ".join(words), size=8, colour=FAINT, align="center")
    # imshow moves the limits to its own picture.
    page.set_xlim(0.0, width)
    page.set_ylim(height, 0.0)

    for i, signed in enumerate(scales):
        left = _MARGIN + (i * (room + _BETWEEN_SCALES) / 2 if abreast else 0.0)
        top = bottom + (0.0 if abreast else i * _SCALE_HEIGHT)
        scale_width = (room - _BETWEEN_SCALES) / 2 if abreast else room
        add_scale(figure, left, top, scale_width, signed=signed, what="the class")
    if scores:
        line = bottom + scales_height + 0.15
        add_text(figure, _MARGIN, line, f"Numbers: {score_name}", size=8.5, smallest=6.5, max_width=room)
    return figure


@dataclass(frozen=True)
class _Thumbnail:
    """A thumbnail, (h, w, 3) uint8, with its map's scale; the image itself has no map."""

    pixels: NDArray[np.uint8]
    signed: bool = False
    empty: bool = False


def _left(column: int) -> float:
    return _MARGIN + column * (_CELL + _GAP)


def _write_head(
    figure: Figure,
    title: str | None,
    methods: Sequence[str],
    scores: Mapping[str, Tensor | Sequence[float]],
    head: float,
) -> None:
    """Write the title, and the method and mean score of each column; the pictures begin at ``head``."""
    if title:
        room = float(figure.get_size_inches()[0]) - 2 * _MARGIN
        add_text(figure, _MARGIN, 0.38, title, size=13, smallest=10, weight="bold", max_width=room)
    line = head - (0.26 if scores else 0.08)
    for column, words in enumerate(["image", *methods]):
        centre = _left(column) + _CELL / 2
        add_text(figure, centre, line, words, size=9.5, smallest=7.5, weight="bold", align="center", max_width=_CELL)
        if column > 0 and words in scores:
            mean = f"mean {_number(_mean(scores[words]))}"
            add_text(figure, centre, line + 0.18, mean, size=8.5, colour=FAINT, align="center", max_width=_CELL)


def _check_counts(
    count: int,
    maps_by_method: Mapping[str, Tensor | Sequence[Tensor]],
    titles: Sequence[str] | None,
    scores: Mapping[str, Tensor | Sequence[float]] | None,
) -> None:
    if count == 0:
        raise ValueError("expected at least one image, got none")
    if not maps_by_method:
        raise ValueError("expected the maps of at least one method, got none")
    for method, maps in maps_by_method.items():
        if len(maps) != count:
            raise ValueError(f"expected {count} maps of {method!r}, one for each image, got {len(maps)}")
    if titles is not None and len(titles) != count:
        raise ValueError(f"expected {count} titles, one for each image, got {len(titles)}")
    for method, values in (scores or {}).items():
        if method not in maps_by_method:
            raise ValueError(f"expected scores of the methods {list(maps_by_method)}, got some of {method!r}")
        if len(values) != count:
            raise ValueError(f"expected {count} scores of {method!r}, one for each image, got {len(values)}")


def _row_height(image: Tensor) -> float:
    if not isinstance(image, Tensor):
        raise TypeError(f"expected images as tensors, got {type(image).__name__}")
    if image.dim() != 3 or image.numel() == 0:
        raise ValueError(f"expected images (C, H, W), got shape {tuple(image.shape)}")
    height, width = image.shape[1:]
    return min(max(_CELL * height / width, _FLATTEST * _CELL), _TALLEST * _CELL)


def _shrink(rgb: FloatArray, row_height: float, dpi: int) -> NDArray[np.uint8]:
    """Make a thumbnail with the resolution of its cell, so that a page of photographs stays small."""
    from PIL import Image

    height, width = rgb.shape[:2]
    scale = min(_CELL / width, row_height / height)
    columns, rows = (max(1, round(side * scale * dpi)) for side in (width, height))
    # Few pixels are shown as squares, more are interpolated, and too many are averaged.
    way = Image.Resampling.NEAREST if columns >= 4 * width else Image.Resampling.LANCZOS
    thumbnail: NDArray[np.uint8] = _LEVELS[np.asarray(Image.fromarray(to_bytes(rgb)).resize((columns, rows), way))]
    return thumbnail


def _place(page: Axes, pixels: NDArray[np.uint8], left: float, top: float, row_height: float, dpi: int) -> None:
    """Put a thumbnail into the middle of its cell."""
    height, width = pixels.shape[0] / dpi, pixels.shape[1] / dpi
    left += (_CELL - width) / 2
    top += (row_height - height) / 2
    page.imshow(
        pixels,
        extent=(left, left + width, top + height, top),
        origin="upper",
        interpolation="nearest",
        aspect="auto",
        resample=True,
    )


def _mean(scores: Tensor | Sequence[float]) -> float:
    values = [float(score) for score in scores]
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{round(value, 3) + 0.0:.3f}".replace("-", "−")
