"""Draw the energy cut-offs of several kinds of image side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .canvas import FAINT, add_axes, add_text, framed_axes, marker_style, new_figure, show_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEFT, _TOP, _ROW, _NAMES, _PANEL, _GAP, _BOTTOM = 0.2, 1.05, 0.55, 2.75, 3.5, 0.35, 0.85
_THUMBNAIL = 0.47


@dataclass(frozen=True, eq=False)
class KindRow:
    """One kind of image.

    Attributes:
        example: (3 or 1, H, W) in [0, 1], one of its images.
        spread: by the name of a panel, the median, smallest and largest cut-off for each share, at least 1.
        expected: by the same names, the theoretical cut-off for each share; empty if there is none.
    """

    example: Tensor
    spread: Mapping[str, Sequence[tuple[float, float, float]]]
    expected: Mapping[str, Sequence[float]]


def energy_cutoffs_figure(
    rows: Mapping[str, KindRow], taus: Sequence[float], *, title: str, highest: float, dpi: int = 120
) -> Figure:
    """Draw a row per kind: an example, and in each panel the median (dot) and range (bar) for each share.

    Args:
        rows: by the kind's name, at least one; all with the same panels.
        taus: the shares, a colour and a marker each; rings mark the expected cut-offs.
        title: title of the figure.
        highest: the highest frequency along an axis, drawn as a line.
        dpi: pixels per inch; the figure is about 10.6 inches wide, a row 0.55 high.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("expected at least one kind of image, got none")
    panels = list(next(iter(rows.values())).spread)
    width = _LEFT + _NAMES + len(panels) * (_PANEL + _GAP)
    height = _ROW * len(rows)
    figure = new_figure(width, _TOP + height + _BOTTOM, dpi)
    add_text(figure, _LEFT, 0.32, title, size=12, weight="bold", max_width=width - 0.4, smallest=8)
    words = "dot: median over images; bar: their range; ring: of the expected spectrum; dashed: highest along an axis"
    add_text(figure, _LEFT, 0.56, words, size=9, colour=FAINT, max_width=width - 0.4, smallest=7)
    for number, (name, row) in enumerate(rows.items()):
        top = _TOP + _ROW * number
        picture = add_axes(figure, _LEFT, top + (_ROW - _THUMBNAIL) / 2, _THUMBNAIL, _THUMBNAIL)
        show_rgb(picture, row.example.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())
        room = _NAMES - _THUMBNAIL - 0.25
        left = _LEFT + _THUMBNAIL + 0.1
        add_text(figure, left, top + _ROW / 2, name, size=9, vertical="center", max_width=room, smallest=6.5)
    for column, panel in enumerate(panels):
        axes = framed_axes(figure, _LEFT + _NAMES + column * (_PANEL + _GAP), _TOP, _PANEL, height)
        axes.set_label(panel)
        for k, tau in enumerate(taus):
            style, away = marker_style(k), (k - (len(taus) - 1) / 2) * 0.14
            for number, row in enumerate(rows.values()):
                middle, low, high = row.spread[panel][k]
                place = number + away
                axes.plot([low, high], [place, place], color=style["color"], linewidth=2.0, alpha=0.45)
                axes.plot(
                    [middle], [place], linestyle="", markersize=4, label="" if number else f"tau = {tau:g}", **style
                )
                if row.expected:
                    axes.plot(
                        [row.expected[panel][k]], [place], linestyle="", marker="o", markersize=8,
                        markerfacecolor="none", markeredgecolor=style["color"], markeredgewidth=1.0,
                    )  # fmt: skip
        axes.axvline(highest, color=FAINT, linewidth=1.0, linestyle="--")
        axes.set_xscale("log", base=2)
        ticks = [2**k for k in range(int(highest * 1.5).bit_length())]
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(0.85, highest * 1.6)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([number + 0.5 for number in range(len(rows) - 1)], [""] * (len(rows) - 1))
        axes.tick_params(axis="y", length=0)
        axes.set(xlabel=f"cut-off {panel} (cycles per side)")
        if not column:
            axes.legend(
                fontsize=8, frameon=False, ncols=len(taus), loc="lower left", bbox_to_anchor=(-0.02, 1.0),
                handletextpad=0.1, columnspacing=0.8,
            )  # fmt: skip
    return figure
