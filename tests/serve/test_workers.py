"""Several processes on one socket: one that dies is started again, and the end reaches all."""

from __future__ import annotations

import contextlib
import http.client
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from PIL import Image

from fampe_fast.serve.log import begin_log
from fampe_fast.serve.server import listen, serve
from fampe_fast.serve.service import Service
from fampe_fast.serve.settings import ServiceSettings
from fampe_fast.serve.workers import run_workers

from .running import Running, a_classifier, encoded, photo

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def work(listener: socket.socket, device: str, on_ready: Callable[[], None]) -> int:
    begin_log("info")
    if device == "broken":
        return 3
    service = Service(a_classifier(), {"fampe": {}}, ServiceSettings(name="small"), threads=1)
    return 0 if serve(service, listener, on_ready, supervised=True) else 2


def _run(devices: list[str], log: Path, port: Any) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin_log("info")
    listener = listen("127.0.0.1", 0)
    port.send(listener.getsockname()[1])
    raise SystemExit(run_workers(work, listener, devices, 30.0))


@contextlib.contextmanager
def supervised(folder: Path, devices: list[str]) -> Iterator[Running]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    receiving, sending = context.Pipe(duplex=False)
    log = folder / "service.log"
    process = context.Process(target=_run, args=(devices, log, sending))
    process.start()
    assert receiving.poll(60)
    found = Running(process, receiving.recv(), log)
    try:
        yield found
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started(service: Running, count: int) -> list[int]:
    service.wait_until(lambda: len(service.events("process started")) >= count)
    return [line["pid"] for line in service.events("process started")]


@pytest.mark.slow
def test_one_that_is_killed_is_started_again_and_the_other_answers_meanwhile(tmp_path: Path) -> None:
    with supervised(tmp_path, ["cpu", "cpu"]) as service:
        pids = started(service, 2)
        service.wait_until(lambda: len(service.events("ready")) == 2)
        assert [service.explain(photo(k)).code for k in range(6)] == [200] * 6
        assert service.metric("fampe_batch_images_sum") == 6  # of both processes, whichever is asked
        for pid in pids:  # Ctrl-C in a terminal reaches them, too: the parent alone decides
            os.kill(pid, signal.SIGINT)
        assert service.explain(photo()).code == 200
        assert not service.events("draining")
        os.kill(pids[0], signal.SIGKILL)
        codes = []
        end = time.monotonic() + 60
        while len(service.events("ready")) < 3:
            with contextlib.suppress(OSError, http.client.HTTPException):  # it may have accepted before it died
                codes.append(service.explain(photo()).code)
            assert time.monotonic() < end
        assert codes
        assert set(codes) == {200}
        assert service.events("process died")[0]["exit_code"] == -signal.SIGKILL
        pids = started(service, 3)[1:]
        assert service.metric("fampe_batch_images_sum") >= 7  # what a dead one has counted stays
        assert service.end() == 0
        assert not any(alive(pid) for pid in pids)
        with pytest.raises(OSError):
            service.socket()


@pytest.mark.slow
def test_one_whose_device_is_lost_makes_room(tmp_path: Path) -> None:
    with supervised(tmp_path, ["cpu", "cpu"]) as service:
        service.wait_until(lambda: len(service.events("ready")) == 2)
        assert service.explain(encoded(Image.new("RGB", (30, 30), "white"))).code == 503
        service.wait_until(lambda: len(service.events("ready")) == 3)
        assert service.events("process died")[0]["exit_code"] == 2
        assert [service.ask(path="/v2/health/live").code for _ in range(8)] == [200] * 8
        assert service.end() == 0


@pytest.mark.slow
def test_processes_end_with_their_parent_however_it_goes(tmp_path: Path) -> None:
    with supervised(tmp_path, ["cpu", "cpu"]) as service:
        pids = started(service, 2)
        service.wait_until(lambda: len(service.events("ready")) == 2)
        assert service.end(signal.SIGKILL) == -signal.SIGKILL
        service.wait_until(lambda: not any(alive(pid) for pid in pids))


@pytest.mark.slow
def test_what_cannot_begin_ends_all(tmp_path: Path) -> None:
    with supervised(tmp_path, ["cpu", "broken"]) as service:
        service.process.join(60)
        assert service.process.exitcode == 2
        assert service.events("process could not begin")[0]["exit_code"] == 3
        service.wait_until(lambda: not any(alive(line["pid"]) for line in service.events("process started")))
