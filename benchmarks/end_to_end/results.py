"""What a run found: one row per case and way, as JSON and as a Markdown table."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..common.checkout import commit
from .contestants import BARE, Case, Way

MEASURED = "measured"
NOT_RUN = "not run: the time was up"


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass(frozen=True)
class Row:
    """One way of running one case.

    Attributes:
        case: the work.
        way: how it was done.
        status: "measured", or why not.
        chunk: images per model pass, where the method has a say in it.
        pass_ms: milliseconds per pass and image, one per repetition: the call's time over T * N * B, whatever the
            method wastes; for bare passes those really made.
        shares: of the bound, the bare passes of the same precision and compilation, in the same round.
        shares_of_best: of the fastest bare passes of the same precision, compiled or not, as published or as here.
        forward_passes: per map, counted; None for bare passes.
        backward_passes: likewise.
        enlarged: share of the passes that saw images enlarged by input diversity; the bound has as many.
        peak_bytes: of a call, None where it was not measured.
        peak_is: what that counts.
    """

    case: Case
    way: Way
    status: str = MEASURED
    chunk: int = 0
    pass_ms: tuple[float, ...] = ()
    shares: tuple[float, ...] = ()
    shares_of_best: tuple[float, ...] = ()
    forward_passes: float | None = None
    backward_passes: float | None = None
    enlarged: float = 0.0
    peak_bytes: int | None = None
    peak_is: str = ""

    @classmethod
    def of(cls, case: Case, way: Way, **rest: Any) -> Row:
        """A row with what is known of it so far."""
        return cls(case, way, **rest)

    @property
    def measured(self) -> bool:
        """Whether there is a time."""
        return self.status == MEASURED and bool(self.pass_ms)

    @property
    def per_pass(self) -> Spread:
        """Milliseconds per pass and image."""
        return Spread.of(self.pass_ms)

    @property
    def maps_per_s(self) -> Spread:
        """Maps per second; for bare passes the maps that they allow."""
        each = self.case.steps * self.case.samples
        return Spread.of([1e3 / (ms * each) for ms in self.pass_ms])


@dataclass(frozen=True)
class Machine:
    """Where and with what.

    Attributes:
        device: the GPU's or the processor's name.
        cores: of the machine.
        threads: torch's.
        torch: version.
        captum: version, or "none".
        model: name of the classifier.
        commit: of the checkout, with "+" where it is not committed.
        date: UTC.
        load: the system's load average at the start and at the end, where there is one.
        dry_run: whether the figures mean nothing.
        stolen: share of the processors' time in between that went to other machines on the same host, where the
            system knows it.
    """

    device: str
    cores: int
    threads: int
    torch: str
    captum: str
    model: str
    commit: str
    date: str
    load: tuple[float, ...] = ()
    dry_run: bool = False
    stolen: float = 0.0

    @property
    def disturbed(self) -> str:
        """What makes the figures useless as measurements, or nothing."""
        found = []
        if self.load and self.load[0] > 0.25 * self.cores:
            found.append(f"more was running at the start: load average {self.load[0]:.1f}")
        if self.stolen > 0.1:
            found.append(f"{self.stolen:.0%} of the processors' time went to other machines on the host")
        return "; ".join(found)


class Quiet:
    """Watches, from its making on, what else goes on."""

    def __init__(self) -> None:
        self._load = load_average()
        self._before = _processor_time()

    def load(self) -> tuple[float, ...]:
        """The load average then and now."""
        return (*self._load, *load_average())

    def stolen(self) -> float:
        """The share of the time since then that went to other machines."""
        stolen, total = (now - before for now, before in zip(_processor_time(), self._before, strict=True))
        return stolen / total if total else 0.0


def load_average() -> tuple[float, ...]:
    """Of the last minute, or nothing where the system does not tell."""
    return (os.getloadavg()[0],) if hasattr(os, "getloadavg") else ()


def _processor_time() -> tuple[int, int]:
    """Ticks stolen from this machine, and all but the idle ones; zeros where the system does not tell."""
    try:
        ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return 0, 0
    user, nice, system, _, _, *interrupts, stolen = ticks  # idle, and waiting for input
    return stolen, user + nice + system + sum(interrupts) + stolen


def machine(device: torch.device, model: str, quiet: Quiet, dry_run: bool) -> Machine:
    """The one that runs this, and what else it did meanwhile."""
    from importlib import metadata

    try:
        captum = metadata.version("captum")
    except metadata.PackageNotFoundError:
        captum = "none"
    return Machine(
        torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        os.cpu_count() or 1,
        torch.get_num_threads(),
        torch.__version__,
        captum,
        model,
        commit(),
        datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        quiet.load(),
        dry_run,
        quiet.stolen(),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(rows: Sequence[Row], of: Machine, path: Path) -> None:
    """As JSON; a file that is there is replaced whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    record = {"machine": asdict(of), "rows": [asdict(row) for row in rows]}
    scratch.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def read(path: Path) -> tuple[Machine, list[Row]]:
    """What ``write`` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    lists = ("pass_ms", "shares", "shares_of_best")
    rows = [
        Row(
            **{
                **record,
                **{name: tuple(record[name]) for name in lists},
                "case": Case(**record["case"]),
                "way": Way(**record["way"]),
            }
        )
        for record in content["rows"]
    ]
    return Machine(**{**content["machine"], "load": tuple(content["machine"]["load"])}), rows


def markdown(rows: Sequence[Row], of: Machine) -> str:
    """One table per case."""
    lines = [
        f"{of.model} on {of.device}, {of.threads} threads, torch {of.torch}, Captum {of.captum}, commit {of.commit}, "
        f"{of.date}.",
        "",
        "Medians over the repetitions, quartiles in brackets. Bound: the bare model's passes, as many and on images of "
        "the same sizes, of the same precision and compilation, of the model as published; best: the fastest of the "
        "same precision, compiled or not, as published or as here: normalisation folded, freed memory kept.",
    ]
    if of.dry_run:
        lines += ["", "**Dry run at toy sizes: the figures mean nothing.**"]
    elif of.disturbed:
        lines += ["", f"**Not a measurement to be kept: {of.disturbed}.**"]
    for case in dict.fromkeys(row.case for row in rows):
        lines += [
            "",
            f"### {str(case)[0].upper()}{str(case)[1:]}",
            "",
            "| | maps/s | ms per pass and image | of the bound | of the best | passes per map, forward / backward |"
            " chunk | peak MiB |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in rows if row.case == case]
    counted = {row.peak_is for row in rows if row.peak_bytes is not None}
    if counted:
        lines += ["", f"Peak: {', '.join(sorted(counted))}."]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    if not row.measured:
        return f"| {row.way} | {row.status} | | | | | | |"
    passes = "" if row.forward_passes is None else f"{row.forward_passes:g} / {row.backward_passes:g}"
    chunk = "" if row.way.method == "public_attexplore" else str(row.chunk)
    peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.3g}"
    rate = "" if row.way.method == BARE and row.way.enlarged else _spread(row.maps_per_s)
    shares = [_spread(Spread.of(found), percent=True) if found else "" for found in (row.shares, row.shares_of_best)]
    return f"| {row.way} | {rate} | {_spread(row.per_pass)} | {' | '.join(shares)} | {passes} | {chunk} | {peak} |"


def _spread(value: Spread, percent: bool = False) -> str:
    if percent:
        return f"{value.median:.0%} [{value.lower:.0%}, {value.upper:.0%}]"
    return f"{value.median:.3g} [{value.lower:.3g}, {value.upper:.3g}]"
