"""Scores of a study against the number that is varied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fampe_fast.metrics.summary import Estimate
from fampe_fast.plots.canvas import FAINT, add_text, new_figure
from fampe_fast.plots.charts import framed_axes, line_style, marker_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL_WIDTH, _PANEL_HEIGHT, _LEFT, _TOP, _GAP = 3.6, 2.1, 0.75, 0.75, 0.65


@dataclass
class StudyLine:
    """One line of the plot.

    Attributes:
        axis: what is varied; lines with one axis share a column.
        name: for the legend.
        points: (value, upper score, lower score), in any order.
    """

    axis: str
    name: str
    points: list[tuple[float, Estimate, Estimate]]


def study_figure(
    lines: Sequence[StudyLine],
    *,
    title: str,
    reference: tuple[str, float, float] | None = None,
    rows: tuple[str, str] = ("insertion (higher is better)", "deletion (lower is better)"),
    dpi: int = 120,
) -> Figure:
    """Two scores, a row each, over what is varied, a column per axis, with standard errors as bars.

    Args:
        lines: at least one.
        title: the head.
        reference: label and the two scores of what the lines are compared with, drawn across.
        rows: names of the upper and the lower row's score.
        dpi: pixels per inch; a column is about 4.3 inches wide.

    Raises:
        ValueError: no line, or one without points.
    """
    if not lines or not all(line.points for line in lines):
        raise ValueError("expected at least one line, each with at least one point")
    axes_names = list(dict.fromkeys(line.axis for line in lines))
    width = _LEFT + len(axes_names) * (_PANEL_WIDTH + _GAP)
    height = _TOP + 2 * (_PANEL_HEIGHT + _GAP)
    figure = new_figure(width, height, dpi)
    add_text(figure, _LEFT, 0.32, title, size=12, weight="bold", max_width=width - _LEFT - 0.2)
    for column, axis in enumerate(axes_names):
        shown = [line for line in lines if line.axis == axis]
        for row, score in enumerate(rows):
            axes = framed_axes(
                figure,
                _LEFT + column * (_PANEL_WIDTH + _GAP),
                _TOP + row * (_PANEL_HEIGHT + _GAP) - 0.2,
                _PANEL_WIDTH,
                _PANEL_HEIGHT,
            )
            for k, line in enumerate(shown):
                points = sorted(line.points, key=lambda point: point[0])
                estimates = [(point[1], point[2])[row] for point in points]
                axes.errorbar(
                    [point[0] for point in points],
                    [estimate.mean for estimate in estimates],
                    yerr=[estimate.standard_error or 0.0 for estimate in estimates],
                    **(line_style(k) | marker_style(k)),
                    markersize=4,
                    linewidth=1.6,
                    capsize=2,
                    label=line.name,
                )
            if reference is not None:
                axes.axhline(reference[1:][row], color=FAINT, linewidth=1.2, linestyle=":", label=reference[0])
            axes.set(xlabel=axis, ylabel=score if not column else "")
            if not row:
                axes.legend(fontsize=8, frameon=False)
    return figure
