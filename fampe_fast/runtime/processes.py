"""Keep child processes from outliving their parent, and from ending before it on a signal to the whole group."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.context import SpawnContext


def spawning() -> SpawnContext:
    """Return the context that starts processes: spawned, as forks fail with threads or a GPU."""
    return multiprocessing.get_context("spawn")


def obey_parent_alone() -> None:
    """End this process as soon as its parent ends, for whatever reason, and ignore signals that the parent handles.

    To be called in a child of ``multiprocessing``.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    follow_parent()


def follow_parent() -> None:
    """End this process as soon as its parent ends, for whatever reason; call it in a child."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), name="follow the parent", daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
