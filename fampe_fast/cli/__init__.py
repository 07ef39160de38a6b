"""Run the command ``fampe-fast``.

Exit codes: 0 success, 1 some images failed (doctor: a fault), 2 nothing could start or every image failed, 130
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
    """Run the command line and return its exit code; errors are one line on standard error."""
    from .parser import parse

    with _any_text_can_be_printed():
        arguments = parse(argv)
        # torch warns of a CUDA toolkit without a driver even when it compiles for the CPU.
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
    """Print one line on standard error, unless the terminal is closed."""
    with contextlib.suppress(OSError, ValueError):
        print(f"fampe-fast: {' '.join(text.splitlines())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _any_text_can_be_printed() -> Iterator[None]:
    """Escape characters that an output's encoding lacks, and ignore a closed output.

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
    """Discard a stream's remaining and later output, of which Python would complain at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show the package's warnings like its errors, in one line without source code."""
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
