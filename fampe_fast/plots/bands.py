"""Draw a number per radial frequency band with its interval, for one or several models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .canvas import FAINT, add_text, framed_axes, line_style, marker_style, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_LABELS = 17


@dataclass(frozen=True, eq=False)
class BandCurve:
    """One line of the figure.

    Attributes:
        edges: (K + 1,), radii of the bands in cycles over the shorter side, not descending.
        values: (K,), a number per band, such as a mean drop.
        interval: (2, K), its lower and upper ends; None for none.
    """

    edges: Tensor
    values: Tensor
    interval: Tensor | None = None


def bands_figure(
    curves: Mapping[str, BandCurve],
    *,
    title: str | None = None,
    score: str = "probability",
    ylabel: str | None = None,
    by_number: bool = False,
    confidence: float = 0.95,
    cutoff: float | None = None,
    dpi: int = 120,
) -> Figure:
    """Draw values over bands: a step per band and a shaded interval, a colour and dash per curve.

    Args:
        curves: by name; all with the same K if ``by_number``.
        title: title of the figure.
        score: name of the dropping score, for the label of the vertical axis.
        ylabel: the label itself, in place of one made from ``score``.
        by_number: bands at equal distances with their outer radii written below (for bands of equal energy, most of
            which lie close to DC); else on a linear axis of the radius.
        confidence: coverage of the intervals, written below the title where there are any.
        cutoff: a radius marked by a dotted line; not with ``by_number``, whose axis has no radii.
        dpi: pixels per inch of a figure of 6.4 x 4.2 inches.

    Raises:
        ValueError: no curve, shapes that do not fit, NaN or infinity, or a cut-off with ``by_number``.
    """
    if not curves:
        raise ValueError("expected at least one curve, got none")
    for name, curve in curves.items():
        check_curve(name, curve)
    counts = {len(curve.values) for curve in curves.values()}
    if by_number and len(counts) > 1:
        raise ValueError(f"curves by number must have equally many bands, got {sorted(counts)}")
    if by_number and cutoff is not None:
        raise ValueError("a cut-off cannot be drawn on an axis of band numbers")
    figure = new_figure(6.4, 4.2, dpi)
    left, top, width, height = 0.95, 0.8, 5.2, 2.6
    add_text(figure, left, 0.32, title or "frequency bands", size=12, weight="bold", max_width=width, smallest=9)
    if any(curve.interval is not None for curve in curves.values()):
        add_text(
            figure, left, 0.57, f"mean over images, shaded: {confidence:.0%} interval of the mean", size=9, colour=FAINT
        )
    axes = framed_axes(figure, left, top, width, height)
    axes.set_label("bands")
    axes.grid(False, axis="x")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    last = 0.0
    for k, (name, curve) in enumerate(curves.items()):
        edges = torch.arange(len(curve.values) + 1) + 0.5 if by_number else curve.edges.detach().cpu().double()
        last = max(last, float(edges[-1]))
        draw_steps(axes, k, name, edges, curve)
    if cutoff is not None and cutoff < last:
        axes.axvline(cutoff, color=FAINT, linewidth=1.2, linestyle=":", label=f"cut-off {cutoff:g}")
    axes.margins(y=0.06)
    axes.use_sticky_edges = False
    axes.autoscale_view()
    axes.set_xlim(0.5 if by_number else 0.0, last)
    if by_number:
        count = counts.pop()
        outer = torch.stack([curve.edges.detach().cpu().double() for curve in curves.values()]).mean(0)[1:]
        shown = range(0, count, -(-count // _MOST_LABELS))
        axes.set_xticks([k + 1 for k in shown], [_radius(float(outer[k])) for k in shown])
    axes.set_xlabel(
        "outer radius of the band (cycles over the shorter side)"
        if by_number
        else "radius (cycles over the shorter side)"
    )
    axes.set_ylabel(ylabel or f"drop in {score} without the band")
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize=8, frameon=False)
    return figure


def _radius(radius: float) -> str:
    return f"{radius:.1f}" if radius < 10 else f"{radius:.0f}"


def draw_steps(axes: Axes, number: int, name: str, edges: Tensor, curve: BandCurve) -> None:
    """Draw a curve in the style of the n-th line: a step and a marker per band, and its interval shaded.

    Args:
        axes: the axes.
        number: number of the line.
        name: name in the legend.
        edges: (K + 1,), where the bands begin and end on the axis.
        curve: its values and interval.
    """
    values = curve.values.detach().cpu().double()
    axes.stairs(values.numpy(), edges.numpy(), baseline=None, linewidth=1.8, label=name, **line_style(number))
    marker = marker_style(number)
    axes.plot((edges[1:] + edges[:-1]) / 2, values, linestyle="", markersize=3.5, **marker)
    if curve.interval is not None:
        low, high = curve.interval.detach().cpu().double().numpy()
        colour = marker["color"]
        axes.stairs(high, edges.numpy(), baseline=low, fill=True, color=colour, alpha=0.18, lw=0)


def check_curve(name: str, curve: BandCurve) -> None:
    """Check a curve.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, or edges that descend.
    """
    edges, values, interval = curve.edges, curve.values, curve.interval
    if values.ndim != 1 or not len(values) or edges.shape != (len(values) + 1,):
        raise ValueError(
            f"{name!r} must have values (K,) and edges (K + 1,), got {tuple(values.shape)} and {tuple(edges.shape)}"
        )
    if interval is not None and interval.shape != (2, len(values)):
        raise ValueError(f"the interval of {name!r} must be (2, {len(values)}), got {tuple(interval.shape)}")
    parts = (edges, values) if interval is None else (edges, values, interval)
    if not all(bool(part.isfinite().all()) for part in parts):
        raise ValueError(f"{name!r} holds NaN or infinity")
    if bool((edges[1:] < edges[:-1]).any()):
        raise ValueError(f"the edges of {name!r} must not descend")
