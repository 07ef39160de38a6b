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
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the package triton is not installed")
ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU itself"),
    pytest.mark.skipif(
        tuple(map(int, version("triton").split(".")[:2])) < (3, 6), reason="older launchers are called otherwise"
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("triton.backends.nvidia") is None, reason="this triton does not compile for NVIDIA"
    ),
]

AT_LEAST = {
    "kernels/test_kernels.py": 30,
    "test_backends_end_to_end.py": 4,  # without the photographs
    "kernels/test_memory_traffic.py": 29,
    "kernels/test_step_traffic.py": 1,
    "kernels/test_large_offsets.py": 14,
    "testing/test_equivalence.py": 160,
}
"""Tests that must have run, and not been skipped."""


@pytest.mark.parametrize(
    ("tests", "machine"),
    [
        ("kernels/test_kernels.py", "sm_90"),
        ("test_backends_end_to_end.py", "sm_90"),
        ("kernels/test_memory_traffic.py", "sm_90"),
        ("kernels/test_step_traffic.py", "sm_90"),
        ("kernels/test_large_offsets.py", "sm_90"),
        ("testing/test_equivalence.py", "sm_90"),
        ("testing/test_equivalence.py", "sm_80,-1"),
        ("testing/test_equivalence.py", "sm_100,1"),
    ],
)
def test_compiled_kernels_pass(tests: str, machine: str) -> None:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "FAMPE_FAST_PTX": machine,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.ptx.plugin", "-p", "no:xdist", f"tests/{tests}"]
    if tests == "testing/test_equivalence.py":
        command += ["--fampe-backend", "triton"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout[-2000:]
    assert int(passed[1]) >= AT_LEAST[tests]
