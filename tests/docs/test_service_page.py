"""The requests that the page of the service shows, sent to a service, and its Python, which reads an answer."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .pages import DOCS, blocks, shell_lines
from .surroundings import write_files

PAGE = DOCS / "guides" / "service.md"


@pytest.mark.slow
def test_the_requests_of_the_page_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another port, and a model of five classes."""
    for package in ("starlette", "uvicorn", "prometheus_client"):
        pytest.importorskip(package)
    from ..serve.running import SIZE, running

    if not all(map(shutil.which, ("bash", "curl", "base64"))):
        pytest.skip("bash, curl or base64 is not here")
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks(PAGE, "bash") for line in shell_lines(block)]
    lines = [line for line in lines if line.startswith(("URL=", "JPEG=", "curl ", "echo "))]  # installs nothing
    assert sum("curl" in line for line in lines) >= 7
    with running(tmp_path, name="mobilenetv2_100") as service:
        script = "\n".join(["set -eu", *lines]).replace("localhost:8080", f"127.0.0.1:{service.port}")
        script = script.replace("target=46", "target=4").replace('"target": 46', '"target": 4')
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "no_proxy": "*"}
        done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["predictions"][0]["top"]) == 5
    record = json.loads(Path("answer.json").read_text())
    assert "error" not in record
    assert Image.open("overlay.png").format == "PNG"
    assert np.load("map.npy").shape[1:] == (SIZE, SIZE)

    names: dict[str, object] = {}
    (block,) = blocks(PAGE, "python")
    exec(compile("\n" * (block.line - 1) + block.text, block.page, "exec", dont_inherit=True), names)
    attribution = names["attribution"]
    assert isinstance(attribution, np.ndarray)
    assert attribution.shape[1:] == (SIZE, SIZE)
    assert attribution.any()
