"""Draw a data set's spectrum and the models' reliance on it, per octave over all images and per class in one band."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .bands import BandCurve, check_curve, draw_steps
from .canvas import FAINT, add_text, framed_axes, marker_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Inches.
_LEFT, _TOP, _WIDTH, _HEIGHT, _GAP = 0.85, 0.85, 4.3, 2.9, 0.95


@dataclass(frozen=True)
class ClassPoint:
    """One class in one band.

    Attributes:
        energy: share of the energy of its images, in [0, 1].
        reliance: share of the evidence, in [-1, 1].
        interval: lower and upper end of the reliance; None for none.
    """

    energy: float
    reliance: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class ModelReliance:
    """One model of the figure.

    Attributes:
        octaves: its reliance per octave.
        classes: its classes in the band of the second panel.
        correlation: text of the correlation of energy and reliance in that band.
    """

    octaves: BandCurve
    classes: tuple[ClassPoint, ...]
    correlation: str


def reliance_figure(
    spectrum: BandCurve,
    models: Mapping[str, ModelReliance],
    *,
    title: str,
    band: str,
    confidence: float = 0.95,
    dpi: int = 110,
) -> Figure:
    """Draw shares of energy and of evidence per octave, and a dot per class for one band.

    Args:
        spectrum: the images' shares of energy per octave.
        models: by name, at least one; all with the octaves of the spectrum.
        title: title of the figure.
        band: description of the band of the dots.
        confidence: coverage of the intervals.
        dpi: pixels per inch of a figure of 10.6 x 4.5 inches.

    Raises:
        ValueError: no model, curves that ``bands_figure`` refuses, or octaves that are not the spectrum's.
    """
    if not models:
        raise ValueError("expected at least one model, got none")
    for name, curve in {"spectrum": spectrum, **{name: model.octaves for name, model in models.items()}}.items():
        check_curve(name, curve)
        if curve.edges.tolist() != spectrum.edges.tolist():
            raise ValueError(f"the octaves of {name!r} are not those of the spectrum")
    figure = new_figure(_LEFT + 2 * _WIDTH + _GAP + 0.2, _TOP + _HEIGHT + 0.75, dpi)
    room = 2 * _WIDTH + _GAP
    add_text(figure, _LEFT, 0.32, title, size=12, weight="bold", max_width=room, smallest=8)
    words = f"means over images; lines and shaded: {confidence:.0%} interval of the mean"
    add_text(figure, _LEFT, 0.57, words, size=9, colour=FAINT, max_width=room)
    axes = framed_axes(figure, _LEFT, _TOP, _WIDTH, _HEIGHT)
    axes.set_label("octaves")
    edges = spectrum.edges.detach().cpu().double().clone()
    edges[0] = edges[1] / 2  # no octave contains DC, which a logarithmic axis cannot show
    shares = spectrum.values.detach().cpu().double().numpy()
    axes.stairs(shares, edges.numpy(), fill=True, color="#d8d8d8", label="energy of the images")
    if spectrum.interval is not None:
        centres = (edges[1:] * edges[:-1]).sqrt()
        low, high = spectrum.interval.detach().cpu().double()
        axes.vlines(centres.numpy(), low.numpy(), high.numpy(), color=FAINT, linewidth=1.2)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.set_xscale("log", base=2)
    for k, (name, model) in enumerate(models.items()):
        draw_steps(axes, k, f"evidence, {name}", edges, model.octaves)
    axes.set_xticks(edges.tolist(), [f"{edge:g}" if edge == round(edge) else f"{edge:.0f}" for edge in edges.tolist()])
    axes.minorticks_off()
    axes.set_xlim(float(edges[0]), float(edges[-1]))
    axes.set(xlabel="radius (cycles over the shorter side)", ylabel="share per octave")
    axes.legend(fontsize=8, frameon=False)
    axes = framed_axes(figure, _LEFT + _WIDTH + _GAP, _TOP, _WIDTH, _HEIGHT)
    axes.set_label("classes")
    axes.axhline(0, color=FAINT, linewidth=0.8)
    for k, (name, model) in enumerate(models.items()):
        places = torch.tensor([point.energy for point in model.classes], dtype=torch.float64)
        heights = [point.reliance for point in model.classes]
        style = marker_style(k)
        axes.plot(
            places, heights, linestyle="", markersize=4, alpha=0.75, label=f"{name}: {model.correlation}", **style
        )
        for place, point in zip(places.tolist(), model.classes, strict=True):
            if point.interval is not None:
                axes.vlines(place, *point.interval, color=style["color"], linewidth=0.8, alpha=0.6)
    axes.set(xlabel=f"share of the energy, {band}", ylabel="share of the evidence there, a dot per class")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + (0.12 + 0.07 * len(models)) * (high - low))  # room for the legend above the dots
    axes.legend(fontsize=8, frameon=False, loc="upper left", title="rank correlation", title_fontsize=8)
    return figure
