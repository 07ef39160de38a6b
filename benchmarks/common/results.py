"""The results file: one JSON for all machines and versions, rows replaced by newer ones of the same key."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..kernels.sizes import Size
from .machine import Build

MEASURED = "measured"


@dataclass(frozen=True)
class Row:
    """One primitive of one size by one provider on one machine.

    Attributes:
        kernel: the primitive's name.
        size: of the batch.
        provider: "kernel", "eager" or "compiled".
        build: machine and versions.
        status: ``MEASURED``, or why there is no time.
        form: which form of the reference was compiled, or empty.
        timer: how it was measured.
        median_us, lower_us, upper_us, repetitions, host_us: as in ``timing.Timing``.
        bytes: the fewest a call can move.
        bandwidth_share: of the machine's measured bandwidth, at these bytes.
        floor_us: least time by bytes and, where they are known, instructions.
        floor_by: what sets it.
        floor_share: floor over median.
        peak_bytes: device memory allocated at the peak of a call.
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

    @property
    def key(self) -> tuple[Any, ...]:
        """What a newer row replaces."""
        return (self.kernel, self.size, self.provider, *_machine(self.build))

    @property
    def measured(self) -> bool:
        """Whether there is a time."""
        return self.status == MEASURED


@dataclass(frozen=True)
class EndToEnd:
    """FAMPE on a whole model.

    Attributes:
        model: timm's name, random weights.
        images: batch.
        side: pixels.
        steps: T.
        samples: N.
        precision: of the model.
        input_diversity: whether half the samples are shown enlarged, which the bound does not count.
        build: machine and versions.
        status: ``MEASURED``, or why there is no time.
        images_per_s: median.
        lower: first quartile of the same.
        upper: third quartile.
        bound_images_per_s: what T*N forward and backward passes of the bare model allow, at its best chunk.
        bound_chunk: that chunk.
        share: of the bound.
        peak_bytes: device memory allocated at the peak.
    """

    model: str
    images: int
    side: int
    steps: int
    samples: int
    precision: str
    input_diversity: bool
    build: Build
    status: str = MEASURED
    images_per_s: float | None = None
    lower: float | None = None
    upper: float | None = None
    bound_images_per_s: float | None = None
    bound_chunk: int = 0
    share: float | None = None
    peak_bytes: int | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What a newer row replaces."""
        configuration = (self.model, self.images, self.side, self.steps, self.samples, self.precision)
        return (*configuration, self.input_diversity, *_machine(self.build))

    @property
    def measured(self) -> bool:
        """Whether there is a time."""
        return self.status == MEASURED


@dataclass(frozen=True)
class Machine:
    """A run's machine, and whether its tests passed.

    Attributes:
        build: machine and versions.
        tests: "passed", or what failed; then there are no rows.
        copy_bytes_per_s: measured.
        write_bytes_per_s: measured.
    """

    build: Build
    tests: str
    copy_bytes_per_s: float | None = None
    write_bytes_per_s: float | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What a newer record replaces."""
        return _machine(self.build)


def _machine(build: Build) -> tuple[str, str, str]:
    return build.device, build.torch, build.triton


@dataclass(frozen=True)
class Results:
    """Everything in a results file."""

    machines: tuple[Machine, ...] = ()
    rows: tuple[Row, ...] = ()
    end_to_end: tuple[EndToEnd, ...] = ()

    def merged(self, new: Results) -> Results:
        """With newer results, key by key.

        What was not measured this time does not replace what was. A machine whose tests failed loses its rows: they
        are not of a build that is known to be right.
        """
        machines = {machine.key: machine for machine in (*self.machines, *new.machines)}
        failed = {key for key, machine in machines.items() if machine.tests != "passed"}

        def joined(old: Iterable[Any], newer: Iterable[Any]) -> tuple[Any, ...]:
            found = {row.key: row for row in old}
            for row in newer:
                if row.measured or row.key not in found or not found[row.key].measured:
                    found[row.key] = row
            return tuple(row for row in found.values() if _machine(row.build) not in failed)

        return replace(
            self,
            machines=tuple(machines.values()),
            rows=joined(self.rows, new.rows),
            end_to_end=joined(self.end_to_end, new.end_to_end),
        )


def read(path: Path) -> Results:
    """The results in a file; none if there is no such file."""
    if not path.exists():
        return Results()
    content = json.loads(path.read_text(encoding="utf-8"))

    def built(record: dict[str, Any]) -> dict[str, Any]:
        return {**record, "build": Build(**record["build"])}

    return Results(
        tuple(Machine(**built(record)) for record in content["machines"]),
        tuple(Row(**{**built(record), "size": Size(**record["size"])}) for record in content["rows"]),
        tuple(EndToEnd(**built(record)) for record in content["end_to_end"]),
    )


def write(results: Results, path: Path) -> None:
    """All at once: a file that is there is replaced whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(asdict(results), indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)
