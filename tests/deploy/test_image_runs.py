"""Run what the image would run: its entry point, with its variables and nothing else to write to, and its check."""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from .files import ROOT, exec_form, health_words, image_environment, loaded, only

for _package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(_package)

# Python reads this file before anything else; it takes note of every file or folder that is made or written to.
WATCH = """
import os, sys

_writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_notes = os.open(os.environ["NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def _watch(event, given):
    if event == "os.mkdir" or event == "open" and isinstance(given[0], (str, bytes)) and given[2] & _writes:
        os.write(_notes, os.path.abspath(os.fsdecode(given[0])).encode() + b"\\n")

sys.addaudithook(_watch)
"""


class Container:
    """The image's programs and variables, with folders of the test in place of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = str(port)
        self.cache, self.work, self.home = folder / "cache", folder / "work", folder / "nonexistent"
        self.notes = folder / "notes"
        programs, watch = folder / "bin", folder / "watch"
        for path in (self.cache, self.work, programs, watch):
            path.mkdir()
        self.work.chmod(0o555)
        (watch / "sitecustomize.py").write_text(WATCH)
        for name, words in (("python", ""), ("fampe-fast", "-m fampe_fast")):
            (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
            (programs / name).chmod(0o755)
        own = {name: value.replace(only("VOLUME"), str(self.cache)) for name, value in image_environment().items()}
        self.environment = {
            **own,
            "PATH": f"{programs}:/usr/bin:/bin",
            "HOME": str(self.home),
            "PYTHONPATH": f"{watch}:{ROOT}",
            "NOTES": str(self.notes),
            "OMP_NUM_THREADS": "1",
            "http_proxy": "http://127.0.0.1:9",  # where nobody answers
        }

    def words(self, given: list[str]) -> list[str]:
        return [word.replace(only("EXPOSE"), self.port) for word in given]

    def passes(self, check: list[str]) -> bool:
        """Whether a health check passes."""
        words = self.words(check)
        return subprocess.run(words, env=self.environment, stderr=subprocess.DEVNULL, check=False).returncode == 0


@pytest.fixture
def image(tmp_path: Path) -> Container:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return Container(tmp_path, free.getsockname()[1])


@pytest.mark.slow
def test_the_entry_point_serves_is_healthy_ends_in_order_and_writes_into_the_volume_alone(
    image: Container, model_file: Path
) -> None:
    ready = loaded("compose.yaml")["services"]["explain"]["healthcheck"]["test"][1:]
    assert not image.passes(health_words())
    words = image.words([*exec_form(only("ENTRYPOINT")), *exec_form(only("CMD"))])
    own = ["--model", str(model_file), "--trust-model", "--input-size", "96", "--views", "0", "--steps", "2"]
    server = subprocess.Popen(
        [*words, *own, "--name", "small", "--device", "cpu"],
        env=image.environment,
        cwd=image.work,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 120
        while not image.passes(ready) and server.poll() is None and time.monotonic() < until:
            time.sleep(0.2)
        healthy = image.passes(health_words())
        code = ask(image.port) if healthy else None
        server.send_signal(getattr(signal, only("STOPSIGNAL")))
        _, said = server.communicate(timeout=60)
    finally:
        server.kill()
    assert healthy, said
    assert code == 200, said
    assert server.returncode == 0, said
    assert not list(image.work.iterdir())
    assert not image.home.exists()
    written = image.notes.read_text().splitlines()
    assert [path for path in written if not path.startswith((str(image.cache), "/dev/"))] == []


def ask(port: str) -> int:
    """Have an image explained and drawn; gives the code of the answer."""
    data = io.BytesIO()
    Image.new("RGB", (96, 96), "teal").save(data, "PNG")
    headers = {"Content-Type": "image/png", "Accept": "image/png"}
    url = f"http://127.0.0.1:{port}/v1/models/small:explain"
    request = urllib.request.Request(url, data.getvalue(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    code: int = opener.open(request, timeout=60).status
    return code
