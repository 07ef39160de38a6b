"""Extend pytest (``-p fampe_fast.testing.plugin``) by ``--fampe-backend``, ``-device``, ``-large`` and fixtures.

A test that takes ``fampe_trial`` runs once for every check, case and backend; one that takes ``fampe_primitives``
gets a backend's functions, once for every backend, and ``fampe_device`` says where its tensors belong.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from ..errors import BackendUnavailableError
from . import registered
from .primitives import Primitives, device_for, load_primitives, refused_backends, runnable_backends
from .registry import Check
from .shapes import Case


class Target(NamedTuple):
    """A backend under test."""

    primitives: Primitives
    device: torch.device


class Trial(NamedTuple):
    """One check of one backend on one case."""

    target: Target
    check: Check
    case: Case

    def run(self) -> None:
        """Run the check; AssertionError if the backend is wrong."""
        self.check.function(self.target.primitives, self.target.device, self.case)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("fampe_fast", "backends of fampe_fast under test")
    group.addoption(
        "--fampe-backend",
        action="append",
        metavar="NAME",
        help="backend under test: triton, compiled, reference, or a name given to fampe_fast.register_backend; "
        "repeat it or separate names by commas (default: the package's own that can run here)",
    )
    group.addoption(
        "--fampe-device",
        metavar="DEVICE",
        help="where to test them, e.g. cpu, cuda, cuda:1 (default: a GPU where there is one that the backend takes)",
    )
    group.addoption(
        "--fampe-large",
        action="store_true",
        help="run the large cases on a CPU too, for a backend that does not take minutes there",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a backend that is unknown or cannot run, before anything is collected."""
    config.addinivalue_line("markers", "gpu: needs a GPU")
    if config.getoption("fampe_backend", None):
        _devices(config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Report the tested backends and devices, and the primitives for which they use the reference."""
    if not config.getoption("fampe_backend", None):
        return []
    lines = []
    for name, target in targets(config).items():
        lines.append(f"fampe_fast: backend {name} on {target.device}, its own: {', '.join(target.primitives)}")
    return lines


def _devices(config: pytest.Config) -> dict[str, torch.device]:
    given: list[str] = config.getoption("fampe_backend", None) or []
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    if given and not names:
        raise pytest.UsageError("--fampe-backend: no name given")
    device: str | None = config.getoption("fampe_device", None)
    try:
        if not names:
            return runnable_backends() if device is None else dict.fromkeys(runnable_backends(), torch.device(device))
        chosen = {name: device_for(name, device) for name in names}
    except (BackendUnavailableError, RuntimeError) as error:
        raise pytest.UsageError(f"--fampe-backend: {error}") from error
    return chosen


def _untested(config: pytest.Config) -> dict[str, str]:
    """Report the package's own backends that cannot run, unless backends were named."""
    refused = {} if config.getoption("fampe_backend", None) else refused_backends()
    what = {"triton": "the Triton kernels are", "compiled": "the compiled reference is"}
    return {name: f"{what[name]} not tested: {reason}" for name, reason in refused.items()}


_TARGETS = pytest.StashKey[dict[str, Target]]()


def targets(config: pytest.Config) -> dict[str, Target]:
    """Return the backends under test by name; loaded once per session.

    Raises:
        pytest.UsageError: a backend cannot run, or provides nothing.
    """
    if _TARGETS not in config.stash:
        found = {}
        for name, device in _devices(config).items():
            primitives = load_primitives(name, device)
            if not primitives:
                raise pytest.UsageError(f"--fampe-backend: backend {name!r} provides no primitive of its own")
            found[name] = Target(primitives, device)
        config.stash[_TARGETS] = found
    return config.stash[_TARGETS]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each backend, check and case, for checks whose primitives the backend provides."""
    if "fampe_trial" in metafunc.fixturenames:
        parameters = []
        large = metafunc.config.getoption("fampe_large", False)
        for name, target in targets(metafunc.config).items():
            small_only = pytest.mark.skipif(
                target.device.type == "cpu" and not large, reason="needs a GPU: takes a CPU minutes (--fampe-large)"
            )
            for check in registered():
                if not set(check.primitives) <= set(target.primitives):
                    continue
                for case in check.cases:
                    marks = [pytest.mark.gpu, small_only] if case.gpu else []
                    label = f"{name}-{check.name}-{case}"
                    parameters.append(pytest.param(Trial(target, check, case), id=label, marks=marks))
        for name, reason in _untested(metafunc.config).items():
            parameters.append(pytest.param(None, id=name, marks=pytest.mark.skip(reason=reason)))
        metafunc.parametrize("fampe_trial", parameters)
    elif "fampe_target" in metafunc.fixturenames:
        found = targets(metafunc.config)
        metafunc.parametrize("fampe_target", list(found.values()), ids=list(found), scope="session")


@pytest.fixture
def fampe_primitives(fampe_target: Target) -> Primitives:
    """Return the backend's own functions."""
    return fampe_target.primitives


@pytest.fixture
def fampe_device(fampe_target: Target) -> torch.device:
    """Return the device of the backend under test."""
    return fampe_target.device
