"""Time calls by interleaved repetitions beside the bare model's passes, and their memory in a process of its own."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from fampe_fast.runtime.model import chunk_size

from .. import ROOT
from ..common.command import Say
from ..common.machine import Build
from ..common.results import MEASURED, NOT_RUN, CallRow, status_of
from ..common.timing import Call, in_turns, peak_bytes, seconds_of
from .cases import BARE, OURS, PEERS, Case, ModelSpec, Way
from .contestants import Models, Passes, bare_passes, build, count_passes, failing_uncompiled, in_precision, load_images
from .profiling import graph_launches


@dataclass(frozen=True)
class Plan:
    """A run: what is measured, and how.

    Attributes:
        model: which classifier.
        device: where.
        build: the machine and versions that the rows belong to.
        cases: the batches of work.
        precisions: of this package and the bare passes.
        peer_precisions: of the peers.
        compile: of this package and the bare passes.
        methods: which of ``OURS`` and ``PEERS``.
        chunks: images per bare pass, of which the fastest sets the bound.
        repetitions: of every call, interleaved.
        memory: whether peak memory is measured in processes of its own; without, a GPU's is in this one.
        images: a folder, or None for noise.
        own_bound: compare with bare passes of the model as it is here alone, which takes less time.
        own_chunks: give this package's methods its default number of images per pass, as users do, and not that of the
            fastest bare passes.
        apart: measure one precision and compilation after the other, plain ones first, every case of one before the
            next, and cases with input diversity last: what takes long to compile comes late. Otherwise all ways of a
            case are measured in turns.
    """

    model: ModelSpec
    device: torch.device
    build: Build
    cases: tuple[Case, ...]
    precisions: tuple[str, ...] = ("fp32",)
    peer_precisions: tuple[str, ...] = ("fp32",)
    compile: tuple[str, ...] = ("off",)
    methods: tuple[str, ...] = (*OURS, *PEERS)
    chunks: tuple[int, ...] = (1, 4, 8, 16)
    repetitions: int = 5
    memory: bool = True
    images: str | None = None
    own_bound: bool = False
    own_chunks: bool = False
    apart: bool = False

    def bare_ways(self, case: Case) -> list[Way]:
        """List the bare passes: as published and as here, on images of the case's size and, if need be, enlarged."""
        precisions = dict.fromkeys((*self.precisions, *self.peer_precisions))
        diverse = {"attexplore", "public_attexplore", *(OURS if case.diversity else ())} & {*self.methods}
        sizes = (False, True) if case.diversity is not False and diverse else (False,)
        return [
            Way(BARE, precision, compiled, enlarged, prepared)
            for precision in precisions
            for prepared in ((True,) if self.own_bound else (False, True))
            for compiled in (self.compile if precision in self.precisions else ("off",))
            for enlarged in sizes
        ]

    def ways(self) -> list[Way]:
        """List the methods."""
        ours = [
            Way(method, precision, compiled)
            for precision in self.precisions
            for compiled in self.compile
            for method in OURS
            if method in self.methods
        ]
        peers = [Way(method, precision) for precision in self.peer_precisions for method in PEERS]
        return ours + [way for way in peers if way.method in self.methods]

    def groups(self) -> list[tuple[Case, list[Way]]]:
        """List what is measured in turns: cases, and the ways of each."""
        every = [(case, [*self.bare_ways(case), *self.ways()]) for case in self.cases]
        if not self.apart:
            return every
        kinds = dict.fromkeys((way.precision, way.compile) for _, ways in every for way in ways)
        found = [
            (case, [way for way in ways if (way.precision, way.compile) == kind])
            for kind in kinds
            for case, ways in every
        ]
        # Within these in the order of the plan: enlarged images compile everything once more.
        return sorted(found, key=lambda group: (group[0].diversity is True, group[1][0].compile != "off"))


@dataclass
class _Runner:
    """A way that has been built and warmed up, and what was measured of it."""

    way: Way
    chunk: int
    call: Call | None = None
    status: str = MEASURED
    passes: Passes | None = None
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    graph_launches: int | None = None

    @contextmanager
    def guarded(self, say: Say) -> Iterator[None]:
        """Catch an error, so that only this way fails."""
        try:
            yield
        except Exception as error:
            self.status, self.call = status_of(error), None
            say(f"  {self.way}: {self.status}")


