"""Draw the success of attacks without gradients against their queries (as in figure 4 of arXiv 1905.07121)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from .canvas import FAINT, add_text, framed_axes, line_style, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Name = TypeVar("Name", bound=str)


def queries_figure(
    found: Mapping[Name, Sequence[int | None]], most: int, *, title: str | None = None, dpi: int = 120
) -> Figure:
    """Draw the share of images that fool the model within a number of queries, a line per band.

    Args:
        found: by band, at least one; the queries of each image until it fooled the model, None where it did not.
        most: queries that were spent on an image at most, at least 1: the right end of the axis.
        title: title of the figure.
        dpi: pixels per inch of a figure of 6.4 x 4.2 inches.

    Raises:
        ValueError: no band, one without images, or more queries than ``most``.
    """
    if not found or not all(found.values()):
        raise ValueError("expected at least one band, each with at least one image")
    largest = max((count for counts in found.values() for count in counts if count is not None), default=0)
    if largest > most:
        raise ValueError(f"expected at most {most} queries for an image, got {largest}")
    figure = new_figure(6.4, 4.2, dpi)
    left, top, width, height = 0.95, 0.8, 5.2, 2.6
    add_text(figure, left, 0.32, title or "queries", size=12, weight="bold", max_width=width, smallest=9)
    add_text(figure, left, 0.57, "share of the images that the model was right about", size=9, colour=FAINT)
    axes = framed_axes(figure, left, top, width, height)
    axes.set_label("queries")
    for k, (band, counts) in enumerate(found.items()):
        places = sorted(count for count in counts if count is not None)
        share = [(n + 1) / len(counts) for n in range(len(places))]
        axes.step(
            [0, *places, most], [0.0, *share, share[-1] if share else 0.0], where="post", linewidth=1.8, label=band,
            **line_style(k),
        )  # fmt: skip
    axes.set(xlabel="queries of the model", ylabel="fooled", xlim=(0, most), ylim=(-0.02, 1.02))
    axes.legend(fontsize=8, frameon=False)
    return figure
