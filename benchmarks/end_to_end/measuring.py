"""Times by interleaved repetitions, memory in a process of its own, and the bound that the bare model's passes set."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from .. import ROOT
from .contestants import (
    BARE,
    OURS,
    PEERS,
    Call,
    Case,
    Models,
    ModelSpec,
    Passes,
    Way,
    bare_passes,
    build,
    count_passes,
    in_precision,
    load_images,
)
from .results import MEASURED, NOT_RUN, Row

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        model: which classifier.
        device: where.
        cases: the batches of work.
        precisions: of this package and the bare passes.
        peer_precisions: of the peers.
        compile: of this package and the bare passes.
        methods: which of ``OURS`` and ``PEERS``.
        chunks: images per bare pass, of which the fastest sets the bound.
        repetitions: of every call, interleaved.
        memory: whether peak memory is measured.
        images: a folder, or None for noise.
    """

    model: ModelSpec
    device: torch.device
    cases: tuple[Case, ...]
    precisions: tuple[str, ...] = ("fp32",)
    peer_precisions: tuple[str, ...] = ("fp32",)
    compile: tuple[str, ...] = ("off",)
    methods: tuple[str, ...] = (*OURS, *PEERS)
    chunks: tuple[int, ...] = (1, 4, 8, 16)
    repetitions: int = 5
    memory: bool = True
    images: str | None = None

    def bare_ways(self, case: Case) -> list[Way]:
        """Bare passes, as published and as here: on images of the case's size, with input diversity also enlarged."""
        precisions = dict.fromkeys((*self.precisions, *self.peer_precisions))
        sizes = (False, True) if case.diversity and {*OURS, "public_attexplore"} & {*self.methods} else (False,)
        return [
            Way(BARE, precision, compiled, enlarged, prepared)
            for precision in precisions
            for prepared in (False, True)
            for compiled in (self.compile if precision in self.precisions else ("off",))
            for enlarged in sizes
        ]

    def ways(self) -> list[Way]:
        """The methods."""
        ours = [
            Way(method, precision, compiled)
            for precision in self.precisions
            for compiled in self.compile
            for method in OURS
            if method in self.methods
        ]
        peers = [Way(method, precision) for precision in self.peer_precisions for method in PEERS]
        return ours + [way for way in peers if way.method in self.methods]


@dataclass
class _Runner:
    """A way that has been built and warmed up, and what was measured of it."""

    way: Way
    chunk: int
    call: Call | None = None
    status: str = MEASURED
    passes: Passes | None = None
    seconds: list[float] = field(default_factory=list)


