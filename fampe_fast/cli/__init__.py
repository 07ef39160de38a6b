"""Run the command ``fampe-fast``.

Exit codes: 0 all done, 1 some images failed (doctor: a fault), 2 nothing could start or every image failed, 130
interrupted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO

from .interrupts import interruptible

DONE, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; one line on standard error says what went wrong."""
    from .parser import parse

    with _any_text_can_be_printed():
        arguments = parse(argv)
        # torch warns of a CUDA toolkit without a driver whenever it compiles for the CPU.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        from ..errors import BackendUnavailableError, WeightsUnavailableError

        try:
            with interruptible(), _warnings_in_one_line():
                code: int = arguments.run(arguments)
            return code
        except KeyboardInterrupt:
            _say("interrupted; completed results were saved")
            return INTERRUPTED
        except (ValueError, TypeError, OSError, ImportError, WeightsUnavailableError, BackendUnavailableError) as error:
            _say(str(error))
            return UNUSABLE
        except (RuntimeError, MemoryError) as error:
            from ..errors import first_line
            from ..runtime.out_of_memory import is_out_of_memory

            if not (isinstance(error, MemoryError) or is_out_of_memory(error)):
                raise
            _say(f"out of memory: {first_line(error)}")
            return UNUSABLE


def _say(text: str) -> None:
    """Print one line on standard error, unless the terminal is lost."""
    with contextlib.suppress(OSError, ValueError):
        print(f"fampe-fast: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _any_text_can_be_printed() -> Iterator[None]:
    """Escape what an output's encoding has no sign for, and go on where nobody reads the output any more.

    A table must not be lost, nor a finished run fail, by a class name in another alphabet or a closed pipe.
    """
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            changed.append((stream, stream.errors))
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:
                    stream.flush()
            except (OSError, ValueError):
                _discard(stream)
        for stream, errors in changed:
            stream.reconfigure(errors=errors)


def _discard(stream: TextIO) -> None:
    """Send what is left in a stream, and what follows, nowhere: else Python complains of it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show the package's warnings as it shows its errors, without a line of source."""
    from ..errors import FampeWarning

    plain = warnings.formatwarning

    def one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, FampeWarning):
            return f"fampe-fast: {message}\n"
        return plain(message, category, filename, lineno, line)

    warnings.formatwarning = one_line  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.formatwarning = plain
