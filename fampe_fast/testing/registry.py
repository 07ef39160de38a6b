"""List the checks, plain functions, with their primitives and cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from .primitives import Primitives
from .shapes import Case

CheckFunction = Callable[[Primitives, torch.device, Case], None]


class Check(NamedTuple):
    """One check of the suite."""

    name: str
    """The function's name without ``check_``."""
    function: CheckFunction
    """Takes the backend's primitives, the device and a case; raises AssertionError where the backend is wrong."""
    primitives: tuple[str, ...]
    """What a backend must provide for the check to concern it."""
    cases: tuple[Case, ...]
    """What it is run on."""


_CHECKS: dict[str, Check] = {}


def check(*primitives: str, cases: Sequence[Case] = (Case(),)) -> Callable[[CheckFunction], CheckFunction]:
    """Add the decorated function ``check_<what>(ops, device, case)`` to the suite, unchanged.

    Args:
        primitives: names of the primitives that it calls.
        cases: what the suite runs it on.
    """

    def add(function: CheckFunction) -> CheckFunction:
        name = function.__name__.removeprefix("check_")
        _CHECKS[name] = Check(name, function, primitives, tuple(cases))
        return function

    return add


def registered() -> tuple[Check, ...]:
    """Return every check added so far, in order."""
    return tuple(_CHECKS.values())
