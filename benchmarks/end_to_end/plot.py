"""One picture of a run: time per pass and peak memory of every way, over whatever was varied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .contestants import BARE, Way
from .results import Machine, Row

# Okabe and Ito's colours, and a marker each: told apart without colour, too.
_STYLES = {
    BARE: ("#000000", "x"),
    "fampe": ("#0072B2", "o"),
    "attexplore": ("#56B4E9", "s"),
    "public_attexplore": ("#D55E00", "^"),
    "integrated_gradients": ("#009E73", "D"),
    "smoothgrad": ("#CC79A7", "v"),
}
_LINES = {"fp32": "-", "tf32": "--", "bf16": "-.", "fp16": ":"}
_AXES: dict[str, Callable[[Row], float]] = {
    "images per call": lambda row: row.case.batch,
    "samples per step, N": lambda row: row.case.samples,
    "steps, T": lambda row: row.case.steps,
    "side (pixels)": lambda row: row.case.side,
}


def _style(way: Way) -> tuple[str, str]:
    """Colour and marker; the bare passes as this package makes them are grey."""
    colour, marker = _STYLES[way.method]
    return ("0.6" if way.prepared else colour), marker


def plot(rows: Sequence[Row], of: Machine, path: Path) -> None:
    """Write the PNG: lines over each size that was varied, the others as in the first case; else bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Enlarged bare passes are half of a bound and no way of making maps.
    shown = [row for row in rows if row.measured and not row.way.enlarged]
    varied = [name for name, value in _AXES.items() if len({value(row) for row in shown}) > 1]
    if not shown:
        return
    memory = any(row.peak_bytes is not None for row in shown)
    if varied:
        figure, axes = pyplot.subplots(
            1 + memory, len(varied), figsize=(4.6 * len(varied) + 2.6, 3.4 * (1 + memory) + 0.8), squeeze=False
        )
        for column, name in enumerate(varied):
            _lines(axes[:, column], name, _around_first(shown, name), column == 0)
        handles = {
            label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    else:
        figure, axes = pyplot.subplots(
            1, 1 + memory, figsize=(5 + 4 * memory, 0.42 * len(shown) + 1.6), squeeze=False, sharey=True
        )
        _bars(axes[0], shown)
    title = f"{of.model} on {of.device}, torch {of.torch}"
    warning = "DRY RUN, no measurement" if of.dry_run else "DISTURBED, no measurement" if of.disturbed else ""
    figure.suptitle(f"{title}\n{shown[0].case}" + (f"\n{warning}" if warning else ""), fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")
    pyplot.close(figure)


def _around_first(rows: Sequence[Row], varied: str) -> list[Row]:
    """The rows whose sizes are the first case's but for the one that is varied."""
    first = rows[0]
    fixed = [value for name, value in _AXES.items() if name != varied]
    return [row for row in rows if all(value(row) == value(first) for value in fixed)]


def _lines(axes: Sequence[Any], name: str, rows: Sequence[Row], leftmost: bool) -> None:
    from matplotlib import ticker

    value = _AXES[name]
    for way in dict.fromkeys(row.way for row in rows):
        mine = sorted((row for row in rows if row.way == way), key=value)
        colour, marker = _style(way)
        style = {
            "color": colour,
            "marker": marker,
            "markersize": 5,
            "linewidth": 1.2,
            "linestyle": _LINES.get(way.precision, "-"),
            "markerfacecolor": colour if way.compile == "off" else "white",
            "label": str(way),
        }
        spread = [row.per_pass for row in mine]
        axes[0].errorbar(
            [value(row) for row in mine],
            [found.median for found in spread],
            [[found.median - found.lower for found in spread], [found.upper - found.median for found in spread]],
            **style,
        )
        counted = [row for row in mine if row.peak_bytes is not None]
        if len(axes) > 1 and counted:
            axes[1].plot([value(row) for row in counted], [(row.peak_bytes or 0) / 2**20 for row in counted], **style)
    for axis, label in zip(axes, ("ms per pass and image", "peak memory (MiB)"), strict=False):
        axis.set(xlabel=name, yscale="log", ylabel=label if leftmost else "")
        points = sorted({value(row) for row in rows})
        axis.set_xscale("log", base=2)
        axis.set_xticks(points, [f"{point:g}" for point in points])
        axis.minorticks_off()
        axis.grid(which="major", linewidth=0.4, alpha=0.6)
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda level, _: f"{level:g}"))
        low, high = axis.get_ylim()
        if high / low < 4:  # too little for a logarithmic axis to have labels on
            axis.set_yscale("linear")  # with locator and formatter of its own
            axis.set_ylim(bottom=0)


def _bars(axes: Sequence[Any], rows: Sequence[Row]) -> None:
    names = [str(row.way) for row in rows]
    colours = [_style(row.way)[0] for row in rows]
    spread = [row.per_pass for row in rows]
    errors = [[found.median - found.lower for found in spread], [found.upper - found.median for found in spread]]
    axes[0].barh(names, [found.median for found in spread], xerr=errors, color=colours, capsize=2)
    axes[0].set_xlabel("ms per pass and image")
    axes[0].invert_yaxis()
    if len(axes) > 1:
        axes[1].barh(names, [(row.peak_bytes or 0) / 2**20 for row in rows], color=colours)
        axes[1].set_xlabel("peak memory (MiB)")
    for axis in axes:
        axis.grid(axis="x", linewidth=0.4, alpha=0.6)
        axis.set_axisbelow(True)