def timed(call: Call, device: torch.device) -> float:
    """Seconds from an idle device to an idle device."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def measure(
    plan: Plan, deadline: float, say: Say, keep: Callable[[list[Row]], object] = lambda rows: None
) -> list[Row]:
    """One row per case and way; ``keep`` is given all rows so far after every case, should the run be ended."""
    model, side = plan.model.load(plan.device), plan.cases[0].side
    models = Models.of(model, torch.rand(1, 3, side, side, device=plan.device))
    chunks: dict[tuple[int, str, int], int] = {}
    rows = []
    for case in plan.cases:
        ways = [*plan.bare_ways(case), *plan.ways()]
        if time.monotonic() > deadline:
            rows += [Row.of(case, way, status=NOT_RUN) for way in ways]
            continue
        say(str(case))
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
        runners = [_warm(_Runner(way, best[way.precision]), case, models, images, targets, say) for way in ways]
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
    """The chunk with the highest throughput of the uncompiled bare model; the first if none works."""
    # A step offers batch * samples rows: no larger chunk is open to the methods.
    candidates = sorted({min(chunk, case.batch * case.samples) for chunk in plan.chunks})
    best = (0.0, candidates[0])
    way = Way(BARE, precision)
    for chunk in candidates:
        targets = torch.zeros(len(images), dtype=torch.long, device=plan.device)
        call = in_precision(build(way, case, models, chunk, images, targets), precision, plan.device)
        try:
            call()
            seconds = min(timed(call, plan.device) for _ in range(2))
        except torch.OutOfMemoryError:
            break
        best = max(best, (bare_passes(case, chunk, plan.device) * chunk / seconds, chunk))
    return best[1]


def _warm(runner: _Runner, case: Case, models: Models, images: Tensor, targets: Tensor, say: Say) -> _Runner:
    """Build it and call it once: what compiles, captures or allocates does so here."""
    way = runner.way
    try:
        if way.method != BARE:
            runner.passes = count_passes(way, case, runner.chunk)
        call = build(way, case, models, runner.chunk, images, targets, warm=True)
        runner.call = in_precision(call, way.precision, images.device)
        say(f"  {way}: {timed(runner.call, images.device):.2f} s the first time")
    except Exception as error:
        _fail(runner, error, say)
    return runner


def _fail(runner: _Runner, error: Exception, say: Say) -> None:
    first = (str(error).splitlines() or [""])[0][:200]
    out_of_memory = isinstance(error, torch.OutOfMemoryError)
    runner.status = "out of memory" if out_of_memory else f"failed: {type(error).__name__}: {first}"
    runner.call = None
    say(f"  {runner.way}: {runner.status}")


def _repeat(runners: Sequence[_Runner], plan: Plan, deadline: float, say: Say) -> None:
    """Every round all of them, every other round in reverse order: drift of the machine meets all alike."""
    for repetition in range(plan.repetitions):
        if repetition and time.monotonic() > deadline:
            say(f"  the time is up: {repetition} repetitions of {plan.repetitions}")
            return
        for runner in runners if repetition % 2 == 0 else reversed(runners):
            if runner.call is None:
                continue
            try:
                runner.seconds.append(timed(runner.call, plan.device))
            except Exception as error:
                _fail(runner, error, say)


def _rows(runners: Sequence[_Runner], case: Case, plan: Plan) -> list[Row]:
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
        row = Row.of(case, way, chunk=runner.chunk, status=runner.status)
        if runner.call is None:
            rows.append(row)
            continue
        if way.method == BARE:
            seconds = bare[way.precision, way.compile, way.prepared][way.enlarged]
            rows.append(replace(row, pass_ms=tuple(1e3 * value for value in seconds)))
            continue
        assert runner.passes is not None
        pass_ms = tuple(1e3 * value / case.passes for value in runner.seconds)
        mine = _bound(bare.get((way.precision, way.compile, False)), runner.passes.enlarged)
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
    """Milliseconds per pass, round by round, of bare passes on as many enlarged images as the method showed."""
    if bare is None or False not in bare or (enlarged and True not in bare):
        return ()
    large = bare.get(True, bare[False])
    return tuple(1e3 * ((1 - enlarged) * a + enlarged * b) for a, b in zip(bare[False], large, strict=False))


def _shares(bound: tuple[float, ...], pass_ms: tuple[float, ...]) -> tuple[float, ...]:
    """The bound over the time, each with that of its own round."""
    return tuple(allowed / taken for allowed, taken in zip(bound, pass_ms, strict=False))


# Memory ---------------------------------------------------------------------------------------------------------------


def _with_memory(row: Row, plan: Plan, deadline: float, say: Say) -> Row:
    if not row.measured or time.monotonic() > deadline:
        return row
    peak, how = peak_memory(row.way, row.case, plan, row.chunk)
    say(f"  {row.case}: {row.way}: " + (f"{peak / 2**20:.3g} MiB at the peak" if peak is not None else how))
    return replace(row, peak_bytes=peak, peak_is=how)


def peak_memory(way: Way, case: Case, plan: Plan, chunk: int, timeout: float = 3600) -> tuple[int | None, str]:
    """Bytes that the second call of a fresh process takes at its peak beside the model, and what is counted."""
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
