"""Make the shards of a plan on this machine: in this process for one device, in a process each for several."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, Literal, NamedTuple

import torch

from ..errors import kind_and_line
from ..models.classifier import Classifier
from ..runtime.lost_device import is_of_device
from ..runtime.processes import obey_parent_alone, spawning
from . import attempts
from .decoding import usual_processes
from .manifest import write_manifest
from .plan import Plan, read_back
from .shards import finished_shards, shard_metadata
from .storage import Storage
from .worker import ALONE_FROM, ShardReport, Worker

DEATHS = 3
"""Number of deaths after which a device's process is given up."""


Retried = bool | Literal["all"]
"""The errors whose shards are made again: none, those that may be temporary, or all."""


class Progress(NamedTuple):
    """Progress of a run; all numbers are of this run, without earlier results."""

    shards: int
    total_shards: int
    images: int
    total_images: int
    errors: int
    """Rows without a map."""
    seconds: float
    images_per_second: float
    seconds_left: float
    busy: float
    """Share of the time in which the devices explained, in [0, 1]."""


class RunReport(NamedTuple):
    """The result of a run."""

    shards: int
    rows: int
    errors: int
    """Rows without a map."""
    transient: int
    """Rows of these whose errors may be temporary, see ``retry_errors``."""
    seconds: float
    busy: float
    """Share of the time in which the devices explained, in [0, 1]."""
    stopped: bool
    """Whether the run was stopped before it was finished."""
    missing: int
    """Shards of the whole plan that are not finished."""
    given_up: tuple[int, ...] = ()
    """Shards of these that ended every process that tried to make them."""

    @property
    def images(self) -> int:
        """Images that were explained."""
        return self.rows - self.errors


def run_local(
    dest: Storage,
    *,
    devices: Sequence[str],
    part: tuple[int, int] = (0, 1),
    shards: Sequence[int] | None = None,
    workers: int | None = None,
    retry_errors: Retried = False,
    trust_model: bool = False,
    classifier: Classifier | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_stop: Callable[[], None] | None = None,
) -> RunReport:
    """Make the shards that are not finished yet.

    The first request to stop (Ctrl-C, SIGTERM, SIGHUP) lets every device finish its shard; the second one has its usual
    effect. In both cases, and also after a ``kill -9``, stored shards are complete and the next run continues.

    Args:
        dest: the plan's storage.
        devices: devices of the plan's kind, with a process each if there are several; a CPU may be repeated.
        part: (I, N): this is number I, from 0, of N parallel runs, and makes the shards I, I + N, ...
        shards: the shards to make, in this order; None for the part's.
        workers: number of decoding processes per device; 0 decodes in the device's process, None chooses.
        retry_errors: make shards again whose errors may be temporary; "all": those with any errors.
        trust_model: load the model even if it is a program.
        classifier: the plan's model, if it is already loaded; only for one device.
        on_progress: called after each shard.
        on_stop: called at the first request to stop.

    Raises:
        ValueError: an invalid part, no device, or arguments that ``Worker`` refuses.
        OSError: the results cannot be stored; earlier shards are complete.
        RuntimeError: a device failed.
    """
    index, count = part
    if not 0 <= index < count:
        raise ValueError(f"the part must be I of N with I from 0 to N - 1, got {index} of {count}")
    if not devices:
        raise ValueError("there are no devices; expected at least one")
    plan = read_back(dest)
    dest.remove_leftovers()
    todo = shards_to_do(dest, plan, range(index, plan.shards, count) if shards is None else shards, retry_errors)
    tally = Tally(plan, todo, len(devices))
    with stopping(on_stop) as stop:
        if len(devices) == 1:
            made = _here(dest, devices[0], todo, workers, trust_model, classifier, stop)
        else:
            made = _on_several(dest, devices, todo, workers, trust_model, stop)
        tally.follow(made, on_progress)
        stopped = stop.is_set() and tally.left > 0
    return concluded(dest, plan, tally, stopped)


def concluded(dest: Storage, plan: Plan, tally: Tally, stopped: bool) -> RunReport:
    """Write the manifest if all shards are finished, and report the run."""
    missing = plan.shards - len(finished_shards(dest) & set(range(plan.shards)))
    if not missing:
        for shard in attempts.unfinished(dest):  # marks of processes that died after finishing a shard
            attempts.clear(dest, shard)
        write_manifest(dest, plan)
    return tally.report(stopped, missing)


def shards_to_do(dest: Storage, plan: Plan, shards: Sequence[int], retry_errors: Retried = False) -> list[int]:
    """List the shards to make, in order; shards that ended processes often come last.

    Args:
        dest: the plan's storage.
        plan: the plan.
        shards: the candidates.
        retry_errors: include finished shards whose errors may be temporary; "all": those with any errors.

    Raises:
        IndexError: a shard that does not exist.
    """
    for shard in shards:
        plan.rows_of(shard)
    done = finished_shards(dest)
    if retry_errors:
        counted = "errors" if retry_errors == "all" else "transient"
        done -= {shard for shard in done.intersection(shards) if shard_metadata(dest, shard)[counted]}
    begun = attempts.unfinished(dest)
    missing = [shard for shard in shards if shard not in done]
    return sorted(missing, key=lambda shard: begun.get(shard, 0) > ALONE_FROM)


