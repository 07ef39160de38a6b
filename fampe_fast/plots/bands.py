"""A number per radial frequency band, with its interval, of one model or several side by side."""

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
        curves: by name; all of one K where ``by_number``.
        title: the head.
        score: what drops, for the label of the vertical axis.
        ylabel: that label itself.
        by_number: bands at equal distances with their outer radii written below (for bands of equal energy, most of
            which lie close to DC); else on a linear axis of the radius.
        confidence: of the intervals, written below the head where there are any.
        cutoff: a radius marked by a dotted line; not with ``by_number``, whose axis has no radii.
        dpi: pixels per inch of a figure of 6.4 x 4.2 inches.

    Raises:
        ValueError: no curve, shapes that do not fit, NaN or infinity, or a cut-off with ``by_number``.
    """
    _check_all(curves, by_number, cutoff)
    figure = new_figure(6.4, 4.2, dpi)
    left, top, width, height = 0.95, 0.8, 5.2, 2.6
    add_text(figure, left, 0.32, title or "frequency bands", size=12, weight="bold", max_width=width, smallest=9)
    if any(curve.interval is not None for curve in curves.values()):
        _add_note(figure, left, "images", confidence)
    axes = framed_axes(figure, left, top, width, height)
    axes.set_label("bands")
    _draw(axes, curves, by_number, cutoff)
    axes.set_ylabel(ylabel or f"drop in {score} without the band")
    return figure


def band_panels_figure(
    panels: Mapping[str, Mapping[str, BandCurve]],
    *,
    title: str,
    over: str,
    ylabel: str,
    cutoffs: Mapping[str, float],
    confidence: float = 0.95,
    dpi: int = 120,
) -> Figure:
    """Draw values over bands as ``bands_figure`` does, a panel for each group of curves.

    Args:
        panels: by its head, the curves of each group by name; one colour for the k-th of each.
        title: the head of the figure.
        over: what the curves are means over, such as ``seeds``.
        ylabel: the label of the vertical axes.
        cutoffs: a radius for each panel, marked by a dotted line.
        confidence: of the intervals, written below the head.
        dpi: pixels per inch of a figure 4.2 inches high, 4.4 inches wide for each panel and 0.4 for the margins.

    Raises:
        ValueError: no panel or no curve, shapes that do not fit, NaN or infinity.
    """
    if not panels:
        raise ValueError("expected at least one panel, got none")
    for curves in panels.values():
        _check_all(curves)
    left, width = 0.85, 3.5
    figure = new_figure(0.4 + 4.4 * len(panels), 4.2, dpi)
    room = 4.4 * (len(panels) - 1) + width
    add_text(figure, left, 0.32, title, size=12, weight="bold", max_width=room, smallest=9)
    _add_note(figure, left, over, confidence)
    for k, (name, curves) in enumerate(panels.items()):
        place = left + 4.4 * k
        add_text(figure, place, 0.9, name, size=10, weight="bold", max_width=width)
        axes = framed_axes(figure, place, 1.05, width, 2.45)
        axes.set_label(name)
        _draw(axes, curves, cutoff=cutoffs[name])
        axes.set_ylabel(ylabel if k == 0 else "")
    return figure


def _add_note(figure: Figure, left: float, over: str, confidence: float) -> None:
    note = f"mean over {over}, shaded: {confidence:.0%} interval of the mean"
    add_text(figure, left, 0.57, note, size=9, colour=FAINT)


def _draw(axes: Axes, curves: Mapping[str, BandCurve], by_number: bool = False, cutoff: float | None = None) -> None:
    axes.grid(False, axis="x")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    last = 0.0
    for k, (name, curve) in enumerate(curves.items()):
        values = curve.values.detach().cpu().double()
        edges = torch.arange(len(values) + 1) + 0.5 if by_number else curve.edges.detach().cpu().double()
        last = max(last, float(edges[-1]))
        axes.stairs(values.numpy(), edges.numpy(), baseline=None, linewidth=1.8, label=name, **line_style(k))
        centres = (edges[1:] + edges[:-1]) / 2
        marker = marker_style(k)
        colour = marker["color"]
        axes.plot(centres, values, linestyle="", markersize=3.5, **marker)
        if curve.interval is not None:
            low, high = curve.interval.detach().cpu().double()
            axes.stairs(high.numpy(), edges.numpy(), baseline=low.numpy(), fill=True, color=colour, alpha=0.18, lw=0)
    if cutoff is not None and cutoff < last:
        axes.axvline(cutoff, color=FAINT, linewidth=1.2, linestyle=":", label=f"cut-off {cutoff:g}")
    axes.margins(y=0.06)
    axes.use_sticky_edges = False
    axes.autoscale_view()
    axes.set_xlim(0.5 if by_number else 0.0, last)
    if by_number:
        count = len(next(iter(curves.values())).values)
        outer = torch.stack([curve.edges.detach().cpu().double() for curve in curves.values()]).mean(0)[1:]
        shown = range(0, count, -(-count // _MOST_LABELS))
        axes.set_xticks([k + 1 for k in shown], [_radius(float(outer[k])) for k in shown])
    axes.set_xlabel(
        "outer radius of the band (cycles over the shorter side)"
        if by_number
        else "radius (cycles over the shorter side)"
    )
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(fontsize=8, frameon=False)


def _radius(radius: float) -> str:
    return f"{radius:.1f}" if radius < 10 else f"{radius:.0f}"


def _check_all(curves: Mapping[str, BandCurve], by_number: bool = False, cutoff: float | None = None) -> None:
    if not curves:
        raise ValueError("expected at least one curve, got none")
    for name, curve in curves.items():
        _check(name, curve)
    counts = {len(curve.values) for curve in curves.values()}
    if by_number and len(counts) > 1:
        raise ValueError(f"curves by number must have equally many bands, got {sorted(counts)}")
    if by_number and cutoff is not None:
        raise ValueError("a cut-off has no place on an axis of band numbers")


def _check(name: str, curve: BandCurve) -> None:
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
