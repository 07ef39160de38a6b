"""Run the tests that must pass before anything is timed: no speed without equivalence."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from .. import ROOT

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


def failure(checks: Sequence[Check], timeout: float) -> str | None:
    """Run the checks; return what went wrong, or None."""
    environment = dict(os.environ)
    for check in checks:
        try:
            done = subprocess.run(
                check.command, cwd=ROOT, env=environment, timeout=timeout, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            return f"the tests did not end within {timeout:.0f} s: {' '.join(check.command[1:])}"
        if done.returncode and not (check.may_be_empty and done.returncode == _NOTHING_COLLECTED):
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-30:])
            return f"exit status {done.returncode} from {' '.join(check.command[1:])}\n{tail}"
    return None
