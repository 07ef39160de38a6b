"""Keep child processes from outliving their parent, and from ending before it on a signal to all of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.context import SpawnContext


def spawning() -> SpawnContext:
    """Give the way to start processes: anew, as a fork of one with threads or a GPU does not work."""
    return multiprocessing.get_context("spawn")


def obey_parent_alone() -> None:
    """End this process as soon as its parent is gone, however it went, and leave signals that reach both to the parent.

    To be called in a child of ``multiprocessing``.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    follow_parent()


def follow_parent() -> None:
    """End this process as soon as its parent is gone, however it went. To be called in a child."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="follow the parent", daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