class Tally:
    """Counts the finished work."""

    def __init__(self, plan: Plan, todo: Sequence[int], devices: int) -> None:
        self._began = time.monotonic()
        self._shards, self._devices = len(todo), devices
        self._images = sum(len(plan.rows_of(shard)) for shard in todo)
        self._reports = self._rows = self._errors = self._transient = 0
        self._explaining = self._taken = 0.0

    @property
    def left(self) -> int:
        """Number of shards left."""
        return self._shards - self._reports

    def follow(
        self, reports: Generator[ShardReport, None, None], on_progress: Callable[[Progress], None] | None
    ) -> None:
        """Count every reported shard, report progress, and close the source of the reports."""
        with closing(reports):
            for report in reports:
                progress = self.add(report)
                if on_progress is not None:
                    on_progress(progress)

    def add(self, report: ShardReport) -> Progress:
        """Count a shard, and report progress."""
        self._reports += 1
        self._rows += report.rows
        self._errors += report.errors
        self._transient += report.transient
        self._explaining += report.explaining
        self._taken += report.seconds
        seconds = time.monotonic() - self._began
        # Not by this clock, as the rate does not include loading the model.
        rate = self._rows * min(self._devices, self._reports) / self._taken if self._taken else 0.0
        left = (self._images - self._rows) / rate if rate else 0.0
        return Progress(
            self._reports, self._shards, self._rows, self._images, self._errors, seconds, rate, left, self._busy
        )

    @property
    def _busy(self) -> float:
        return self._explaining / self._taken if self._taken else 0.0

    def report(self, stopped: bool, missing: int) -> RunReport:
        """Make the final report."""
        seconds = time.monotonic() - self._began
        return RunReport(
            self._reports, self._rows, self._errors, self._transient, seconds, self._busy, stopped, missing
        )


@contextmanager
def stopping(on_stop: Callable[[], None] | None) -> Iterator[threading.Event]:
    """Record the first request to stop, and pass the second one to the earlier handler."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield asked
        return
    before: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def note(number: int, frame: FrameType | None) -> None:
        asked.set()
        restore()
        if on_stop is not None:
            on_stop()

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()


def _here(
    dest: Storage,
    device: str,
    shards: Sequence[int],
    workers: int | None,
    trust_model: bool,
    classifier: Classifier | None,
    stop: threading.Event,
) -> Generator[ShardReport, None, None]:
    if not shards:
        return
    worker = Worker(dest, device=device, classifier=classifier, processes=workers, trust_model=trust_model)
    try:
        yield from worker.work(shards, stop.is_set)
    finally:
        worker.close()


class _Device:
    """The process of a device, and its remaining shards."""

    def __init__(self, arguments: tuple[Any, ...], device: str, shards: list[int]) -> None:
        self.device, self.left, self.deaths, self.failure = device, shards, 0, ""
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        context = spawning()
        self.pipe, theirs = context.Pipe(duplex=False)
        # Not a daemon, as those cannot have child processes; it ends with this process anyway.
        self.process = context.Process(
            target=_serve_device, args=(*self._arguments, self.device, list(self.left), theirs), daemon=False
        )
        self.process.start()
        theirs.close()

    def receive(self) -> ShardReport | None:
        """Receive a report; None if the process has ended, with the reason in ``failure``."""
        try:
            found = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            if code:
                self.failure, self.deaths = f"its process died, exit code {code}", self.deaths + 1
            return None
        if isinstance(found, ShardReport):
            self.left.remove(found.shard)
            return found
        self.failure, self.deaths = str(found), DEATHS
        return None


def _on_several(
    dest: Storage,
    devices: Sequence[str],
    shards: Sequence[int],
    workers: int | None,
    trust_model: bool,
    stop: threading.Event,
) -> Generator[ShardReport, None, None]:
    """Distribute the shards to a process per device; a process that dies is restarted, up to ``DEATHS`` times."""
    asked = spawning().Event()
    arguments = dest, len(devices), workers, trust_model, asked
    share = {k: list(shards[k :: len(devices)]) for k in range(len(devices))}
    running = [_Device(arguments, device, share[k]) for k, device in enumerate(devices) if share[k]]
    failures = []
    try:
        while running:
            if stop.is_set():
                asked.set()
            ready = wait([one.pipe for one in running], timeout=0.5)
            for one in [one for one in running if one.pipe in ready]:
                report = one.receive()
                if report is not None:
                    yield report
                elif one.failure and one.left and one.deaths < DEATHS and not asked.is_set():
                    one.failure = ""
                    one.start()
                else:
                    running.remove(one)
                    if one.failure:
                        failures.append(f"{one.device}: {one.failure}")
                        asked.set()  # an error such as a full disk ends all
    finally:
        for one in running:
            one.process.kill()
    if failures:
        raise RuntimeError("; ".join(failures))


def _serve_device(
    dest: Storage,
    devices: int,
    workers: int | None,
    trust_model: bool,
    stop: Any,
    device: str,
    shards: list[int],
    pipe: Connection,
) -> None:
    obey_parent_alone()
    try:
        if torch.device(device).type == "cuda":
            torch.cuda.set_device(device)
        count = usual_processes(device, devices) if workers is None else workers
        worker = Worker(dest, device=device, processes=count, trust_model=trust_model)
        try:
            for report in worker.work(shards, stop.is_set):
                pipe.send(report)
        finally:
            worker.close()
    except Exception as error:
        if is_of_device(error):  # which another process may still use
            os._exit(1)
        pipe.send(kind_and_line(error))
