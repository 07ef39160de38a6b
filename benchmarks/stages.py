"""Measure in stages: each writes its results row by row, and prints its report before the next begins."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from .common.command import Say, file_name
from .common.machine import Build, LoadMonitor, Machine, build_of
from .common.plot import plot_kernels
from .common.results import NOT_RUN, CallRow, KernelRow, LatencyRow, Results, read, write
from .common.timing import timer_for
from .end_to_end.cases import BARE, Case, ModelSpec
from .end_to_end.latency import BARE_PASS, LatencyPlan, measure_latencies
from .end_to_end.latency import markdown as latencies
from .end_to_end.measuring import Plan, measure_calls
from .end_to_end.report import markdown
from .kernels import gate
from .kernels.floors import ceilings, measure_bandwidth
from .kernels.measuring import Bench, cases, counted_work, measure_kernels
from .kernels.measuring import Case as KernelCase
from .kernels.primitives import PRIMITIVES, primitive
from .kernels.report import report
from .kernels.sizes import SIZES, TOY_SIZES, USUAL, Size, size_from_text


@dataclass
class Session:
    """One call of the command.

    Attributes:
        chosen: its arguments.
        say: prints a line of progress.
        deadline: by ``time.monotonic``, after which nothing new is begun.
        device: that is measured.
        build: it, and versions.
        failed: what went wrong, for the command's last lines.
    """

    chosen: argparse.Namespace
    say: Say
    deadline: float
    device: torch.device = field(init=False)
    build: Build = field(init=False)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._monitor = LoadMonitor()
        self.device = torch.device("cpu" if self.chosen.dry_run else "cuda")
        self.build = build_of(self.device, dry_run=self.chosen.dry_run)
        read(self.file)  # that of another version is refused before the work

    @property
    def file(self) -> Path:
        """Where the results go."""
        return Path(self.chosen.out) / "results.json"

    def machine(self, **found: Any) -> Machine:
        """Describe the machine, with what earlier stages have found of this commit on it, and what this one has."""
        for known in read(self.file).machines:
            if known.build.key == self.build.key and known.build.commit == self.build.commit:
                kept = ("tests", "checked", "unverified", "copy_bytes_per_s", "write_bytes_per_s")
                found = {**{name: getattr(known, name) for name in kept}, **found}
        return self._monitor.machine(self.build, **found)

    def keep(self, **found: Any) -> None:
        """Write rows, or what is known of the machine: it survives whatever comes."""
        rows = {name: tuple(found.pop(name, ())) for name in ("kernels", "calls", "latencies")}
        write(read(self.file).merged(Results((self.machine(**found),), **rows)), self.file)

    def rows(self) -> Results:
        """Read the rows of this build."""
        stored, key = read(self.file), self.build.key
        return Results(
            kernels=tuple(row for row in stored.kernels if row.build.key == key),
            calls=tuple(row for row in stored.calls if row.build.key == key),
            latencies=tuple(row for row in stored.latencies if row.build.key == key),
        )

    def check(self, primitives: Sequence[str]) -> None:
        """Run kernels' own checks, those that have neither passed nor failed on this build yet."""
        for name in primitives:
            machine = self.machine()
            if machine.verifies(name) or name in machine.unverified:
                continue
            said = gate.own_failure(name, self.device, self.deadline, dry_run=self.chosen.dry_run)
            self.say(f"{name}: {said or 'its checks passed'}")
            if not said:
                self.keep(checked=(*machine.checked, name))
            elif said != NOT_RUN:
                self.keep(unverified=(*machine.unverified, name))
                self.failed.append(f"{name}: {said}")

    def note(self, rows: Sequence[KernelRow] | Sequence[CallRow] | Sequence[LatencyRow]) -> None:
        """Remember the rows that could not be measured."""
        self.failed += [f"{row.status}: {row.key}" for row in rows if row.status.startswith("failed")]


ALL = tuple(entry.name for entry in PRIMITIVES)


def own_checks(session: Session) -> None:
    """Run every kernel's own checks; those that fail mark what they are about, and nothing else."""
    session.check(list(session.chosen.kernels or ALL))


def run_tests(session: Session) -> None:
    """Run the GPU tests, and note the primitives that those which fail are about."""
    left = session.deadline - time.monotonic()
    if left < 0:
        session.say(NOT_RUN)
        return
    found = gate.failures(gate.checks(session.chosen.dry_run), timeout=max(60.0, left))
    for one in found:
        if not one.ended:
            session.say(one.text)
    failures = [one for one in found if one.ended]
    if found and not failures:
        return
    unverified = gate.concerned(failures, ALL)
    session.keep(tests=f"failed: {failures[0].text.splitlines()[0]}" if failures else "passed", unverified=unverified)
    machine, before = session.machine(), session.rows()
    session.keep(
        kernels=[replace(row, verified=row.verified and _verified(row, machine)) for row in before.kernels],
        calls=[replace(row, verified=row.verified and _verified(row, machine)) for row in before.calls],
        latencies=[replace(row, verified=row.verified and _verified(row, machine)) for row in before.latencies],
    )
    session.failed += [failure.text for failure in failures]
    session.say(f"UNVERIFIED: {', '.join(unverified)}" if failures else "the tests passed")


def usual_kernels(session: Session) -> None:
    """Measure every kernel at the most important size."""
    wanted, sizes = _wanted(session)
    _kernels(session, [case for case in wanted if case[1] == case[0].fitted(sizes[0])], first=True)