def measure_calls(
    plan: Plan, deadline: float, say: Say, keep: Callable[[list[CallRow]], object] = lambda rows: None
) -> list[CallRow]:
    """Measure one row per case and way; ``keep`` is given all so far after every group, should the run be ended."""
    model, side = plan.model.load(plan.device), plan.cases[0].side
    models = Models.of(
        model, torch.rand(1, 3, side, side, device=plan.device), plain="public_attexplore" in plan.methods
    )
    chunks: dict[tuple[int, str, int], int] = {}
    rows = []
    for case, ways in plan.groups():
        if time.monotonic() > deadline:
            rows += [CallRow(case, way, plan.model.name, plan.build, NOT_RUN) for way in ways]
            continue
        say(f"{case}: {', '.join(dict.fromkeys(f'{way.precision} {way.compile}' for way in ways))}")
        images = load_images(plan.images, case.batch, case.side, models.best).to(plan.device)
        with torch.no_grad():
            targets = models.best(images).argmax(1)
        best = {}
        for precision in dict.fromkeys(way.precision for way in ways):
            key = case.side, precision, case.batch * case.samples
            if key not in chunks:
                chunks[key] = _best_chunk(plan, case, precision, models, images)
                say(f"  bare passes in {precision} are fastest with {chunks[key]} images")
            best[precision] = chunks[key]
        own = {way: chunk_size(None, plan.device) for way in ways if plan.own_chunks and way.method in OURS}
        runners = [_Runner(way, own.get(way, best[way.precision])) for way in ways]
        for runner in runners:
            if time.monotonic() > deadline:
                runner.status = NOT_RUN
                continue
            with runner.guarded(say):
                _warm_up(runner, case, models, images, targets, say)
                assert runner.call is not None
                runner.peak_bytes = None if plan.memory else peak_bytes(runner.call, plan.device)
                runner.graph_launches = graph_launches(runner.call, plan.device)
        _repeat(runners, plan, deadline, say)
        rows += _rows(runners, case, plan)
        keep(rows)
        del runners
        _forget(plan.device)
    if not plan.memory:
        return rows
    del models
    _forget(plan.device)
    return [_with_memory(row, plan, deadline, say) for row in rows]


def _best_chunk(plan: Plan, case: Case, precision: str, models: Models, images: Tensor) -> int:
    """Find the chunk with the highest throughput of the uncompiled bare model; the first if none works."""
    # A step offers batch * samples rows: no larger chunk is open to the methods.
    candidates = sorted({min(chunk, case.batch * case.samples) for chunk in plan.chunks})
    best = (0.0, candidates[0])
    way = Way(BARE, precision)
    for chunk in candidates:
        targets = torch.zeros(len(images), dtype=torch.long, device=plan.device)
        call = in_precision(build(way, case, models, chunk, images, targets), precision, plan.device)
        try:
            call()
            seconds = min(seconds_of(call, plan.device) for _ in range(2))
        except torch.OutOfMemoryError:
            break
        best = max(best, (bare_passes(case, chunk, plan.device) * chunk / seconds, chunk))
    return best[1]


def _warm_up(runner: _Runner, case: Case, models: Models, images: Tensor, targets: Tensor, say: Say) -> None:
    """Build it and call it once: what compiles, captures or allocates does so here."""
    way = runner.way
    if way.method != BARE:
        runner.passes = count_passes(way, case, runner.chunk)
    with failing_uncompiled():
        call = in_precision(
            build(way, case, models, runner.chunk, images, targets, warm=True), way.precision, images.device
        )
        say(f"  {way}: {seconds_of(call, images.device):.2f} s the first time")
    runner.call = call


def _repeat(runners: Sequence[_Runner], plan: Plan, deadline: float, say: Say) -> None:
    def go_on(repetition: int) -> bool:
        ended = repetition > 0 and time.monotonic() > deadline
        if ended:
            say(f"  the time is up: {repetition} repetitions of {plan.repetitions}")
        return not ended

    calls = {number: runner.call for number, runner in enumerate(runners) if runner.call is not None}
    found = in_turns(
        calls,
        lambda call: seconds_of(call, plan.device),
        plan.repetitions,
        lambda number: runners[number].guarded(say),
        go_on,
    )
    for number, seconds in found.items():
        runners[number].seconds = seconds


