"""Draw curves over bands in panels, one for each group of curves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from .bands import BandCurve, check_curve, draw_steps
from .canvas import FAINT, add_text, framed_axes, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_LEFT, _TOP, _WIDTH, _HEIGHT, _GAP = 0.85, 1.05, 3.5, 2.45, 0.9


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
        panels: by title, the curves of each group by name; the k-th curves of all groups have the same style.
        title: title of the figure.
        over: the number and kind of averaged items, such as ``3 seeds``.
        ylabel: the label of the vertical axes.
        cutoffs: a radius for each panel, marked by a dotted line.
        confidence: coverage of the intervals, written below the title.
        dpi: pixels per inch of a figure 4.2 inches high, 4.4 inches wide for each panel.

    Raises:
        ValueError: no panel or no curve, shapes that do not fit, NaN or infinity.
    """
    if not panels or not all(panels.values()):
        raise ValueError("expected at least one panel, and at least one curve in each")
    for curves in panels.values():
        for name, curve in curves.items():
            check_curve(name, curve)
    step = _WIDTH + _GAP
    room = step * len(panels) - _GAP
    figure = new_figure(_LEFT + room + 0.4, 4.2, dpi)
    add_text(figure, _LEFT, 0.32, title, size=12, weight="bold", max_width=room, smallest=9)
    note = f"mean over {over}, shaded: {confidence:.0%} interval of the mean"
    add_text(figure, _LEFT, 0.57, note, size=9, colour=FAINT)
    for k, (head, curves) in enumerate(panels.items()):
        add_text(figure, _LEFT + k * step, _TOP - 0.15, head, size=10, weight="bold", max_width=_WIDTH)
        axes = framed_axes(figure, _LEFT + k * step, _TOP, _WIDTH, _HEIGHT)
        axes.set_label(head)
        axes.grid(False, axis="x")
        axes.axhline(0, color=FAINT, linewidth=0.8)
        for number, (name, curve) in enumerate(curves.items()):
            draw_steps(axes, number, name, curve.edges.detach().cpu().double(), curve)
        axes.axvline(cutoffs[head], color=FAINT, linewidth=1.2, linestyle=":", label=f"cut-off {cutoffs[head]:g}")
        axes.margins(y=0.06)
        axes.use_sticky_edges = False
        axes.autoscale_view()
        axes.set_xlim(0, max(float(curve.edges[-1]) for curve in curves.values()))
        axes.set_xlabel("radius (cycles over the shorter side)")
        axes.set_ylabel(ylabel if k == 0 else "")
        axes.legend(fontsize=8, frameon=False)
    return figure
