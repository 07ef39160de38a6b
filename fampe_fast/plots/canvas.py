"""Lay out figures in inches from the top left corner, independent of pyplot and of the user's rcParams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .colours import FloatArray, ScaledMap, colours_of
from .loading import load_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from numpy.typing import NDArray

INK = "#1a1a1a"
FAINT = "#5f5f5f"
_FONT = "DejaVu Sans"  # included in matplotlib
_ELLIPSIS = "…"
# Okabe and Ito's colours; lines also differ in dashes and markers.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1a1a1a")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX"


def new_figure(width: float, height: float, dpi: int) -> Figure:
    """Make a white figure with an Agg canvas of its own, unknown to pyplot; sizes in inches.

    Raises:
        ValueError: ``dpi`` outside 20 to 600.
    """
    load_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not 20 <= dpi <= 600:
        raise ValueError(f"expected dpi from 20 to 600, got {dpi}")
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white", edgecolor="white")
    figure.set_layout_engine("none")  # independent of the rcParams, as places are in inches
    FigureCanvasAgg(figure)
    return figure


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes without frame, ticks and grid at a place given in inches from the top left corner."""
    full_width, full_height = figure.get_size_inches()
    axes = figure.add_axes(
        (left / full_width, 1 - (top + height) / full_height, width / full_width, height / full_height)
    )
    axes.set_axis_off()
    return axes


def framed_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes with a grid and without the upper and the right side, at a place as in ``add_axes``."""
    axes = add_axes(figure, left, top, width, height)
    axes.set_axis_on()
    axes.grid(color="#e0e0e0", linewidth=0.6)
    axes.tick_params(labelsize=8, colors=FAINT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    return axes


def line_style(number: int) -> dict[str, Any]:
    """Choose colour and dashes of the n-th line."""
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _DASHES[number % len(_DASHES)]}


def marker_style(number: int) -> dict[str, Any]:
    """Choose colour and marker of the n-th line."""
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}


def show_rgb(axes: Axes, rgb: FloatArray) -> None:
    """Fill axes with a picture (H, W, 3) in [0, 1], row 0 at the top; pixel (i, j) is centred on y = i, x = j."""
    axes.imshow(to_bytes(rgb), origin="upper", interpolation="antialiased", aspect="auto", resample=True)


def to_bytes(rgb: FloatArray) -> NDArray[np.uint8]:
    """Round colours in [0, 1], of any shape, to 8-bit integers."""
    integers: NDArray[np.uint8] = np.rint(np.asarray(rgb) * 255.0).astype(np.uint8)
    return integers


def add_text(
    figure: Figure,
    left: float,
    top: float,
    content: str,
    *,
    size: float = 10.0,
    colour: str = INK,
    weight: Literal["normal", "bold"] = "normal",
    align: Literal["left", "center", "right"] = "left",
    vertical: Literal["top", "center", "baseline", "bottom"] = "baseline",
    max_width: float | None = None,
    smallest: float | None = None,
    rotation: float = 0.0,
) -> Text:
    """Write one line literally, without interpreting TeX or mathematics.

    Args:
        figure: the figure.
        left: horizontal position of the anchor in inches.
        top: vertical position of the anchor in inches.
        content: line breaks and control characters become spaces.
        size: points.
        colour: colour of the text.
        weight: weight of the font.
        align: horizontal position of the anchor in the text.
        vertical: vertical position of the anchor in the text.
        max_width: inches; a longer text is set smaller, then cut and ended by an ellipsis.
        smallest: points, down to which the size may go before the text is cut; None is ``size``.
        rotation: degrees, anticlockwise.

    Returns:
        The text.
    """
    full_width, full_height = figure.get_size_inches()
    text = figure.text(
        left / full_width,
        1 - top / full_height,
        single_line(content),
        ha=align,
        va=vertical,
        parse_math=False,
        usetex=False,
        fontfamily=_FONT,
        fontstyle="normal",
        fontvariant="normal",
        fontstretch="normal",
        rotation=rotation,
        fontsize=size,
        fontweight=weight,
        color=colour,
    )
    if max_width is not None:
        width = max_width * figure.dpi
        while smallest is not None and size > smallest and text.get_window_extent().width > width:
            size = max(smallest, size - 0.5)
            text.set_fontsize(size)
        _shorten(text, width)
    return text


def single_line(content: str) -> str:
    """Remove line breaks, tabs and other unprintable characters from a text, and collapse white space."""
    return " ".join("".join(c if c.isprintable() else " " for c in content).split())


def _shorten(text: Text, width: float) -> None:
    """Shorten a text so that it fits ``width`` pixels with an ellipsis."""
    content = text.get_text()
    if text.get_window_extent().width <= width:
        return
    fits, too_long = 0, len(content)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        text.set_text(content[:middle].rstrip() + _ELLIPSIS)
        if text.get_window_extent().width <= width:
            fits = middle
        else:
            too_long = middle
    text.set_text(content[:fits].rstrip() + _ELLIPSIS)


def add_scale(figure: Figure, left: float, top: float, width: float, *, signed: bool, what: str) -> None:
    """Add a horizontal colour bar and the words that explain it; takes 0.5 inches of height.

    Args:
        figure: the figure.
        left: inches, as ``top`` and ``width``.
        top: top of the bar.
        width: width of the bar.
        signed: which of the two colour scales.
        what: target of the evidence, usually a class name.
    """
    bar_height = 0.13
    values = np.linspace(-1.0 if signed else 0.0, 1.0, 512, dtype=np.float32)[None]
    bar = add_axes(figure, left, top, width, bar_height)
    bar.set_label("colour scale")
    show_rgb(bar, colours_of(ScaledMap(values, 1.0, signed)))
    below = top + bar_height + 0.17
    ends = ("against", "for") if signed else ("none", "strong")
    add_text(figure, left, below, ends[0], size=9, colour=FAINT)
    add_text(figure, left + width, below, ends[1], size=9, colour=FAINT, align="right")
    if signed:
        add_text(figure, left + width / 2, below, "0", size=9, colour=FAINT, align="center")
        words = f"evidence against and for {what}"
    else:
        words = f"evidence for {what}"
    # On a separate line under the signed scale, as zero is written in its middle.
    line = below + 0.18 if signed else below
    room = width if signed else width - 1.1
    add_text(figure, left + width / 2, line, words, size=9, align="center", max_width=room)


def outline_of(mask: NDArray[np.bool_]) -> list[FloatArray]:
    """Trace the closed outlines of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        One (n, 2) array of (x, y) for each outline, pixel (i, j) being the unit square centred on x = j, y = i; none
        for an empty mask.
    """
    from contourpy import contour_generator

    # Padding closes the outlines of objects at the image's border.
    framed = np.pad(mask, 1).astype(np.float64)
    generator = contour_generator(x=np.arange(-1, mask.shape[1] + 1), y=np.arange(-1, mask.shape[0] + 1), z=framed)
    return [np.asarray(line) for line in generator.lines(0.5)]


def draw_outline(axes: Axes, mask: NDArray[np.bool_]) -> None:
    """Outline a mask (H, W) over a picture of ``show_rgb``, light with a dark rim for visibility."""
    from matplotlib.collections import LineCollection

    lines = outline_of(mask)
    for colour, thickness in (("black", 2.8), ("white", 1.3)):
        axes.add_collection(
            LineCollection(lines, colors=colour, linewidths=thickness, joinstyle="round", label="outline"),
            autolim=False,
        )
