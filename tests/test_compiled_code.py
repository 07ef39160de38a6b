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
HERE = Path(__file__).parent
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
    "test_kernels.py": 30,
    "test_backends_end_to_end.py": 4,  # without the photographs
    "test_memory_traffic.py": 14,
    "test_large_offsets.py": 12,
    "test_equivalence.py": 140,
}
"""Tests that must have run, and not been skipped."""


@pytest.mark.parametrize(
    ("tests", "machine"),
    [
        ("test_kernels.py", "sm_90"),
        ("test_backends_end_to_end.py", "sm_90"),
        ("test_memory_traffic.py", "sm_90"),
        ("test_large_offsets.py", "sm_90"),
        ("test_equivalence.py", "sm_90"),
        ("test_equivalence.py", "sm_80,-1"),
        ("test_equivalence.py", "sm_100,1"),
    ],
)
def test_compiled_kernels_pass(tests: str, machine: str) -> None:
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "FAMPE_FAST_PTX": machine,
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "ptx.plugin", "-p", "no:xdist", str(HERE / tests)]
    if tests == "test_equivalence.py":
        command += ["--fampe-backend", "triton"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, cwd=HERE.parent)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout[-2000:]
    assert int(passed[1]) >= AT_LEAST[tests]
