"""One picture of a run: how fast each provider moves the bytes that must move, beside what the machine allows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .machine import Bandwidth, Build
from .results import Row

# Okabe and Ito's colours, and a marker each: told apart without colour, too.
_STYLES = {"kernel": ("#0072B2", "o"), "compiled": ("#E69F00", "s"), "eager": ("#999999", "^")}
_NAMES = {"kernel": "Triton kernel", "compiled": "torch.compile of the reference", "eager": "reference, eager"}


def plot(rows: Sequence[Row], bandwidth: Bandwidth, build: Build, path: Path) -> None:
    """Write the PNG; one panel per primitive, bytes along x, bytes per second along y."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [row for row in rows if row.measured]
    names = list(dict.fromkeys(row.kernel for row in measured))
    columns = min(3, max(1, len(names)))
    lines = -(-max(1, len(names)) // columns)
    figure, axes = pyplot.subplots(
        lines, columns, figsize=(4.2 * columns, 3.3 * lines + 1.0), squeeze=False, sharey=True, layout="constrained"
    )
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        mine = [row for row in measured if row.kernel == name]
        axis.axhline(bandwidth.best / 1e9, color="black", linewidth=1, linestyle="--", label="memory, measured")
        for provider, (colour, marker) in _STYLES.items():
            found = sorted((row for row in mine if row.provider == provider), key=lambda row: row.bytes)
            if not found:
                continue
            x = [row.bytes / 1e6 for row in found]
            speed = [_rate(row.bytes, row.median_us) for row in found]
            spread = [
                [middle - _rate(row.bytes, row.upper_us) for row, middle in zip(found, speed, strict=True)],
                [_rate(row.bytes, row.lower_us) - middle for row, middle in zip(found, speed, strict=True)],
            ]
            axis.errorbar(
                x,
                speed,
                spread,
                color=colour,
                marker=marker,
                markersize=5,
                linewidth=0,
                elinewidth=1,
                label=_NAMES[provider],
            )
        floors = {row.bytes / 1e6: _rate(row.bytes, row.floor_us) for row in mine}
        axis.plot(
            list(floors), list(floors.values()), "_", color="#D55E00", markersize=12, markeredgewidth=2, label="floor"
        )
        axis.set(xscale="log", yscale="log", title=name)
        if floors:  # a decade at least, so that one size alone has an axis to stand on
            axis.set_xlim(min(floors) / 3.5, max(floors) * 3.5)
        axis.grid(which="major", linewidth=0.4, alpha=0.6)
        axis.set_xlabel("bytes that must move (MB)")
    figure.supylabel("those bytes over the time (GB/s)")
    figure.suptitle(f"{build.device}, torch {build.torch}, triton {build.triton}", fontsize=11)
    handles = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=min(5, len(handles) or 1), fontsize=9
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _rate(moved: int, us: float | None) -> float:
    assert us is not None
    return moved / us / 1e3
