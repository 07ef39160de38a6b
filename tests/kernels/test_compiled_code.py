"""What Triton's compiler made of the kernels passes the tests that the kernels pass: without a GPU, on ``ptx.machine``.

Each of these tests runs others in a process of its own, since a process either interprets kernels or compiles them.
``sm_90,1``: inexact instructions return the highest result that is permitted.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="the package triton is not installed")
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU itself"),
    pytest.mark.skipif(
        importlib.util.find_spec("triton.backends.nvidia") is None, reason="this triton does not compile for NVIDIA"
    ),
]

# Three versions of Triton run in CI, each as another GPU and with other permitted roundings.
VERSION = ".".join(triton.__version__.split(".")[:2])
MACHINE = {"3.3": "sm_80,-1", "3.6": "sm_90"}.get(VERSION, "sm_100,1")

SUITE = {"testing/test_equivalence.py": 160}
LARGE = {"testing/test_equivalence.py": 50}
OTHERS = {
    "kernels/test_kernels.py": 30,
    "test_backends_end_to_end.py": 4,
    "kernels/test_memory_traffic.py": 29,
    "kernels/test_step_traffic.py": 1,
    "kernels/test_large_offsets.py": 14,
}
"""Tests that must have run, and not been skipped."""
SMALL_CASES = ["--fampe-backend", "triton"]
# Large cases whose code is another one: that of band_* and diversify is the same at every size, and takes longest. Nor
# are runs compared with each other, and 15 taps compile for a minute.
CHOSEN = "not (band_ or diversify or depends or repeats or taps15)"
LARGE_CASES = [*SMALL_CASES, "--fampe-large", "-m", "gpu", "-k", CHOSEN]


@pytest.mark.parametrize(
    ("least", "machine", "options"),
    [
        pytest.param(OTHERS, "sm_90", ["-k", "not photographs"], id="kernels-sm_90"),
        pytest.param(LARGE, "sm_90", LARGE_CASES, id="large-sm_90"),
        pytest.param(SUITE, MACHINE, SMALL_CASES, id=f"suite-{MACHINE}"),
    ],
)
def test_compiled_kernels_pass(least: dict[str, int], machine: str, options: list[str]) -> None:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "FAMPE_FAST_PTX": machine,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", "pytest", "-v", "-p", "tests.ptx.plugin", "-p", "no:xdist"]
    command += [f"tests/{file}" for file in least] + options
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    for file, count in least.items():
        assert len(re.findall(rf"^tests/{re.escape(file)}::.* PASSED", run.stdout, re.MULTILINE)) >= count, file
