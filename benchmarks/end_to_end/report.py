"""Tabulate calls of whole methods beside their bounds."""

from __future__ import annotations

from collections.abc import Sequence

from ..common.machine import Machine
from ..common.results import CallRow, table
from ..common.timing import Spread
from .cases import BARE

TITLES = (
    "", "maps/s", "ms per pass and image", "of the bound", "of the best", "passes per map, forward / backward", "chunk",
    "peak MiB",
)  # fmt: skip


def markdown(rows: Sequence[CallRow], of: Machine) -> str:
    """Write one table per case."""
    lines = [
        f"{', '.join(dict.fromkeys(row.model for row in rows))} on {of}.",
        "",
        "Medians over the repetitions, quartiles in brackets. Bound: the bare model's passes, as many and on images of "
        "the same sizes and in the same chunks, of the same precision and compilation, of the model as published (in "
        "benchmarks.run as here); best: the fastest of the "
        "same precision that was measured beside it, as published or as here: normalisation folded, freed memory kept.",
    ]
    if of.warning:
        lines += ["", f"**{of.warning}**"]
    for case in dict.fromkeys(row.case for row in rows):
        cells = [_cells(row) for row in rows if row.case == case]
        lines += ["", f"### {str(case)[0].upper()}{str(case)[1:]}", "", *table(TITLES, cells)]
    counted = {row.peak_is for row in rows if row.peak_bytes is not None}
    if counted:
        lines += ["", f"Peak: {', '.join(sorted(counted))}."]
    return "\n".join(lines) + "\n"


def graphs_of(compiled: str, launches: int | None) -> str:
    """Say whether graphs were replayed, where that was asked and is not what the way's name promises."""
    if launches is None or (launches > 0) == (compiled == "graphs"):
        return f" ({launches} a call)" if launches else ""
    return f", {launches} GRAPHS A CALL" if launches else ", NO GRAPH ACTIVE"


def _cells(row: CallRow) -> list[str]:
    if not row.measured:
        return [str(row.way), row.status, *[""] * 6]
    return [
        f"{row.way}{graphs_of(row.way.compile, row.graph_launches)}{'' if row.verified else ', UNVERIFIED'}",
        "" if row.way.method == BARE and row.way.enlarged else str(row.maps_per_s),
        str(row.per_pass),
        *(Spread.of(shares).percent() if shares else "" for shares in (row.shares, row.shares_of_best)),
        "" if row.forward_passes is None else f"{row.forward_passes:g} / {row.backward_passes:g}",
        "" if row.way.method == "public_attexplore" else str(row.chunk),
        "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.3g}",
    ]
