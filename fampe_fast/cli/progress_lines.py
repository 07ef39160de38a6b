"""Show the progress of a long run: a bar on a terminal, occasional lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

EVERY = 30.0
"""Seconds between two lines in a log."""


class Stand(Protocol):
    """The progress of a run, as ``batch.local.Progress``."""

    @property
    def images(self) -> int:
        """Number of finished images."""

    @property
    def total_images(self) -> int:
        """Number of all images."""

    @property
    def errors(self) -> int:
        """Number of failed images."""

    @property
    def images_per_second(self) -> float:
        """Images per second."""

    @property
    def seconds_left(self) -> float:
        """Estimated seconds left."""

    @property
    def busy(self) -> float:
        """Share of the time in which the device computes."""


class ProgressLines:
    """Shows the ``Stand`` of each call.

    Attributes:
        last: the latest ``Stand``.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        """Set the console and the clock.

        Args:
            console: a terminal gets a bar, anything else a line every ``EVERY`` seconds.
            clock: returns seconds from any origin.
        """
        self._console, self._clock = console, clock
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None)
        self._next = clock() + EVERY
        self.last: Stand | None = None

    def __enter__(self) -> ProgressLines:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, stand: Stand) -> None:
        """Show the progress."""
        self.last = stand
        text = stand_text(stand)
        self._bar.update(self._task, completed=stand.images, total=stand.total_images, description=text)
        if not self._console.is_terminal and self._clock() >= self._next:
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)
            self._next = self._clock() + EVERY


def stand_text(stand: Stand) -> str:
    """Write the progress of a run in a line."""
    return (
        f"{stand.images} of {stand.total_images} images, {stand.images_per_second:.2f}/s, "
        f"{duration_text(stand.seconds_left)} left, {stand.errors} errors, device {stand.busy:.0%} busy"
    )


def duration_text(seconds: float) -> str:
    """Write a duration in its two largest units: "2 d 3 h", "5 min 0 s"."""
    whole = round(seconds)
    units = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s")]
    first = next((k for k, (count, _) in enumerate(units) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in units[first : first + 2])
