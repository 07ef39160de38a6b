"""Say when ``auto`` decides, and make what it has decided visible: in a debug log, and to whoever collects it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

LOGGER = logging.getLogger("fampe_fast.auto")

_at_once: ContextVar[bool] = ContextVar("at_once", default=False)
_collecting: ContextVar[list[str] | None] = ContextVar("collecting", default=None)


@contextmanager
def decided_at_once() -> Iterator[None]:
    """Let ``auto`` decide at the first call inside what otherwise waits for a long run, as a warm-up asks."""
    before = _at_once.set(True)
    try:
        yield
    finally:
        _at_once.reset(before)


def at_once() -> bool:
    """Tell whether nothing waits for a long run (``decided_at_once``)."""
    return _at_once.get()


def note(decision: str) -> None:
    """Log a decision on the level DEBUG, and hand it to who collects."""
    LOGGER.debug(decision)
    found = _collecting.get()
    if found is not None:
        found.append(decision)


@contextmanager
def collected_decisions() -> Iterator[list[str]]:
    """Collect the decisions that are made inside, one sentence each."""
    found: list[str] = []
    before = _collecting.set(found)
    try:
        yield found
    finally:
        _collecting.reset(before)
