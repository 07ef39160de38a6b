"""Read the versions of the software that maps depend on."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from .._version import __version__

_PACKAGES = ("torch", "torchvision", "timm", "triton", "numpy", "pillow", "captum", "grad-cam")


def changes_between(then: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """List the differing versions or other parts of the environment: "torch 2.13 then, 2.14 now"."""
    return [
        f"{name} {then.get(name)} then, {now.get(name)} now"
        for name in dict.fromkeys((*then, *now))
        if then.get(name) != now.get(name)
    ]


def versions_now() -> dict[str, str]:
    """Read the versions of this package, of Python and of the installed packages that maps depend on."""
    found = {"fampe_fast": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
