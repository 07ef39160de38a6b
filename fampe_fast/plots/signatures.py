"""Draw Fourier signatures and power slopes of several methods (as in figures 2 and 3 of arXiv 2307.09591)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .canvas import add_text, framed_axes, line_style, marker_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def signatures_figure(signatures: Mapping[str, Tensor], *, title: str | None = None, dpi: int = 120) -> Figure:
    """Draw mean amplitude per radius on logarithmic axes, a line per method, divided by its amplitude at radius 1.

    Args:
        signatures: by method, (B, K) from ``fourier_signature``, K at least 3; the line is the geometric mean over B.
        title: title of the figure.
        dpi: pixels per inch of a figure of 5.6 x 4.2 inches.

    Raises:
        ValueError: no method, a signature of another shape or with another K, or one without any power.
    """
    lines = {name: _line(name, signature) for name, signature in _some(signatures).items()}
    if len({len(line) for line in lines.values()}) > 1:
        raise ValueError(f"signatures must have one length, got { {name: len(line) for name, line in lines.items()} }")
    figure = new_figure(5.6, 4.2, dpi)
    add_text(figure, 0.85, 0.3, title or "Fourier signature", size=12, weight="bold", max_width=4.5)
    axes = framed_axes(figure, 0.85, 0.55, 4.5, 2.9)
    axes.set(xscale="log", yscale="log", xlabel="radius (cycles over the shorter side)", ylabel="amplitude / at 1")
    for k, (name, line) in enumerate(lines.items()):
        axes.plot(
            np.arange(1, len(line) + 1),
            line,
            **line_style(k),
            linewidth=1.8,
            label=name,
        )
    axes.legend(fontsize=8, frameon=False)
    return figure


def slopes_figure(slopes: Mapping[str, Tensor], *, title: str | None = None, dpi: int = 120) -> Figure:
    """Draw exponents of power against frequency, a row per method: a dot per map, their mean with its standard error.

    Args:
        slopes: by method, (B,) from ``power_slope``; NaN is left out.
        title: title of the figure.
        dpi: pixels per inch of a figure 5.6 inches wide.

    Raises:
        ValueError: no method, or one without any finite slope.
    """
    rows: dict[str, NDArray[np.floating[Any]]] = {}
    for name, given in _some(slopes).items():
        found = given.detach().cpu().double()
        rows[name] = found[found.isfinite()].numpy()
        if found.ndim != 1 or not len(rows[name]):
            raise ValueError(f"slopes of {name!r} must be (B,) with a finite value, got shape {tuple(found.shape)}")
    height = 0.42 * len(rows)
    figure = new_figure(5.6, height + 1.35, dpi)
    add_text(figure, 1.75, 0.3, title or "power against frequency", size=12, weight="bold", max_width=3.6)
    axes = framed_axes(figure, 1.75, 0.55, 3.6, height)
    generator = np.random.default_rng(0)
    for k, values in enumerate(rows.values()):
        style = marker_style(k)
        spread = k + generator.uniform(-0.18, 0.18, len(values))
        axes.plot(values, spread, ".", color=style["color"], alpha=0.35, markersize=4)
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        axes.errorbar(values.mean(), k, xerr=error, capsize=3, markersize=6, **style)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=9)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel="exponent (steeper: less power at high frequencies)")
    return figure


def _some(given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not given:
        raise ValueError("expected at least one method, got none")
    return given


def _line(name: str, signature: Tensor) -> NDArray[np.floating[Any]]:
    if signature.ndim != 2 or not len(signature) or signature.shape[1] < 3:
        raise ValueError(f"the signature of {name!r} must be (B, K) with K at least 3, got {tuple(signature.shape)}")
    amplitude = signature.detach().cpu().double()[:, 1:]
    usable = amplitude[(amplitude > 0).all(1)]
    if not len(usable):
        raise ValueError(f"no map of {name!r} has power at every radius")
    line: NDArray[np.floating[Any]] = torch.exp((usable / usable[:, :1]).log().mean(0)).numpy()
    return line
