"""The command ``fampe-fast``.

Exit codes: 0 all done, 1 some images failed (doctor: a fault), 2 nothing could start or every image failed, 130
interrupted.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

DONE, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; one line on standard error says what went wrong."""
    from .parser import parse

    arguments = parse(argv)
    # torch warns of a CUDA toolkit without a driver whenever it compiles for the CPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from ..errors import BackendUnavailableError, WeightsUnavailableError

    try:
        with _terminate_as_ctrl_c():
            code: int = arguments.run(arguments)
        return code
    except KeyboardInterrupt:
        print("fampe-fast: interrupted; what was finished is whole", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError, WeightsUnavailableError, BackendUnavailableError) as error:
        print(f"fampe-fast: {error}", file=sys.stderr)
        return UNUSABLE


@contextmanager
def _terminate_as_ctrl_c() -> Iterator[None]:
    """Let a batch system's request to end save what is finished, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
