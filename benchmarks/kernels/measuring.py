"""Time each primitive of the table at each size by each provider, after a check against the reference."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ROOT
from ..common.command import Say
from ..common.machine import Build
from ..common.results import NOT_RUN, KernelRow, status_of
from ..common.timing import Call, Timer, compare, peak_bytes
from .floors import Ceilings, LaunchWork, counts_instructions, floor
from .primitives import Arguments, Primitive, RealForm
from .sizes import Size

PROVIDERS = ("kernel", "eager", "compiled")
TOLERANCE = 1e-3
"""Largest relative error, ||a - b|| / ||b||, of a result that is timed. The tests are far stricter; this one is there
because they are smaller than what is timed. (Where a gradient is nearly zero its sign may differ, and a pixel with it.)
"""

Case = tuple[Primitive, Size]


@dataclass(frozen=True)
class Bench:
    """A machine as a measurement needs it."""

    device: torch.device
    timer: Timer
    build: Build
    ceilings: Ceilings
    seconds: float
    """Of repetitions, per call."""


def cases(primitives: Sequence[Primitive], sizes: Sequence[Size]) -> list[Case]:
    """List sizes in their order, all primitives of one size together; sizes that are one to a primitive once."""
    found: dict[tuple[str, Size], Case] = {}
    for size in sizes:
        for entry in primitives:
            fitted = entry.fitted(size)
            found.setdefault((entry.name, fitted), (entry, fitted))
    return list(found.values())


def counted_work(wanted: Sequence[Case], device: torch.device, say: Say) -> dict[tuple[str, Size], list[LaunchWork]]:
    """Count the instructions of each case's launches in sm_90 machine code, by ``compile_kernels.py``.

    In a process of its own: there Triton compiles for a target, here for the GPU that is present (or not at all).
    """
    if not counts_instructions(device):
        say("instructions are counted for compute capability 9.0 only: the floors are those of the memory")
        return {}
    requests = json.dumps([{"primitive": entry.name, "size": asdict(size)} for entry, size in wanted])
    command = [sys.executable, "-m", "benchmarks.kernels.compile_kernels", "--work"]
    done = subprocess.run(command, input=requests, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        say(f"no instruction counts, the floors are those of the memory: {done.stderr.strip()[-300:]}")
        return {}
    counted = {}
    for (entry, size), answer in zip(wanted, json.loads(done.stdout), strict=True):
        if answer["reason"]:
            say(f"{entry.name} {size}: no instruction count, {answer['reason']}")
        counted[entry.name, size] = [LaunchWork(**work) for work in answer["work"]]
    return counted


def measure_kernels(
    wanted: Sequence[Case],
    providers: Sequence[str],
    work: dict[tuple[str, Size], list[LaunchWork]],
    bench: Bench,
    deadline: float,
    say: Say,
) -> Iterator[KernelRow]:
    """Measure case by case; after the deadline (``time.monotonic``) yield rows that say so."""
    previous = None
    for entry, size in wanted:
        if time.monotonic() > deadline:
            yield from (KernelRow(entry.name, size, provider, bench.build, NOT_RUN) for provider in providers)
            continue
        if (size.height, size.width, size.images) != previous:
            torch._dynamo.reset()  # each size gets code of its own, the compiler's best; and no limit is met
            previous = (size.height, size.width, size.images)
        say(f"{entry.name} {size}")
        yield from measure_case(entry, size, providers, work.get((entry.name, size), []), bench)


def measure_case(
    entry: Primitive, size: Size, providers: Sequence[str], work: Sequence[LaunchWork], bench: Bench
) -> list[KernelRow]:
    """Measure one primitive at one size."""
    statuses: dict[str, str] = {}
    calls: dict[str, tuple[str, Call]] = {}  # by label: provider and call

    @contextmanager
    def guarded(provider: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            statuses[provider] = status_of(error)

    with torch.no_grad():
        try:
            torch.manual_seed(0)
            arguments = entry.arguments(size, bench.device)
        except torch.OutOfMemoryError as error:
            return [KernelRow(entry.name, size, provider, bench.build, status_of(error)) for provider in providers]
        expected: list[Tensor] | None = None
        with suppress(torch.OutOfMemoryError):  # the kernel, which needs less, is timed nevertheless, and marked
            expected = tensors(entry.result(entry.reference(), arguments))
        for provider in providers:
            for label, raw, finished in _calls(provider, entry, size, arguments):
                with guarded(provider):
                    found = tensors(finished())
                    error = 0.0 if expected is None else relative_error(found, expected)
                    if not error <= TOLERANCE:
                        raise ArithmeticError(f"relative error {error:.2g} against the reference")
                    del found
                    calls[f"{provider} {label}"] = (provider, raw)
        compared = expected is not None
        del expected
        peaks = {}
        for label, (provider, call) in calls.items():
            with guarded(provider):
                peaks[label] = peak_bytes(call, bench.device)
        timed = {label: calls[label][1] for label in peaks}
        timings = compare(bench.timer, timed, bench.seconds, lambda label: guarded(calls[label][0]))
    rows = []
    for provider in providers:
        labels = [label for label in timings if calls[label][0] == provider]
        if not labels:
            status = statuses.get(provider, "failed: no result")
            rows.append(KernelRow(entry.name, size, provider, bench.build, status))
            continue
        best = min(labels, key=lambda label: timings[label].device.median)
        timing = timings[best]
        least = floor(entry.bytes(size), work, bench.ceilings)
        rows.append(
            KernelRow(
                entry.name,
                size,
                provider,
                bench.build,
                form=best.removeprefix(provider).strip(),
                timer=bench.timer.name,
                median_us=timing.device.median,
                lower_us=timing.device.lower,
                upper_us=timing.device.upper,
                repetitions=timing.repetitions,
                host_us=timing.host,
                bytes=entry.bytes(size),
                bandwidth_share=entry.bytes(size) / bench.ceilings.memory * 1e6 / timing.device.median,
                floor_us=least.us,
                floor_by=least.by,
                floor_share=least.us / timing.device.median,
                peak_bytes=peaks[best],
                verified=compared,
            )
        )
    return rows


def _calls(provider: str, entry: Primitive, size: Size, arguments: Arguments) -> Iterator[tuple[str, Call, Call]]:
    """Yield a label, the call to time, and the call whose result has the reference's form."""
    if provider == "compiled":
        for form in entry.forms:
            yield form.label, *_compiled_calls(form, entry, size, arguments)
        return
    function = entry.kernel() if provider == "kernel" else entry.reference()
    yield "", lambda: function(**arguments), lambda: entry.result(function, arguments)


def _compiled_calls(form: RealForm, entry: Primitive, size: Size, arguments: Arguments) -> tuple[Call, Call]:
    prepared = form.prepare(arguments, size)
    compiled = torch.compile(form.function, fullgraph=True, dynamic=False)

    def finished() -> Any:
        return form.finish(compiled(*form.prepare(entry.fresh(arguments), size)), size)

    return lambda: compiled(*prepared), finished


def tensors(result: Any) -> list[Tensor]:
    """List the floating-point tensors of a result, complex ones as pairs."""
    flat = result if isinstance(result, (tuple, list)) else [result]
    return [torch.view_as_real(t) if t.is_complex() else t for t in flat]


def relative_error(got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest ``||a - b|| / ||b||`` over the tensors; NaN if any result is."""
    worst = 0.0
    for a, b in zip(got, expected, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"shape {tuple(a.shape)} where the reference gives {tuple(b.shape)}")
        difference = float(torch.linalg.vector_norm(a - b))
        norm = float(torch.linalg.vector_norm(b))
        error = difference / norm if norm else difference
        worst = error if error > worst or error != error else worst
    return worst
