"""Draw how much low-passed gradients explain, and gradients' spectra around layers (after arXiv 2307.09591)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .canvas import FAINT, INK, add_text, framed_axes, line_style, marker_style, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

_MOST_LAYERS = 6
_KINDS = {
    "white": "white perturbations: all frequencies equal",
    "image": "perturbations with the image's own spectrum",
}


@dataclass(frozen=True)
class ExplainedCurve:
    """One line of ``explained_figure``.

    Attributes:
        radii: (R,) cycles over the shorter side, above 0, ascending.
        explained: (R,) share of the score's change.
        interval: its lower and upper ends, (R,) each; None for none.
        share: (R,) share of the gradient's energy within each radius.
    """

    radii: Sequence[float]
    explained: Sequence[float]
    interval: tuple[Sequence[float] | None, Sequence[float] | None]
    share: Sequence[float]


def explained_figure(panels: Mapping[str, Mapping[str, ExplainedCurve]], *, dpi: int = 120) -> Figure:
    """Draw the share of the score's change that a low-passed gradient explains over its cut-off.

    Args:
        panels: by kind of perturbation, at least one; in each a line per model, at least one.
        dpi: pixels per inch; a panel is 4.6 inches wide.

    Raises:
        ValueError: no panel, or one without lines.
    """
    if not panels or not all(panels.values()):
        raise ValueError("expected at least one panel, each with at least one line")
    width, height, left, top, gap = 3.9, 2.7, 0.8, 1.0, 0.75
    total = left + len(panels) * (width + gap) - gap + 0.25
    figure = new_figure(total, top + height + 0.65, dpi)
    head = "How much of a change of the score the low-passed gradient explains"
    add_text(figure, left, 0.32, head, size=12, weight="bold", max_width=total - left - 0.2, smallest=8)
    words = "mean over images, shaded: 95% interval; dotted: share of the gradient's energy"
    add_text(figure, left, 0.55, words, size=9, colour=FAINT, max_width=total - left - 0.2)
    for column, (kind, curves) in enumerate(panels.items()):
        place = left + column * (width + gap)
        add_text(figure, place, top - 0.08, _KINDS.get(kind, kind), size=9.5, colour=INK, max_width=width)
        axes = framed_axes(figure, place, top, width, height)
        axes.set_label(kind)
        axes.axhline(1, color=FAINT, linewidth=0.8)
        axes.axhline(0, color=FAINT, linewidth=0.8)
        for k, (name, curve) in enumerate(curves.items()):
            style = line_style(k)
            axes.plot(curve.radii, curve.explained, **(style | marker_style(k)), lw=1.8, markersize=4, label=name)
            low, high = curve.interval
            if low is not None and high is not None:
                axes.fill_between(curve.radii, low, high, color=style["color"], alpha=0.15, linewidth=0)
            axes.plot(curve.radii, curve.share, color=style["color"], linestyle=":", linewidth=1.0)
        _radii_in_octaves(axes, max(curve.radii[-1] for curve in curves.values()))
        lowest = min(min(curve.explained) for curve in curves.values())
        axes.set(
            xlabel="cut-off of the gradient (cycles over the shorter side)", ylim=(max(-0.5, min(-0.05, lowest)), 1.05)
        )
        if not column:
            axes.set_ylabel("share of the change, ζ")
        axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(0, 0.95))
    return figure


@dataclass(frozen=True)
class LayerCurves:
    """One panel of ``layers_figure``.

    Attributes:
        name: name of the layer.
        kind: name of its class.
        fine: side of its input.
        coarse: side of its output.
        arriving: amplitude per radius of the gradient at its output, from radius 0.
        leaving: likewise at its input.
        beyond: share of the energy at its input above the output's frequencies.
    """

    name: str
    kind: str
    fine: int
    coarse: int
    arriving: Sequence[float]
    leaving: Sequence[float]
    beyond: float


def layers_figure(models: Mapping[str, Sequence[LayerCurves]], *, dpi: int = 120) -> Figure:
    """Draw the gradient's amplitude per radius on both sides of strided layers, a row per model, a panel per layer.

    Each line is divided by its amplitude at radius 1. Of more than six layers the first six are drawn.

    Args:
        models: by name, at least one, each with at least one layer.
        dpi: pixels per inch; a panel is about 2.6 inches wide.

    Raises:
        ValueError: no model, or one without layers.
    """
    if not models or not all(models.values()):
        raise ValueError("expected at least one model, each with at least one layer")
    width, height, left, top, gap, below = 2.1, 1.5, 0.75, 1.25, 0.45, 0.95
    columns = min(_MOST_LAYERS, max(map(len, models.values())))
    total = max(6.4, left + columns * (width + gap))
    figure = new_figure(total, top + len(models) * (height + below) - 0.2, dpi)
    head = "Gradients before and after strided layers and pooling"
    add_text(figure, left, 0.3, head, size=12, weight="bold", max_width=total - left - 0.2, smallest=8)
    words = "amplitude per radius over that at radius 1, mean over images; dotted line: the output's highest frequency"
    add_text(figure, left, 0.52, words, size=8.5, colour=FAINT, max_width=total - left - 0.2, smallest=7)
    for row, (model, layers) in enumerate(models.items()):
        shown = layers[:_MOST_LAYERS]
        lines = [[_relative(values) for values in (layer.arriving, layer.leaving)] for layer in shown]
        low, high = (pick(end(line) for pair in lines for line in pair) for pick, end in ((min, np.min), (max, np.max)))
        upper = top + row * (height + below)
        add_text(figure, left, upper - 0.4, model, size=10, weight="bold", max_width=total - left - 0.2)
        for column, (layer, pair) in enumerate(zip(shown, lines, strict=True)):
            place = left + column * (width + gap)
            said = f"{layer.name.removeprefix('model.')}, {layer.fine} → {layer.coarse}: {layer.beyond:.0%} beyond"
            add_text(figure, place, upper - 0.12, said, size=8, max_width=width + 0.35, smallest=6)
            axes = framed_axes(figure, place, upper, width, height)
            axes.set_label(f"{model}: {layer.name}")
            for k, (name, line) in enumerate(zip(("at the output", "at the input"), pair, strict=True)):
                axes.plot(np.arange(1, len(line) + 1), line, **line_style(k), linewidth=1.5, label=name)
            axes.axvline(layer.coarse / 2, color=FAINT, linewidth=1.0, linestyle=":")
            axes.set(yscale="log", ylim=(low / 1.5, high * 1.5))
            _radii_in_octaves(axes, layer.fine / 2)
            if row == len(models) - 1:
                axes.set_xlabel("radius (cycles)")
            if not column:
                axes.legend(fontsize=7, frameon=False, loc="lower left")
    return figure


def _relative(values: Sequence[float]) -> NDArray[np.float64]:
    """Divide amplitudes by that at radius 1, which comes first in the result."""
    return np.maximum(np.asarray(values[1:], dtype=np.float64) / max(values[1], 1e-300), 1e-12)


def _radii_in_octaves(axes: Axes, most: float) -> None:
    axes.set_xscale("log", base=2)
    ticks = [2**power for power in range(int(most).bit_length())]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
