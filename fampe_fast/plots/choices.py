"""Draw the best value for each image against the image's cut-off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .canvas import FAINT, add_text, framed_axes, marker_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANEL_WIDTH, _PANEL_HEIGHT, _LEFT, _TOP, _GAP, _BETWEEN = 3.4, 2.0, 0.75, 1.05, 0.75, 0.85
_DOT = 22.0  # area of one image's dot, square points


@dataclass(frozen=True)
class ChoicePanel:
    """One scatter of the figure.

    Attributes:
        cutoffs: cut-off of each image, in cycles over the shorter side; NaN if unknown.
        best: the best value for each image.
        single: the best value for all images, drawn as a line.
        name: name of the cut-offs, such as ``with DC``.
        correlation: text of their correlation.
    """

    cutoffs: Sequence[float]
    best: Sequence[float]
    single: float
    name: str
    correlation: str


def choices_figure(panels: Mapping[str, Sequence[ChoicePanel]], *, title: str, dpi: int = 120) -> Figure:
    """Draw a dot for each image, larger for several at one place; a column per name, a row per cut-off.

    Args:
        panels: by the name of the chosen number, at least one; all with the same number of panels.
        title: title of the figure.
        dpi: pixels per inch; a column is about 4.2 inches wide, a row 2.9 high.

    Raises:
        ValueError: no panel, columns of different lengths, or a panel whose images are not equally many.
    """
    if not panels or len({len(column) for column in panels.values()}) > 1 or not all(panels.values()):
        raise ValueError("expected at least one column, and equally many panels in each, at least one")
    for name, column in panels.items():
        for panel in column:
            if len(panel.best) != len(panel.cutoffs):
                raise ValueError(f"{name!r}: {len(panel.best)} best values for {len(panel.cutoffs)} cut-offs")
    rows = len(next(iter(panels.values())))
    width = _LEFT + len(panels) * (_PANEL_WIDTH + _GAP)
    figure = new_figure(width, _TOP + rows * (_PANEL_HEIGHT + _BETWEEN), dpi)
    add_text(figure, _LEFT, 0.32, title, size=12, weight="bold", max_width=width - _LEFT - 0.2, smallest=8)
    words = "a dot per image, larger for several at one place; dotted: best for all"
    add_text(figure, _LEFT, 0.55, words, size=9, colour=FAINT, max_width=width - _LEFT - 0.2, smallest=7)
    for number, (name, column) in enumerate(panels.items()):
        for row, panel in enumerate(column):
            left, top = _LEFT + number * (_PANEL_WIDTH + _GAP), _TOP + row * (_PANEL_HEIGHT + _BETWEEN)
            axes = framed_axes(figure, left, top, _PANEL_WIDTH, _PANEL_HEIGHT)
            axes.set_label(f"{name}, {panel.name}")
            places = Counter(pair for pair in zip(panel.cutoffs, panel.best, strict=True) if pair[0] == pair[0])
            style = marker_style(number)
            axes.scatter(
                [cutoff for cutoff, _ in places],
                [best for _, best in places],
                s=[_DOT * count for count in places.values()],
                color=style["color"], marker="o", alpha=0.55, linewidths=0.0, zorder=2,
            )  # fmt: skip
            axes.axhline(panel.single, color=FAINT, linewidth=1.2, linestyle=":")
            axes.margins(0.1)
            axes.set(xlabel=f"cut-off {panel.name} (cycles over the shorter side)", ylabel=f"best {name}")
            words = f"rank correlation {panel.correlation}"
            add_text(figure, left + _PANEL_WIDTH, top - 0.1, words, size=9, align="right", max_width=_PANEL_WIDTH)
    return figure
