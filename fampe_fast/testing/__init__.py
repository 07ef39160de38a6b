"""Test implementations of the primitives in the same way as the package's own kernels.

``assert_as_accurate`` (the error rule), ``Case``, ``SIZES`` and ``stride_variants`` (the sweep), ``poisoned_memory``,
``known_answers``, ``statistics``, ``arguments``, and the suite made of them: plain functions in ``checks``, listed by
``registered()``, each of which takes a backend's ``Primitives``, a device and a ``Case``. ``suite`` runs them all under
pytest; see there for the command line. Imports torch alone; only ``suite`` and ``plugin`` import pytest.
"""

from __future__ import annotations

from . import arguments, checks, known_answers, statistics
from .error_rule import assert_as_accurate, assert_same
from .poison import poisoned_memory
from .primitives import Primitives, device_for, load_primitives, runnable_backends
from .registry import Check, check, registered
from .shapes import EDGE_SIZES, LARGE_SIZES, SIZES, Case, stride_variants

__all__ = [
    "EDGE_SIZES",
    "LARGE_SIZES",
    "SIZES",
    "Case",
    "Check",
    "Primitives",
    "arguments",
    "assert_as_accurate",
    "assert_same",
    "check",
    "checks",
    "device_for",
    "known_answers",
    "load_primitives",
    "poisoned_memory",
    "registered",
    "runnable_backends",
    "statistics",
    "stride_variants",
]
