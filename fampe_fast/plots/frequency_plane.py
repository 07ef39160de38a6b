"""Draw the evidence of every frequency: signed over the plane, and summed in rings and in sectors of orientation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .bands import BandCurve, check_curve, draw_steps
from .canvas import FAINT, add_scale, add_text, framed_axes, new_figure, to_bytes
from .colours import FloatArray, ScaledMap, colours_of, default_smoothing, gaussian_smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches.
_LEFT, _TOP, _PLANE = 0.75, 0.8, 3.3
_SECOND, _WIDTH, _HEIGHT, _BETWEEN = 5.0, 3.7, 1.3, 0.72
# Share of the evidence's magnitude that the plane shows; the rest is in fainter frequencies around it.
_SHOWN = 0.9
# Values of one sign beside those of the other span decades: the colours follow the square root of the magnitude.
_POWER = 0.5
_PERCENTILE = 99.8
_TICKS = (-90, -45, 0, 45, 90, 135)


def frequency_plane_figure(
    plane: Tensor,
    rings: BandCurve,
    sectors: BandCurve,
    *,
    title: str,
    what: str = "the class",
    unit: str = "logit",
    confidence: float | None = None,
    dpi: int = 120,
) -> Figure:
    """Draw the values of all frequencies with their signs, and their sums in rings and sectors.

    The plane is smoothed as an overlay is, and cut to the frequencies that hold nine tenths of the magnitudes. Colours
    follow the square root of the magnitude; where they end, at all but a few frequencies, is written below.

    Args:
        plane: (2 (H//2) + 1, 2 (W//2) + 1) from ``frequency.centred``, finite.
        rings: sums over rings, by radius in cycles over the shorter side.
        sectors: sums over sectors, by angle in degrees.
        title: title of the figure.
        what: target of the evidence.
        unit: unit of the values.
        confidence: coverage of the intervals, written below the title; None where there are none.
        dpi: pixels per inch of a figure of 9.0 x 5.5 inches.

    Raises:
        ValueError: a plane of even sides or with NaN or infinity, or curves that ``bands_figure`` refuses.
    """
    if plane.ndim != 2 or 0 in (plane.shape[0] % 2, plane.shape[1] % 2) or not bool(plane.isfinite().all()):
        raise ValueError(f"plane must be (2 h + 1, 2 w + 1) and finite, got shape {tuple(plane.shape)}")
    for name, curve in (("rings", rings), ("sectors", sectors)):
        check_curve(name, curve)
    figure = new_figure(_SECOND + _WIDTH + 0.3, _TOP + _PLANE + 1.4, dpi)
    add_text(figure, _LEFT, 0.32, title, size=12, weight="bold", max_width=_SECOND + _WIDTH - _LEFT, smallest=8)
    if confidence is not None:
        words = f"mean over images, shaded: {confidence:.0%} interval of the mean"
        add_text(figure, _LEFT, 0.57, words, size=9, colour=FAINT)
    axes = framed_axes(figure, _LEFT, _TOP, _PLANE, _PLANE)
    axes.set_label("plane")
    axes.grid(False)
    values = plane.detach().cpu().double().numpy()
    sigma = default_smoothing(*values.shape)  # smoothed, as neighbours differ by chance
    limit = _paint(axes, gaussian_smooth(values, sigma) if sigma else values)
    axes.set(xlabel="frequency across (cycles per image)", ylabel="frequency downwards (cycles per image)")
    below = _TOP + _PLANE + 0.52
    add_scale(figure, _LEFT, below, _PLANE, signed=True, what=what)
    words = f"colours: square root of the magnitude, up to ±{limit:.2g} {unit} a frequency"
    words += f", smoothed by {sigma:.1f}" if sigma else ""
    add_text(figure, _LEFT, below + 0.68, words, size=8, colour=FAINT)
    axes = framed_axes(figure, _SECOND, _TOP, _WIDTH, _HEIGHT)
    axes.set_label("rings")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    draw_steps(axes, 0, "rings", rings.edges.detach().cpu().double(), rings)
    axes.set(xlabel="radius (cycles over the shorter side)", ylabel=unit)
    axes.set_xlim(0, float(rings.edges[-1]))
    axes = framed_axes(figure, _SECOND, _TOP + _HEIGHT + _BETWEEN, _WIDTH, _HEIGHT)
    axes.set_label("sectors")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    draw_steps(axes, 1, "sectors", sectors.edges.detach().cpu().double(), sectors)
    axes.set(xlabel="direction of the waves (degrees; 0: across, 90: upright)", ylabel=unit)
    axes.set_xticks([tick for tick in _TICKS if float(sectors.edges[0]) <= tick <= float(sectors.edges[-1])])
    axes.set_xlim(float(sectors.edges[0]), float(sectors.edges[-1]))
    return figure


def _paint(axes: Axes, values: FloatArray) -> float:
    """Paint the part of the plane with most of the magnitudes, and return the magnitude at which the colours end."""
    height, width = values.shape
    down, across = np.abs(np.arange(height) - height // 2), np.abs(np.arange(width) - width // 2)
    reach = np.maximum(down[:, None] / max(1, height // 2), across / max(1, width // 2))
    order = np.argsort(reach, axis=None)
    inside = np.abs(values).ravel()[order].cumsum()
    shown = reach.ravel()[order][min(int(np.searchsorted(inside, _SHOWN * inside[-1])), reach.size - 1)]
    rows, columns = (max(1, round(float(shown) * (side // 2))) for side in (height, width))
    part = values[height // 2 - rows : height // 2 + rows + 1, width // 2 - columns : width // 2 + columns + 1]
    # The few largest values around DC would leave the others black.
    limit = float(np.percentile(np.abs(part), _PERCENTILE)) or float(np.abs(part).max())
    strength = np.sign(part) * np.minimum(np.abs(part) / (limit or 1.0), 1.0) ** _POWER
    axes.imshow(
        to_bytes(colours_of(ScaledMap(strength, limit, signed=True))),
        origin="upper",
        extent=(-columns - 0.5, columns + 0.5, rows + 0.5, -rows - 0.5),
        interpolation="nearest",
        aspect="auto",
    )
    return limit
