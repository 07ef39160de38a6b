"""Draw the insertion and deletion curves of one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from .canvas import FAINT, INK, add_axes, add_text, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

INSERTION_COLOUR = "#c75000"
DELETION_COLOUR = "#0a5fb4"


def curves_figure(
    insertion_curve: Tensor, deletion_curve: Tensor, *, title: str | None = None, dpi: int = 120
) -> Figure:
    """Draw the target's score while pixels are added or removed, strongest evidence first (RISE, section 4).

    Args:
        insertion_curve: (K + 1,), the score after each step, the first one before any; equal steps.
        deletion_curve: (L + 1,), likewise.
        title: title of the figure.
        dpi: pixels per inch of a figure of 4.8 x 3.7 inches.

    Returns:
        The figure. Its labels have the areas by the trapezoid rule, over the share of changed pixels from 0 to 1.

    Raises:
        TypeError: not a tensor.
        ValueError: not one-dimensional, fewer than two points, NaN or infinity.
    """
    insertion = _checked("insertion_curve", insertion_curve)
    deletion = _checked("deletion_curve", deletion_curve)
    figure = new_figure(4.8, 3.7, dpi)
    left, top, width, height = 0.75, 0.85, 3.75, 2.15
    axes = add_axes(figure, left, top, width, height)
    axes.set_label("curves")
    low = min(0.0, float(insertion.min()), float(deletion.min()))
    high = max(1.0, float(insertion.max()), float(deletion.max()))
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(low, high)
    axes.hlines([low, (low + high) / 2, high], 0, 1, colors="#d8d8d8", linewidths=0.8, zorder=0)
    # Distinguished by dashes as well as colour.
    for curve, colour, style, name in (
        (insertion, INSERTION_COLOUR, "-", "insertion"),
        (deletion, DELETION_COLOUR, "--", "deletion"),
    ):
        share = np.linspace(0.0, 1.0, len(curve))
        axes.plot(share, curve, color=colour, linestyle=style, linewidth=2.0, marker="", label=name, clip_on=False)
        axes.fill_between(share, low, curve, color=colour, alpha=0.10, linewidth=0)
    add_text(figure, left, 0.36, title or "insertion and deletion", size=12, weight="bold", max_width=width)
    room = width / 2
    add_text(
        figure, left, 0.66, f"— insertion {_area(insertion):.3f}", size=10, colour=INSERTION_COLOUR, max_width=room
    )
    add_text(
        figure,
        left + width,
        0.66,
        f"- - deletion {_area(deletion):.3f}",
        size=10,
        colour=DELETION_COLOUR,
        align="right",
        max_width=room,
    )
    for value in (low, (low + high) / 2, high):
        place = top + height * (high - value) / (high - low)
        add_text(figure, left - 0.08, place, f"{value:.2g}", size=9, colour=FAINT, align="right", vertical="center")
    ends: list[tuple[float, Literal["left", "center", "right"]]] = [(0.0, "left"), (0.5, "center"), (1.0, "right")]
    for value, align in ends:
        add_text(
            figure,
            left + width * value,
            top + height + 0.2,
            f"{100 * value:.0f} %",
            size=9,
            colour=FAINT,
            align=align,
        )
    add_text(
        figure,
        left + width / 2,
        top + height + 0.43,
        "pixels changed, strongest evidence first",
        size=9.5,
        colour=INK,
        align="center",
    )
    add_text(
        figure, 0.2, top + height / 2, "score of the class", size=9.5, align="center", vertical="center", rotation=90
    )
    return figure


def _checked(name: str, curve: Tensor) -> NDArray[np.floating[Any]]:
    if not isinstance(curve, Tensor):
        raise TypeError(f"expected {name} as a torch.Tensor, got {type(curve).__name__}")
    if curve.dim() != 1 or curve.numel() < 2:
        raise ValueError(f"expected {name} of shape (K + 1,) with at least two points, got {tuple(curve.shape)}")
    values: NDArray[np.floating[Any]] = curve.detach().cpu().to(torch.float64).numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"expected finite values in {name}, got NaN or infinity")
    return values


def _area(curve: NDArray[np.floating[Any]]) -> float:
    return float((curve[1:] + curve[:-1]).mean() / 2)
