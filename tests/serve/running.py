"""A service that runs in a process of its own, and a client that speaks HTTP to it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fampe_fast.models.classifier import Classifier
from fampe_fast.models.transforms import PixelTransform, ResizeAndCrop
from fampe_fast.serve.log import begin_log
from fampe_fast.serve.server import listen, serve
from fampe_fast.serve.service import Service
from fampe_fast.serve.settings import ServiceSettings

SIZE = 24
PATH = "/v1/models/small:explain"
JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}
TIMEOUT = 60.0
HELD = "TESTED_MODEL_IS_HELD_BY"
"""Names a file in the service's environment, which the model's fingerprint does not look at."""


class Small(nn.Module):
    """A smooth model of five classes that takes as long as it is told, and fails where it is told.

    White images lose the device; from ``most`` images on the memory is full. It waits while ``HELD`` names a file.
    """

    def __init__(self, delay: float = 0.0, most: int = 10**9) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU())
            self.head = nn.Linear(16, 5)
            nn.init.normal_(self.head.weight, std=6)
        self.delay, self.most = delay, most
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        if len(pixels) > self.most:
            raise torch.OutOfMemoryError(f"no room for {len(pixels)}")
        if bool((pixels == 1).flatten(1).all(1).any()):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        time.sleep(self.delay)
        while os.path.exists(held := os.environ.get(HELD, "")):
            waits_in(Path(held)).touch()
            time.sleep(0.005)
        return self.head(self.features(pixels).mean((2, 3)))


def a_classifier(delay: float = 0.0, most: int = 10**9) -> Classifier:
    transform = PixelTransform(ResizeAndCrop((SIZE, SIZE)))
    names = ["ant", "bee", "cat", "dog", "eel"]
    model = Small(delay, most)
    return Classifier(model, name="a small/model", input_size=SIZE, class_names=names, transform=transform).eval()


METHODS: dict[str, dict[str, Any]] = {"fampe": {}, "centre_prior": {}, "attexplore": {"steps": 2, "samples": 2}}


class Answer(NamedTuple):
    code: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return str(self.json["error"])


class Running:
    """A service in a process."""

    def __init__(self, process: BaseProcess, port: int, log: Path) -> None:
        self.process, self.port, self.log = process, port, log
        self._held = held_by(log)

    def hold(self) -> None:
        """Let no pass of the model end until ``release``."""
        self._held.touch()

    @property
    def holding(self) -> bool:
        """Whether a pass waits for ``release``."""
        return waits_in(self._held).exists()

    def release(self) -> None:
        self._held.unlink()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)

    def socket(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)

    def ask(
        self,
        method: str = "GET",
        path: str = "/",
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Answer:
        used = connection or self.connect()
        used.request(method, path, body, headers or {})
        found = used.getresponse()
        answer = Answer(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
        if connection is None:
            used.close()
        return answer

    def explain(self, image: bytes, query: str = "", accept: str | None = None, **options: Any) -> Answer:
        headers = {**PNG, **({} if accept is None else {"Accept": accept})}
        return self.ask("POST", PATH + (f"?{query}" if query else ""), image, headers, **options)

    def metric(self, name: str) -> float:
        """Sum a metric's samples."""
        lines = self.ask(path="/metrics").body.decode().splitlines()
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def wait_until(self, true: Callable[[], bool], seconds: float = TIMEOUT) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM, seconds: float = TIMEOUT) -> int:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        self.process.join(seconds)
        code = self.process.exitcode
        assert code is not None, self.log.read_text()
        return code

    def events(self, name: str) -> list[dict[str, Any]]:
        written = self.log.read_text()
        whole = written[: written.rfind("\n") + 1]  # of a line that is being written a part may be seen
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if line["event"] == name]


def held_by(log: Path) -> Path:
    """Name the file that holds the model of the service with this log."""
    return log.with_suffix(".held")


def waits_in(held: Path) -> Path:
    """Name the file by which a held model says that a pass has come."""
    return held.with_suffix(".waits")


@contextlib.contextmanager
def running(
    folder: Path,
    *,
    delay: float = 0.0,
    most: int = 10**9,
    methods: dict[str, dict[str, Any]] | None = None,
    **limits: Any,
) -> Iterator[Running]:
    """Run a service on a free port, and kill it in the end where it still runs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    receiving, sending = context.Pipe(duplex=False)
    log = folder / f"service-{time.monotonic_ns()}.log"
    settings = ServiceSettings(**{"name": "small", "read_timeout": 5.0, **limits})
    process = context.Process(
        target=_run, args=(settings, delay, most, METHODS if methods is None else methods, sending, log), daemon=True
    )
    process.start()
    assert receiving.poll(TIMEOUT)
    found = Running(process, receiving.recv(), log)
    try:
        found.wait_until(lambda: bool(found.events("ready")) or not process.is_alive())
        assert process.is_alive(), log.read_text()
        yield found
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def _run(
    settings: ServiceSettings, delay: float, most: int, methods: dict[str, dict[str, Any]], port: Any, log: Path
) -> None:
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    torch.set_num_threads(1)
    begin_log("info")
    os.environ[HELD] = str(held_by(log))
    listener = listen("127.0.0.1", 0)
    service = Service(a_classifier(delay, most), methods, settings, threads=1)
    port.send(listener.getsockname()[1])
    raise SystemExit(0 if serve(service, listener) else 2)


def photo(seed: int = 0, size: tuple[int, int] = (40, 30), form: str = "PNG") -> bytes:
    """Draw an image of smooth noise, as the bytes of a file."""
    coarse = np.random.default_rng(seed).integers(0, 200, (6, 6, 3), dtype=np.uint8)
    return encoded(Image.fromarray(coarse).resize(size), form)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def instances(*images: bytes, parameters: dict[str, Any] | None = None, **values: Any) -> bytes:
    """Write a request in KServe's form."""
    found = [{"image": {"b64": base64.b64encode(image).decode()}, **values} for image in images]
    return json.dumps({"instances": found, **({} if parameters is None else {"parameters": parameters})}).encode()
