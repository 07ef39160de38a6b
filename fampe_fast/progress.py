"""Show progress on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int, label: str, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Give a function to call with the number of finished units; it does nothing unless ``show``."""
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


class UpTo:
    """A bar's ``advance`` for work of which only the most there may be is known: it ends at its total all the same."""

    def __init__(self, total: int, advance: Callable[[int], None]) -> None:
        """Start with nothing done.

        Args:
            total: units that the bar was promised.
            advance: the bar's own.
        """
        self._left, self._advance = total, advance

    def __call__(self, count: int) -> None:
        """Advance by the number of finished units, and not beyond the total."""
        count = min(count, self._left)
        self._left -= count
        self._advance(count)

    def finish(self) -> None:
        """Advance to the total: the rest was not needed."""
        self(self._left)
