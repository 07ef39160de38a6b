"""Run several processes of a service on one socket: restart those that die, and pass on requests to end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from ..runtime.processes import follow_parent, spawning
from .log import log
from .metrics_folder import FOLDER
from .server import end_signals

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a process that died is started again: at first, and when it keeps dying."""
_STEADY = 60.0  # seconds after which deaths are counted from the start

Work = Callable[[socket.socket, str, Callable[[], None]], int]
"""What a process does with the socket and its device; it says when it is ready, and returns an exit code."""


@dataclass
class _Worker:
    device: str
    process: Any = None
    pipe: Connection | None = None
    was_ready: bool = False
    began: float = 0.0
    start_at: float = 0.0
    pause: float = FIRST_PAUSE


def run_workers(work: Work, listener: socket.socket, devices: Sequence[str], drain_timeout: float) -> int:
    """Run a process for each device until a signal ends the service; a second signal ends them at once.

    Args:
        work: the work of a process, which must be picklable.
        listener: the socket from which all of them accept.
        devices: the device of each process.
        drain_timeout: seconds that the processes have to end.

    Returns:
        0 after a requested end; 2 if a process could not begin.
    """
    folder = tempfile.mkdtemp(prefix="fampe-metrics-")
    os.environ[FOLDER] = folder
    asked = _Asked()
    before = {number: signal.signal(number, asked) for number in end_signals()}
    workers = [_Worker(device) for device in devices]
    try:
        while True:
            if asked.count:
                return _end(workers, asked, drain_timeout)
            for worker in workers:
                if not _attend(worker, work, listener, folder):
                    return 2
            sentinels = [worker.process.sentinel for worker in workers if worker.process is not None]
            pipes = [worker.pipe for worker in workers if worker.pipe is not None]
            wait([*sentinels, *pipes], timeout=0.2)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for worker in workers:
            if worker.process is not None:
                worker.process.kill()
        os.environ.pop(FOLDER, None)
        shutil.rmtree(folder, ignore_errors=True)


class _Asked:
    """Counts the requests to end."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def _attend(worker: _Worker, work: Work, listener: socket.socket, folder: str) -> bool:
    """Start a missing process, and record whether it is ready or dead; return False if it could not begin."""
    now = time.monotonic()
    if worker.process is None:
        if now >= worker.start_at:
            _start(worker, work, listener)
        return True
    if worker.pipe is not None and worker.pipe.poll():
        try:
            worker.pipe.recv()
            worker.was_ready = True
        except (EOFError, OSError):
            pass
        worker.pipe.close()
        worker.pipe = None
    if worker.process.is_alive():
        return True
    code, pid = worker.process.exitcode, worker.process.pid
    worker.process = None
    _forget(pid, folder)
    if not worker.was_ready:
        log("process could not begin", "error", device=worker.device, exit_code=code)
        return False
    worker.pause = FIRST_PAUSE if now - worker.began > _STEADY else min(2 * worker.pause, LONGEST_PAUSE)
    worker.start_at = now + worker.pause
    log("process died", "error", device=worker.device, exit_code=code, again_in=worker.pause)
    return True


def _start(worker: _Worker, work: Work, listener: socket.socket) -> None:
    context = spawning()
    worker.pipe, theirs = context.Pipe(duplex=False)
    worker.process = context.Process(target=_work, args=(work, listener, worker.device, theirs), daemon=False)
    worker.process.start()
    worker.began = time.monotonic()
    theirs.close()
    log("process started", device=worker.device, pid=worker.process.pid)


def _work(work: Work, listener: socket.socket, device: str, pipe: Connection) -> None:
    # The parent passes on signals that reach every process of a terminal, once.
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    follow_parent()

    def ready() -> None:
        pipe.send(os.getpid())
        pipe.close()

    raise SystemExit(work(listener, device, ready))


def _forget(pid: int, folder: str) -> None:
    """Remove a dead process from the gauges of living ones."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


def _end(workers: Sequence[_Worker], asked: _Asked, drain_timeout: float) -> int:
    alive = [worker.process for worker in workers if worker.process is not None]
    for process in alive:
        process.terminate()
    until = time.monotonic() + drain_timeout + 10
    while any(process.is_alive() for process in alive) and time.monotonic() < until and asked.count < 2:
        time.sleep(0.05)
    for process in alive:
        process.kill()
        process.join()
    return 0
