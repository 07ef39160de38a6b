"""Run the checks that must pass for a time to count: no speed without equivalence."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fampe_fast.errors import kind_and_line
from fampe_fast.testing import load_primitives, registered

from .. import ROOT
from ..common.results import NOT_RUN

_NOTHING_COLLECTED = 5


@dataclass(frozen=True)
class Check:
    """A command that must succeed.

    Attributes:
        command: and its arguments.
        may_be_empty: pytest's finding no test is no failure.
    """

    command: tuple[str, ...]
    may_be_empty: bool = False


def checks(dry_run: bool) -> list[Check]:
    """List the kernels' equivalence tests and everything marked ``gpu``; in a dry run the known-answer vectors."""
    tests = ROOT / "tests"
    own = tests / "benchmarks"
    files = sorted({*tests.rglob("test_*kernel*.py"), *tests.rglob("test_*equivalence*.py")} - {*own.rglob("*")})
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--ignore={own}")
    if dry_run:
        return [Check((*pytest, *map(str, files), "-k", "philox"))]
    parallel = ("-n", "6") if importlib.util.find_spec("xdist") else ()
    rest = [f"--ignore={file}" for file in files]
    return [
        Check((*pytest, *parallel, *map(str, files), "-m", "not shared")),
        Check((*pytest, *parallel, str(tests), *rest, "-m", "gpu and not shared"), may_be_empty=True),
    ]


@dataclass(frozen=True)
class Failure:
    """What went wrong in a check.

    Attributes:
        text: for people; the first line is the short of it.
        tests: the names of the tests that failed; none where pytest did not come to name any.
        ended: whether they ran to their end; what had no time has not failed.
    """

    text: str
    tests: tuple[str, ...] = ()
    ended: bool = True


def concerned(failures: Sequence[Failure], primitives: Sequence[str]) -> tuple[str, ...]:
    """List the primitives that failing tests are about: those in a test's name, and all where there is none in it."""
    found = set()
    for failure in failures:
        for test in failure.tests or ("",):
            found.update([name for name in primitives if name in test] or primitives)
    return tuple(name for name in primitives if name in found)


def own_failure(primitive: str, device: torch.device, deadline: float, *, dry_run: bool) -> str:
    """Run the checks of the public suite that are about one kernel, in this process.

    Args:
        primitive: its name.
        device: where it runs.
        deadline: by ``time.monotonic``, after which no check is begun.
        dry_run: make the first check on its first case alone, for an interpreter.

    Returns:
        The check that failed first and why, or why not all were run; empty where all passed.
    """
    kernels = load_primitives("triton", device)
    trials = [
        (check, case)
        for check in registered()
        if primitive in check.primitives and set(check.primitives) <= set(kernels)
        for case in check.cases
        if not case.gpu
    ]
    for check, case in trials[:1] if dry_run else trials:
        if time.monotonic() > deadline:
            return NOT_RUN
        try:
            check.function(kernels, device, case)
        except Exception as error:  # a wrong result, or what a kernel that does not compile or launch raises
            return f"{check.name} at {case}: {kind_and_line(error)}"
    return ""


def failures(checks: Sequence[Check], timeout: float) -> list[Failure]:
    """Run the checks, and return what went wrong in each that failed."""
    found = []
    for check in checks:
        try:
            done = subprocess.run(check.command, cwd=ROOT, timeout=timeout, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            said = f"the tests did not end within {timeout:.0f} s: {' '.join(check.command[1:])}"
            found.append(Failure(said, ended=False))
            continue
        if done.returncode and not (check.may_be_empty and done.returncode == _NOTHING_COLLECTED):
            said = (done.stdout + done.stderr).splitlines()
            tests = [match[1] for line in said if (match := re.match(r"(?:FAILED|ERROR) (\S+)", line))]
            text = "\n".join([f"exit status {done.returncode} from {' '.join(check.command[1:])}", *said[-30:]])
            found.append(Failure(text, tuple(tests)))
    return found