def _rows(runners: Sequence[_Runner], case: Case, plan: Plan) -> list[CallRow]:
    bare: dict[tuple[str, str, bool], dict[bool, list[float]]] = {}
    for runner in runners:
        if runner.way.method == BARE and runner.call is not None:
            images = bare_passes(case, runner.chunk, plan.device) * runner.chunk
            per_image = [seconds / images for seconds in runner.seconds]
            key = runner.way.precision, runner.way.compile, runner.way.prepared
            bare.setdefault(key, {})[runner.way.enlarged] = per_image
    rows = []
    for runner in runners:
        way = runner.way
        row = CallRow(case, way, plan.model.name, plan.build, runner.status, runner.chunk)
        if runner.call is None:
            rows.append(row)
            continue
        if runner.peak_bytes is not None:
            row = replace(row, peak_bytes=runner.peak_bytes, peak_is="allocated on the GPU above what was there before")
        row = replace(row, graph_launches=runner.graph_launches)
        if way.method == BARE:
            seconds = bare[way.precision, way.compile, way.prepared][way.enlarged]
            rows.append(replace(row, pass_ms=tuple(1e3 * value for value in seconds)))
            continue
        assert runner.passes is not None
        pass_ms = tuple(1e3 * value / case.passes for value in runner.seconds)
        mine = _bound(bare.get((way.precision, way.compile, plan.own_bound)), runner.passes.enlarged)
        others = [_bound(found, runner.passes.enlarged) for key, found in bare.items() if key[0] == way.precision]
        best = min((bound for bound in others if bound), key=lambda bound: sorted(bound)[len(bound) // 2], default=())
        rows.append(
            replace(
                row,
                pass_ms=pass_ms,
                shares=_shares(mine, pass_ms),
                shares_of_best=_shares(best, pass_ms),
                forward_passes=runner.passes.forward,
                backward_passes=runner.passes.backward,
                enlarged=runner.passes.enlarged,
            )
        )
    return rows


def _bound(bare: dict[bool, list[float]] | None, enlarged: float) -> tuple[float, ...]:
    """Return milliseconds per pass, round by round, of bare passes on as many enlarged images as the method showed."""
    if bare is None or False not in bare or (enlarged and True not in bare):
        return ()
    large = bare.get(True, bare[False])
    return tuple(1e3 * ((1 - enlarged) * a + enlarged * b) for a, b in zip(bare[False], large, strict=False))


def _shares(bound: tuple[float, ...], pass_ms: tuple[float, ...]) -> tuple[float, ...]:
    """Divide the bound by the time, round by round."""
    return tuple(allowed / taken for allowed, taken in zip(bound, pass_ms, strict=False))


# Memory ---------------------------------------------------------------------------------------------------------------


def _with_memory(row: CallRow, plan: Plan, deadline: float, say: Say) -> CallRow:
    if not row.measured or time.monotonic() > deadline:
        return row
    peak, how = peak_memory(row.way, row.case, plan, row.chunk)
    say(f"  {row.case}: {row.way}: " + (f"{peak / 2**20:.3g} MiB at the peak" if peak is not None else how))
    return replace(row, peak_bytes=peak, peak_is=how)


def peak_memory(way: Way, case: Case, plan: Plan, chunk: int, timeout: float = 3600) -> tuple[int | None, str]:
    """Measure the bytes that a fresh process's second call takes at its peak beside the model, and name them."""
    request = {
        "model": asdict(plan.model),
        "device": str(plan.device),
        "case": asdict(case),
        "way": asdict(way),
        "chunk": chunk,
        "images": plan.images,
        "threads": torch.get_num_threads(),
    }
    # What glibc keeps of freed memory would hide in the second call: let it give back all that is of any size.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.end_to_end.memory"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        return None, f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"
    found = json.loads(done.stdout.splitlines()[-1])
    return found["peak_bytes"], found["peak_is"]


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
