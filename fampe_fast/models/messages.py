"""Other libraries' errors in one line."""

from __future__ import annotations

__all__ = ["first_line"]


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its class name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
