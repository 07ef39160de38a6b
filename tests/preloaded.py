"""Import what forked processes of tests need: the process that they are forks of does so once."""

from __future__ import annotations

from contextlib import suppress

from .runs import forked  # noqa: F401

with suppress(ImportError):  # what serves is optional
    from .serve import running  # noqa: F401
