"""Draw the way of an image through the engine: docs/concepts/glossary.md.

python -m benchmarks.draw_engine --out docs/pictures/engine.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from matplotlib.patches import FancyBboxPatch

from fampe_fast.plots.canvas import FAINT, add_axes, new_figure
from fampe_fast.plots.saving import save_figure

_WIDTH, _HEIGHT = 11.6, 5.6  # inches
_PLAIN, _MODEL = "#eef2f7", "#fdebd3"


class Box(NamedTuple):
    """A box: its centre and width in inches, its head, and its small print."""

    x: float
    y: float
    width: float
    head: str
    lines: str
    colour: str = _PLAIN


BOXES = {
    "request": Box(1.2, 2.75, 1.9, "request", "images (B, C, H, W)\ntargets, image ids\nchunk size"),
    "view": Box(3.9, 4.6, 2.1, "view", "the image, or its\nmirror image"),
    "view pass": Box(6.3, 4.6, 1.9, "model pass", "forward and backward", _MODEL),
    "levels": Box(8.6, 4.6, 2.0, "levels", "evidence $e_1 ... e_L$\n(B, h·w) each\nlayer_evidence"),
    "spectrum": Box(3.9, 2.75, 2.1, "spectrum", "$X$ = rfft2($x_t$)\ncut-off: energy_cutoff"),
    "sample": Box(3.9, 1.0, 2.1, "samples", "N per image, in chunks\n(P, C, H, W)\nband_samples"),
    "sample pass": Box(6.3, 1.0, 1.9, "model pass", "forward and backward,\none chunk of P rows", _MODEL),
    "sum": Box(8.6, 1.0, 2.0, "gradient sum", "(B, C, H, W)\naccumulate"),
    "step": Box(8.6, 2.75, 2.0, "step", "$x_{t+1}$, momentum,\nattribution $A$\ngradient_step"),
    "map": Box(10.75, 3.7, 1.5, "map", "(B, C, H, W)\ncombine_layers"),
}
ARROWS = (
    ("request", "view"), ("request", "spectrum"), ("view", "view pass"), ("view pass", "levels"), ("levels", "map"),
    ("spectrum", "sample"), ("sample", "sample pass"), ("sample pass", "sum"), ("sum", "step"), ("step", "map"),
)  # fmt: skip
_HALF = 0.52  # of a box's height


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the way of an image through the engine.")
    parser.add_argument("--out", type=Path, required=True, help="file")
    out = parser.parse_args().out
    figure = new_figure(_WIDTH, _HEIGHT, 100)
    axes = add_axes(figure, 0, 0, _WIDTH, _HEIGHT)
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(0, _HEIGHT)
    axes.axis("off")
    for box in BOXES.values():
        left, bottom = box.x - box.width / 2, box.y - _HALF
        axes.add_patch(
            FancyBboxPatch(
                (left, bottom), box.width, 2 * _HALF, boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=box.colour, edgecolor=FAINT,
            )
        )  # fmt: skip
        axes.text(box.x, box.y + 0.33, box.head, ha="center", va="center", fontsize=10.5, weight="bold")
        axes.text(box.x, box.y - 0.13, box.lines, ha="center", va="center", fontsize=8.5, linespacing=1.3)
    for start, end in ARROWS:
        axes.annotate(
            "", _edge(BOXES[end], BOXES[start]), _edge(BOXES[start], BOXES[end]), arrowprops={"arrowstyle": "-|>"}
        )
    axes.annotate("", _edge(BOXES["spectrum"], BOXES["step"]), _edge(BOXES["step"], BOXES["spectrum"]),
                  arrowprops={"arrowstyle": "-|>", "linestyle": "--"})  # fmt: skip
    axes.text(6.3, 2.87, "T steps", ha="center", fontsize=9, color=FAINT)
    axes.text(2.75, 5.3, "depths: 1 or 2 passes", fontsize=9, color=FAINT)
    axes.text(2.75, 0.18, "path: T · N passes", fontsize=9, color=FAINT)
    save_figure(figure, out)


def _edge(box: Box, other: Box) -> tuple[float, float]:
    """Find the place on a box's border where an arrow to the other box leaves."""
    across, up = other.x - box.x, other.y - box.y
    if abs(across) < 0.1:
        return box.x, box.y + (_HALF if up > 0 else -_HALF)
    return box.x + (box.width / 2 if across > 0 else -box.width / 2), box.y


if __name__ == "__main__":
    main()
