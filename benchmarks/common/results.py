"""Store results: rows of kernels and of methods' calls, one file for many machines and versions, Markdown tables."""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

from fampe_fast.files import write_atomically

from ..end_to_end.cases import Case, Way
from ..kernels.sizes import Size
from .machine import Build, Machine
from .timing import Spread

MEASURED = "measured"
NOT_RUN = "not run: the time was up"
ENOUGH = 100
"""Calls that have a slowest hundredth."""

_T = TypeVar("_T")


def status_of(error: Exception) -> str:
    """Return the status line that explains a missing time."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


@dataclass(frozen=True)
class KernelRow:
    """One primitive of one size by one provider on one machine.

    Attributes:
        kernel: the primitive's name.
        size: of the batch.
        provider: "kernel", "eager" or "compiled".
        build: machine and versions.
        status: ``MEASURED``, or why there is no time.
        form: which form of the reference was compiled, or empty.
        timer: how it was measured.
        median_us, lower_us, upper_us: median and quartiles of the repetitions, in microseconds.
        repetitions: how many.
        host_us: as in ``timing.Timing``.
        bytes: the fewest a call can move.
        bandwidth_share: of the machine's measured bandwidth, at these bytes.
        floor_us: least time by bytes and, where they are known, instructions.
        floor_by: what sets it.
        floor_share: floor over median.
        peak_bytes: device memory allocated at the peak of a call.
        verified: whether the tests of what was timed have passed on this build.
    """

    kernel: str
    size: Size
    provider: str
    build: Build
    status: str = MEASURED
    form: str = ""
    timer: str = ""
    median_us: float | None = None
    lower_us: float | None = None
    upper_us: float | None = None
    repetitions: int = 0
    host_us: float | None = None
    bytes: int = 0
    bandwidth_share: float | None = None
    floor_us: float | None = None
    floor_by: str = ""
    floor_share: float | None = None
    peak_bytes: int | None = None
    verified: bool = True

    @property
    def key(self) -> tuple[Any, ...]:
        """What a newer row replaces."""
        return (self.kernel, self.size, self.provider, *self.build.key)

    @property
    def measured(self) -> bool:
        """Whether there is a time."""
        return self.status == MEASURED


@dataclass(frozen=True)
class CallRow:
    """One way of running one case.

    Attributes:
        case: the work.
        way: how it was done.
        model: name of the classifier.
        build: machine and versions.
        status: ``MEASURED``, or why there is no time.
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
        graph_launches: CUDA graphs that a call replays, as a profile counts them; None on a CPU.
        verified: whether the tests of all kernels have passed on this build.
    """

    case: Case
    way: Way
    model: str
    build: Build
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
    graph_launches: int | None = None
    verified: bool = True

    @property
    def key(self) -> tuple[Any, ...]:
        """What a newer row replaces."""
        return (self.model, self.case, self.way, *self.build.key)

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
        each = self.case.steps * self.case.samples / self.way.maps(self.case)
        return Spread.of([1e3 / (ms * each) for ms in self.pass_ms])


@dataclass(frozen=True)
class LatencyRow:
    """How long calls with one image take.

    Attributes:
        model: name of the classifier.
        kind: the method and its passes, or the bare pass.
        precision: of the model.
        compile: off, on or graphs.
        build: machine and versions.
        status: ``MEASURED``, or why there is no time.
        p50_ms: half of the calls took no longer, in milliseconds.
        p99_ms: 99 % took no longer; None of fewer than ``ENOUGH`` calls.
        repetitions: how many calls.
        graph_launches: CUDA graphs that a call replays, as a profile counts them; None on a CPU.
        verified: whether the tests of all kernels have passed on this build.
    """

    model: str
    kind: str
    precision: str
    compile: str
    build: Build
    status: str = MEASURED
    p50_ms: float | None = None
    p99_ms: float | None = None
    repetitions: int = 0
    graph_launches: int | None = None
    verified: bool = True

    @property
    def key(self) -> tuple[Any, ...]:
        """What a newer row replaces."""
        return (self.model, self.kind, self.precision, self.compile, *self.build.key)

    @property
    def measured(self) -> bool:
        """Whether there is a time."""
        return self.status == MEASURED

    def of(self, ms: Sequence[float]) -> LatencyRow:
        """Fill in the milliseconds of the calls, at least one."""
        p99 = percentile(ms, 0.99) if len(ms) >= ENOUGH else None
        return dataclasses.replace(self, status=MEASURED, p50_ms=percentile(ms, 0.5), p99_ms=p99, repetitions=len(ms))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest of the values that at least this share of them does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True)
class Results:
    """The content of a results file."""

    machines: tuple[Machine, ...] = ()
    kernels: tuple[KernelRow, ...] = ()
    calls: tuple[CallRow, ...] = ()
    latencies: tuple[LatencyRow, ...] = ()

    def merged(self, new: Results) -> Results:
        """Merge newer results, key by key.

        A row without a time does not replace a measured one.
        """
        machines = {machine.build.key: machine for machine in (*self.machines, *new.machines)}

        def joined(old: Iterable[Any], newer: Iterable[Any]) -> tuple[Any, ...]:
            found = {row.key: row for row in old}
            for row in newer:
                if row.measured or row.key not in found or not found[row.key].measured:
                    found[row.key] = row
            return tuple(found.values())

        return Results(
            tuple(machines.values()),
            joined(self.kernels, new.kernels),
            joined(self.calls, new.calls),
            joined(self.latencies, new.latencies),
        )


def write(record: object, path: Path, table: str = "") -> Path:
    """Write dataclasses, lists and dictionaries of them as JSON and a table beside it as Markdown; return the path.

    An existing file is replaced atomically.
    """
    write_atomically(path, (json.dumps(record, default=dataclasses.asdict, indent=1) + "\n").encode())
    if table:
        write_atomically(path.with_suffix(".md"), table.encode())
    return path


def read(path: Path) -> Results:
    """Read the results in a file; none if there is no such file.

    Raises:
        ValueError: the file is of another version of the benchmarks, or no results file.
    """
    if not path.exists():
        return Results()
    try:
        found: Results = _rebuilt(Results, json.loads(path.read_text(encoding="utf-8")))
        return found
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} holds no results of this version of the benchmarks ({error}): move it away") from None


def _rebuilt(kind: Any, value: Any) -> Any:
    """Build a value of a type, dataclasses and tuples within included, from what JSON made of it."""
    if value is None:
        return None
    if get_origin(kind) in (Union, types.UnionType):
        return _rebuilt(next(part for part in get_args(kind) if part is not type(None)), value)
    if get_origin(kind) is tuple:
        return tuple(_rebuilt(get_args(kind)[0], part) for part in value)
    if dataclasses.is_dataclass(kind):
        kinds = get_type_hints(kind)
        return kind(**{name: _rebuilt(kinds.get(name), part) for name, part in value.items()})  # type: ignore[operator]
    return value


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """Lay out the lines of a Markdown table whose first ``left`` columns are words and the others numbers."""
    rule = "|" + "---|" * left + "--:|" * (len(titles) - left)
    return [f"| {' | '.join(titles)} |", rule, *(f"| {' | '.join(cells)} |" for cells in rows)]
