"""Carry what ``torch.compile`` has made to other processes and machines, in a file.

Such a file is a program: loading it puts files into torch's cache folder, which torch then unpickles and runs, and a
forged one may put them anywhere. A checksum finds damage, not forgery.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from functools import cache
from pathlib import Path

import torch

from ..errors import first_line, warn
from ..files import json_content, write_atomically

VARIABLE = "FAMPE_FAST_COMPILE_CACHE"
KIND = "compile cache"
"""What the file's mark says; its first line is JSON, and what follows is torch's."""


def save_compile_cache(path: Path) -> None:
    """Write what this process has compiled, or has taken from torch's cache folder.

    Triton's own cache folder, where this package's kernels are, is not in it; what torch generates for Triton is.

    Raises:
        ValueError: there is nothing to write.
        OSError: the file cannot be written.
    """
    found = torch.compiler.save_cache_artifacts()
    if found is None:
        raise ValueError(
            "torch has compiled nothing that it can save: choose compile='on', or see its cache's settings"
        )
    head = json_content(KIND, _surroundings(), indent=None)
    write_atomically(path, f"{head}\n".encode() + found[0])


def load_compile_cache() -> None:
    """Load the file that ``FAMPE_FAST_COMPILE_CACHE`` names, once in a process.

    Warns (``FampeWarning``) where it is of no use here: a missing or damaged file, or one of other versions or of
    another device. All is then compiled as without it.
    """
    named = os.environ.get(VARIABLE)
    if named:
        _load(Path(named))


@cache
def _load(path: Path) -> None:
    try:
        reason = _load_artifacts(path)
    except Exception as error:
        reason = first_line(error)
    if reason:
        warn(f"{VARIABLE}={path} is of no use, and all is compiled here: {reason}")


def _load_artifacts(path: Path) -> str:
    """Put a file's content into torch's caches; give the reason why it was not done, or an empty string."""
    head, _, content = path.read_bytes().partition(b"\n")
    made = json.loads(head) if head.startswith(b"{") else {}
    if made.pop("fampe_fast", None) != KIND:
        return "it was not written by fampe-fast warmup --save"
    here = _surroundings()
    others = [f"{name} {made.get(name)} there and {here[name]} here" for name in here if made.get(name) != here[name]]
    if others:
        return ", ".join(others)
    return "" if torch.compiler.load_cache_artifacts(content) is not None else "it is damaged"


def _surroundings() -> dict[str, str]:
    """Name what compiled code depends on besides the model."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "none"
    gpu = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "triton": triton,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if gpu else torch.backends.cpu.get_cpu_capability(),
    }
