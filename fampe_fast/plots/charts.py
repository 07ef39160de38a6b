"""What the charts share: lines that the colour-blind tell apart, and axes with a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .canvas import FAINT, INK, add_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours; dashes and markers tell the lines apart once more.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#1a1a1a")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = "osD^vPX"


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line."""
    return {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _DASHES[number % len(_DASHES)]}


def marker_style(number: int) -> dict[str, Any]:
    """Colour and marker of the n-th line."""
    return {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}


def framed_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes with a grid and without the upper and the right side; places and sizes in inches, from the upper left."""
    axes = add_axes(figure, left, top, width, height)
    axes.set_axis_on()
    axes.grid(color="#e0e0e0", linewidth=0.6)
    axes.tick_params(labelsize=8, colors=FAINT)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    return axes
