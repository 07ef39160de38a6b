"""Show progress on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(total: int, label: str, show: bool = True) -> Iterator[Callable[[int], None]]:
    """Return a function to call with the number of finished units; it does nothing unless ``show``."""
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)


class UpTo:
    """A bar's ``advance`` for work of which only the maximum is known; the bar still ends at its total."""

    def __init__(self, total: int, advance: Callable[[int], None]) -> None:
        """Start without finished units.

        Args:
            total: total of the bar.
            advance: the bar's own ``advance``.
        """
        self._left, self._advance = total, advance

    def __call__(self, count: int) -> None:
        """Advance by the number of finished units, but not beyond the total."""
        count = min(count, self._left)
        self._left -= count
        self._advance(count)

    def finish(self) -> None:
        """Advance to the total, as the rest was not needed."""
        self(self._left)
