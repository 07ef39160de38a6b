"""Save the results of ``torch.compile`` to a file, and load them in other processes and on other machines.

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
    """Write everything this process has compiled, or has loaded from torch's cache folder, to a file.

    This package's own kernels, in Triton's cache folder, are not included; the kernels that torch generates are.

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

    Warns (``FampeWarning``) where the file cannot be used: it is missing or damaged, or of other versions or
    another device. Everything is then compiled as without it.
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
        warn(f"{VARIABLE}={path} is not used, and everything is compiled here: {reason}")


def _load_artifacts(path: Path) -> str:
    """Put a file's content into torch's caches; return the reason if that failed, else an empty string."""
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