def other_kernels(session: Session) -> None:
    """Measure every kernel at the other sizes."""
    wanted, sizes = _wanted(session)
    _kernels(session, [case for case in wanted if case[1] != case[0].fitted(sizes[0])], first=False)


def one_image(session: Session) -> None:
    """Measure how long one image waits for its map."""
    session.check(ALL)
    chosen, machine = session.chosen, session.machine()
    plan = LatencyPlan(ModelSpec("resnet50"), session.device, session.build, ("bf16", "auto"), ("off", "on", "graphs"))
    if chosen.dry_run:
        plan = replace(plan, model=ModelSpec("embedded"), precisions=("auto",), compile=("off",), repetitions=2)
    elif chosen.quick:
        plan = replace(plan, precisions=("bf16",), compile=("off", "on"))
    rows = []
    for row in measure_latencies(plan, session.deadline, session.say):
        rows.append(replace(row, verified=_verified(row, machine)))
        session.keep(latencies=rows[-1:])
    session.note(rows)
    print(f"\n{latencies(rows, session.machine())}", flush=True)


def whole_model(session: Session) -> None:
    """Measure FAMPE beside the bare model's passes."""
    session.check(ALL)
    machine = session.machine()

    def marked(rows: Sequence[CallRow]) -> list[CallRow]:
        return [replace(row, verified=_verified(row, machine)) for row in rows]

    plan = plan_of(session.device, session.build, quick=session.chosen.quick, dry_run=session.chosen.dry_run)
    calls = marked(measure_calls(plan, session.deadline, session.say, lambda rows: session.keep(calls=marked(rows))))
    session.keep(calls=calls)
    session.note(calls)
    print(f"\n{markdown(calls, session.machine())}", flush=True)


STAGES: dict[str, Callable[[Session], None]] = {
    "checks": own_checks,
    "kernels": usual_kernels,
    "latency": one_image,
    "model": whole_model,
    "tests": run_tests,
    "sizes": other_kernels,
}
"""In the order of their importance: the kernels' other sizes come last."""


def _wanted(session: Session) -> tuple[list[KernelCase], tuple[Size, ...]]:
    """List the cases of the kernels, and the sizes that they are of."""
    chosen = session.chosen
    if chosen.sizes:
        sizes = tuple(map(size_from_text, chosen.sizes))
    elif chosen.dry_run:
        sizes = TOY_SIZES
    else:
        sizes = (USUAL,) if chosen.quick else SIZES
    return cases([primitive(name) for name in chosen.kernels] if chosen.kernels else PRIMITIVES, sizes), sizes


def _kernels(session: Session, wanted: Sequence[KernelCase], *, first: bool) -> None:
    if not wanted:
        return
    timer, say, dry_run = timer_for(session.device), session.say, session.chosen.dry_run
    bandwidth = measure_bandwidth(timer, session.device)
    say(f"memory: copy {bandwidth.copy / 1e9:.0f} GB/s, write {bandwidth.write / 1e9:.0f} GB/s")
    session.keep(copy_bytes_per_s=bandwidth.copy, write_bytes_per_s=bandwidth.write)
    bench = Bench(session.device, timer, session.build, ceilings(bandwidth, session.device), seconds=0.3)
    # Counting compiles; in a dry run one case shows the way: nothing there is as fast as a floor.
    work = {} if dry_run and not first else counted_work(wanted[:1] if dry_run else wanted, session.device, say)
    rows: list[KernelRow] = []
    for row in measure_kernels(wanted, session.chosen.providers, work, bench, session.deadline, say):
        if row.provider == "kernel" and row.measured:
            session.check([row.kernel])
        rows.append(replace(row, verified=row.verified and _verified(row, session.machine())))
        session.keep(kernels=rows[-1:])
    session.note(rows)
    print(f"\n{report(rows)}", flush=True)
    picture = Path(session.chosen.out) / f"{file_name(session.build.device)}.png"
    plot_kernels([row for row in session.rows().kernels if row.verified], bandwidth.best, session.build, picture)
    print(f"\n{picture}")


def _verified(row: KernelRow | CallRow | LatencyRow, machine: Machine) -> bool:
    """Tell whether the kernels in what a row times are verified; the reference and the bare model have none."""
    if isinstance(row, CallRow):
        return row.way.method == BARE or machine.verifies(*ALL)
    if isinstance(row, LatencyRow):
        return row.kind == BARE_PASS or machine.verifies(*ALL)
    return row.provider != "kernel" or machine.verifies(row.kernel)


def plan_of(device: torch.device, build: Build, *, quick: bool, dry_run: bool) -> Plan:
    """Plan FAMPE beside the bare passes of ResNet-50 with random weights, which cost the same."""
    plan = Plan(
        ModelSpec("resnet50"),
        device,
        build,
        tuple(Case(batch, 224, 2, 20, diversity) for diversity in (False, True) for batch in (32, 1)),
        precisions=("bf16", "auto", "fp32"),  # what is compiled longest comes last
        peer_precisions=(),
        compile=("off", "on", "graphs"),
        methods=("fampe",),
        chunks=(64, 128, 320),
        memory=False,
        own_bound=True,
        apart=True,
    )
    if dry_run:
        toy, cases = ModelSpec("embedded"), (Case(1, 32, 1, 2, False),)
        return replace(plan, model=toy, cases=cases, precisions=("fp32",), compile=("off",), chunks=(2,), repetitions=1)
    return replace(plan, cases=plan.cases[:1], precisions=("bf16",), compile=("off", "on")) if quick else plan
