"""Plot a run: the kernels' bytes per second, or the methods' time and peak memory over the varied size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fampe_fast.plots import save_figure

from ..end_to_end.cases import BARE, Way
from .machine import Build, Machine
from .results import CallRow, KernelRow
from .timing import Spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, and a marker each: told apart without colour, too.
_PROVIDERS = {
    "kernel": ("#0072B2", "o", "Triton kernel"),
    "compiled": ("#E69F00", "s", "torch.compile of the reference"),
    "eager": ("#999999", "^", "reference, eager"),
}
_METHODS = {
    BARE: ("#000000", "x"),
    "fampe": ("#0072B2", "o"),
    "fampe_one_pass": ("#0072B2", "*"),
    "attexplore": ("#56B4E9", "s"),
    "public_attexplore": ("#D55E00", "^"),
    "integrated_gradients": ("#009E73", "D"),
    "smoothgrad": ("#CC79A7", "v"),
    "grad_cam": ("#E69F00", "P"),
}
_LINES = {"auto": "-", "fp32": "-", "tf32": "--", "bf16": "-.", "fp16": ":"}
_AXES: dict[str, Callable[[CallRow], float]] = {
    "images per call": lambda row: row.case.batch,
    "samples per step, N": lambda row: row.case.samples,
    "steps, T": lambda row: row.case.steps,
    "side (pixels)": lambda row: row.case.side,
}


def plot_kernels(rows: Sequence[KernelRow], bytes_per_s: float, build: Build, path: Path) -> None:
    """Write a PNG with one panel per primitive, bytes along x, bytes per second along y, and the memory's as a line."""
    from matplotlib import ticker

    measured = [row for row in rows if row.measured]
    names = list(dict.fromkeys(row.kernel for row in measured))
    columns = min(3, max(1, len(names)))
    lines = -(-max(1, len(names)) // columns)
    figure = _figure(4.2 * columns, 3.3 * lines + 1.0)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        mine = [row for row in measured if row.kernel == name]
        axis.axhline(bytes_per_s / 1e9, color="black", linewidth=1, linestyle="--", label="memory, measured")
        for provider, (colour, marker, label) in _PROVIDERS.items():
            found = sorted((row for row in mine if row.provider == provider), key=lambda row: row.bytes)
            speeds = [Spread(*(_rate(row, us) for us in (row.upper_us, row.median_us, row.lower_us))) for row in found]
            style = {"color": colour, "marker": marker, "linewidth": 0, "elinewidth": 1, "label": label}
            if found:
                _points(axis, [row.bytes / 1e6 for row in found], speeds, style)
        floors = {row.bytes / 1e6: _rate(row, row.floor_us) for row in mine}
        style = {"color": "#D55E00", "markersize": 12, "markeredgewidth": 2, "label": "floor"}
        axis.plot(list(floors), list(floors.values()), "_", **style)
        axis.set(xscale="log", yscale="log", title=name, xlabel="bytes that must move (MB)")
        if floors:  # at least a decade, so that a single size has an axis
            axis.set_xlim(min(floors) / 3.5, max(floors) * 3.5)
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())  # a narrow axis has no room for them
        axis.grid(which="major", linewidth=0.4, alpha=0.6)
    figure.supylabel("those bytes over the time (GB/s)")
    title = f"{build.device}, torch {build.torch}, triton {build.triton}"
    _finish(figure, title, path, loc="outside lower center", ncols=min(5, 2 * columns))


