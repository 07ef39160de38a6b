"""Draw the scores of a study against the varied number, and of a search against the radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..metrics.summary import Estimate
from .canvas import FAINT, add_text, framed_axes, line_style, marker_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL_WIDTH, _PANEL_HEIGHT, _LEFT, _TOP, _GAP = 3.6, 2.1, 0.75, 0.75, 0.65


@dataclass
class StudyLine:
    """One line of the plot.

    Attributes:
        axis: name of the varied number; lines with the same axis share a column.
        name: name in the legend.
        points: a value and a score for each row of the figure; in any order.
    """

    axis: str
    name: str
    points: list[tuple[Any, ...]]


def study_figure(
    lines: Sequence[StudyLine],
    *,
    title: str,
    reference: tuple[Any, ...] | None = None,
    rows: Sequence[str] = ("insertion (higher is better)", "deletion (lower is better)"),
    dpi: int = 120,
) -> Figure:
    """Draw scores, a row each, over the varied numbers, a column each, with standard errors as bars.

    Args:
        lines: at least one.
        title: title of the figure.
        reference: label and scores of the reference, drawn as a horizontal line.
        rows: names of the scores, from the top.
        dpi: pixels per inch; a column is about 4.3 inches wide.

    Raises:
        ValueError: no line, or one without points.
    """
    if not lines or not all(line.points for line in lines):
        raise ValueError("expected at least one line, each with at least one point")
    axes_names = list(dict.fromkeys(line.axis for line in lines))
    width = _LEFT + len(axes_names) * (_PANEL_WIDTH + _GAP)
    height = _TOP + len(rows) * (_PANEL_HEIGHT + _GAP)
    figure = new_figure(width, height, dpi)
    add_text(figure, _LEFT, 0.32, title, size=12, weight="bold", max_width=width - _LEFT - 0.2, smallest=8)
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
                estimates: list[Estimate] = [point[1 + row] for point in points]
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


@dataclass(frozen=True)
class CutoffCurve:
    """The scores of one method's maps by the radius they are filtered with.

    Attributes:
        points: by radius, in cycles over the shorter side, at least 1.
        unfiltered: the score of the unfiltered maps.
        best: the marked radius, one of the points.
    """

    points: Mapping[int, Estimate]
    unfiltered: Estimate
    best: int


def cutoffs_figure(
    curves: Mapping[str, CutoffCurve], *, title: str, score: str = "insertion − deletion", dpi: int = 120
) -> Figure:
    """Draw scores over the cut-off on a logarithmic axis, a curve per method, with standard errors, the best ringed.

    Args:
        curves: by method, at least one.
        title: title of the figure.
        score: label of the vertical axis.
        dpi: pixels per inch of a figure of 6.4 x 4.2 inches.

    Raises:
        ValueError: no curve, one without points, or a best radius that is not one of them.
    """
    if not curves:
        raise ValueError("expected at least one curve, got none")
    for name, curve in curves.items():
        if curve.best not in curve.points:
            raise ValueError(f"the best radius of {name!r}, {curve.best}, is not one of {sorted(curve.points)}")
    figure = new_figure(6.4, 4.2, dpi)
    left, top, width, height = 0.95, 0.8, 5.2, 2.6
    add_text(figure, left, 0.32, title, size=12, weight="bold", max_width=width, smallest=9)
    words = "mean ± standard error over images; ringed: the best; dotted: the maps unfiltered"
    add_text(figure, left, 0.57, words, size=9, colour=FAINT)
    axes = framed_axes(figure, left, top, width, height)
    axes.set_label("cut-offs")
    for k, (name, curve) in enumerate(curves.items()):
        radii, style = sorted(curve.points), line_style(k) | marker_style(k)
        axes.errorbar(
            radii,
            [curve.points[radius].mean for radius in radii],
            yerr=[curve.points[radius].standard_error or 0.0 for radius in radii],
            **style,
            markersize=4,
            linewidth=1.6,
            capsize=2,
            label=f"{name}, best {curve.best}",
        )
        axes.plot(
            [curve.best], [curve.points[curve.best].mean], linestyle="", marker="o", markersize=11,
            markerfacecolor="none", markeredgecolor=style["color"], markeredgewidth=1.4,
        )  # fmt: skip
        axes.axhline(curve.unfiltered.mean, color=style["color"], linewidth=1.2, linestyle=":")
    most = max(radius for curve in curves.values() for radius in curve.points)
    axes.set_xscale("log", base=2)
    ticks = [2**k for k in range(most.bit_length())]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="cut-off (cycles over the shorter side)", ylabel=score)
    axes.legend(fontsize=8, frameon=False)
    return figure
