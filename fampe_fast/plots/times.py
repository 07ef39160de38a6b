"""Draw the scores of methods against the time of their maps (as in figures 1B and 3B of arXiv 2307.09591)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..metrics.summary import Estimate
from .canvas import FAINT, add_text, framed_axes, marker_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINE = 0.19
"""Height of a line of the list, inches."""


@dataclass(frozen=True)
class TimePoint:
    """One method.

    Attributes:
        name: name of the method.
        seconds: per image, above 0.
        score: score of its maps.
        gradients: whether it needs the model's gradients.
    """

    name: str
    seconds: float
    score: Estimate
    gradients: bool


def times_figure(points: Sequence[TimePoint], *, title: str, score: str, high: bool = True, dpi: int = 120) -> Figure:
    """Draw a numbered point per method, its score over its seconds on a logarithmic axis, with standard errors.

    A line joins the methods that no faster one beats. The list beside the axes maps numbers to methods.

    Args:
        points: at least one.
        title: title of the figure.
        score: label of the vertical axis.
        high: whether a high score is better.
        dpi: pixels per inch of a figure 9 inches wide.

    Raises:
        ValueError: no point, or one without a time.
    """
    if not points or not all(point.seconds > 0 for point in points):
        raise ValueError("expected at least one point, each of more than 0 seconds")
    left, top, width = 0.9, 0.85, 4.9
    height = max(3.2, _LINE * (len(points) + 1))
    figure = new_figure(9.0, top + height + 0.6, dpi)
    add_text(figure, left, 0.32, f"{title}: {score} against time", size=12, weight="bold", max_width=7.9, smallest=8)
    words = "mean ± standard error; round: with gradients, square: without; line: nothing faster is better"
    add_text(figure, left, 0.56, words, size=9, colour=FAINT, max_width=7.9)
    axes = framed_axes(figure, left, top, width, height)
    axes.set_label("times")
    best = _front(points, high)
    axes.plot([p.seconds for p in best], [p.score.mean for p in best], color=FAINT, linewidth=1.2, linestyle=":")
    for number, point in enumerate(points, 1):
        style = marker_style(0 if point.gradients else 1)
        axes.errorbar(
            point.seconds, point.score.mean, yerr=point.score.standard_error or 0.0, **style, markersize=6, capsize=2
        )
        axes.annotate(
            str(number), (point.seconds, point.score.mean), xytext=(5, 4), textcoords="offset points", fontsize=8
        )
        line = f"{number}  {point.name}: {point.score.mean:.3f}, {_seconds(point.seconds)}"
        add_text(
            figure,
            left + width + 0.25,
            top + _LINE * number,
            line,
            size=8,
            colour=style["color"],
            max_width=2.8,
            smallest=6,
        )
    axes.set(xscale="log", xlabel="seconds per image", ylabel=score)
    axes.margins(x=0.08)
    return figure


def _front(points: Sequence[TimePoint], high: bool) -> list[TimePoint]:
    """List the points that no faster one equals or beats, by their seconds."""
    found: list[TimePoint] = []
    for point in sorted(points, key=lambda point: point.seconds):
        gain = point.score.mean - found[-1].score.mean if found else 0.0
        if not found or (gain > 0 if high else gain < 0):
            found.append(point)
    return found


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 0.1 else f"{1000 * value:.3g} ms"