def plot_calls(rows: Sequence[CallRow], of: Machine, path: Path) -> None:
    """Write a PNG with lines over each size that was varied, the others as in the first case; else with bars."""
    # Enlarged bare passes are half of a bound and no way of making maps.
    shown = [row for row in rows if row.measured and not row.way.enlarged]
    if not shown:
        return
    varied = [name for name, value in _AXES.items() if len({value(row) for row in shown}) > 1]
    memory = any(row.peak_bytes is not None for row in shown)
    if varied:
        figure = _figure(4.6 * len(varied) + 3.6, 3.4 * (1 + memory) + 0.8)
        axes = figure.subplots(1 + memory, len(varied), squeeze=False)
        for column, name in enumerate(varied):
            _lines(axes[:, column], name, _around_first(shown, name), column == 0)
    else:
        figure = _figure(5 + 4 * memory, 0.42 * len(shown) + 1.6)
        _bars(figure.subplots(1, 1 + memory, squeeze=False, sharey=True)[0], shown)
    build = of.build
    title = f"{shown[0].model} on {build.device}, torch {build.torch}\n{shown[0].case}"
    warning = "\nDRY RUN, no measurement" if of.dry_run else "\nDISTURBED, no measurement" if of.disturbed else ""
    _finish(figure, title + warning, path, loc="outside right center")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def _finish(figure: Figure, title: str, path: Path, **legend: Any) -> None:
    """Write the PNG, with one legend for all panels."""
    figure.suptitle(title, fontsize=10)
    found = [axis.get_legend_handles_labels() for axis in figure.axes]
    handles = {label: handle for pair in found for handle, label in zip(*pair, strict=True)}
    if handles:
        figure.legend(handles.values(), handles.keys(), fontsize=8, **legend)
    save_figure(figure, path)


def _points(axis: Any, x: Sequence[float], spreads: Sequence[Spread], style: dict[str, Any]) -> None:
    axis.errorbar(x, [spread.median for spread in spreads], _errors(spreads), markersize=5, **style)


def _errors(spreads: Sequence[Spread]) -> list[list[float]]:
    return [[spread.median - spread.lower for spread in spreads], [spread.upper - spread.median for spread in spreads]]


def _rate(row: KernelRow, us: float | None) -> float:
    assert us is not None
    return row.bytes / us / 1e3


def _style(way: Way) -> tuple[str, str]:
    """Choose colour and marker; the bare passes as this package makes them are grey."""
    colour, marker = _METHODS[way.method]
    return ("0.6" if way.prepared else colour), marker


def _around_first(rows: Sequence[CallRow], varied: str) -> list[CallRow]:
    """List the rows whose sizes equal the first case's except for the varied one."""
    first = rows[0]
    fixed = [value for name, value in _AXES.items() if name != varied]
    return [row for row in rows if all(value(row) == value(first) for value in fixed)]


def _lines(axes: Any, name: str, rows: Sequence[CallRow], leftmost: bool) -> None:
    from matplotlib import ticker

    value = _AXES[name]
    for way in dict.fromkeys(row.way for row in rows):
        mine = sorted((row for row in rows if row.way == way), key=value)
        colour, marker = _style(way)
        style = {
            "color": colour,
            "marker": marker,
            "linewidth": 1.2,
            "linestyle": _LINES.get(way.precision, "-"),
            "markerfacecolor": colour if way.compile == "off" else "white",
            "label": str(way),
        }
        _points(axes[0], [value(row) for row in mine], [row.per_pass for row in mine], style)
        peaks = {value(row): row.peak_bytes / 2**20 for row in mine if row.peak_bytes is not None}
        if len(axes) > 1 and peaks:
            axes[1].plot(list(peaks), list(peaks.values()), markersize=5, **style)
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


def _bars(axes: Any, rows: Sequence[CallRow]) -> None:
    names = [str(row.way) for row in rows]
    colours = [_style(row.way)[0] for row in rows]
    spreads = [row.per_pass for row in rows]
    axes[0].barh(names, [spread.median for spread in spreads], xerr=_errors(spreads), color=colours, capsize=2)
    axes[0].set_xlabel("ms per pass and image")
    axes[0].invert_yaxis()
    if len(axes) > 1:
        axes[1].barh(names, [(row.peak_bytes or 0) / 2**20 for row in rows], color=colours)
        axes[1].set_xlabel("peak memory (MiB)")
    for axis in axes:
        axis.grid(axis="x", linewidth=0.4, alpha=0.6)
        axis.set_axisbelow(True)
