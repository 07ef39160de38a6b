"""Print the output that commands share: progress bars, numbers in tables, the closing line."""

from __future__ import annotations

import errno
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..images import FoundImages
from ..metrics import Estimate
from ..runs.batches import Failure
from . import DONE, SOME_FAILED, UNUSABLE
from .interrupts import check_interrupt


class Bar:
    """Shows a progress bar over files, if standard error is a terminal."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task(label, total=total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def begin(self, label: str, total: int) -> None:
        """Restart the bar with other things to count."""
        self._progress.reset(self._task, description=label, total=total)

    def __call__(self, count: int = 1) -> None:
        """Count more as done, unless the command was asked to end.

        Raises:
            KeyboardInterrupt: the command was asked to end.
        """
        check_interrupt()
        self._progress.advance(self._task, count)


def print_failure(errors: Console, failure: Failure) -> None:
    """Print which image failed, and why."""
    errors.print(f"[red]failed[/] {escape(str(failure.path))}: {escape(failure.reason)}", soft_wrap=True)


def estimate_text(estimate: Estimate, *, signed: bool = False) -> str:
    """Write ``mean ± standard error``."""
    mean = f"{estimate.mean:+.3f}" if signed else f"{estimate.mean:.3f}"
    return mean if estimate.standard_error is None else f"{mean} ± {estimate.standard_error:.3f}"


def closing(errors: Console, done: int, total: int) -> int:
    """Print how many images failed, and return the exit code."""
    if done == total:
        return DONE
    errors.print(f"{total - done} of {total} images failed", style="red")
    return SOME_FAILED if done else UNUSABLE


class _Screen(Console):
    """A console that is silent after its pipe or terminal is closed."""

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            self.quiet = True

    def on_broken_pipe(self) -> None:
        """Stay silent; Rich would end the process."""
        self.quiet = True


def console() -> Console:
    """Open a console on standard output."""
    # A pipe has no width: use one that tables fit into.
    found = _Screen()
    return found if found.is_terminal else _Screen(width=160)


def error_console() -> Console:
    """Open a console on standard error."""
    return _Screen(stderr=True)


def print_left_out(errors: Console, found: FoundImages) -> None:
    """Print which files of the folders are left out, in one line."""
    text = found.left_out_text()
    if text:
        errors.print(f"left out of {escape(text)}", soft_wrap=True, highlight=False)


def print_earlier(errors: Console, count: int, total: int, out: Path, what: str = "images") -> None:
    """Print how much an earlier run had finished."""
    if count:
        errors.print(
            f"{count} of {total} {what} were finished by an earlier run in {escape(str(out))}",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
