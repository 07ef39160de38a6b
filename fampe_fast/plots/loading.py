"""Import matplotlib without being interrupted."""

from __future__ import annotations

import signal
import threading
from functools import cache


@cache
def load_matplotlib() -> None:
    """Import the parts of matplotlib that figures need, delaying Ctrl-C until they are imported.

    An exception in the middle of the import of its extension modules comes out as an ``ImportError``, or ends the
    process with a fatal error once it exits.
    """
    caught: list[int] = []
    held = {}
    if threading.current_thread() is threading.main_thread():  # which alone may set handlers, and gets the exception
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and callable(signal.getsignal(number)):
                held[number] = signal.signal(number, lambda number, frame: caught.append(number))
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    for number in caught[:1]:
        signal.raise_signal(number)
