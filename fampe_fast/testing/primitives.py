"""Load the backend under test: only its own functions, without the reference's for missing ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import BackendUnavailableError
from ..ops import backends

OWN = ("triton", "compiled")
"""The package's own backends besides the reference."""


class Primitives(Mapping[str, Callable[..., Any]]):
    """A backend's functions, by name as attributes or as a mapping; signatures are those of ``fampe_fast.reference``.

    Args:
        functions: by primitive's name.
        name: of the backend, for messages.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]], name: str = "backend") -> None:
        self._functions = dict(functions)
        self.name = name

    def __getitem__(self, op: str) -> Callable[..., Any]:
        return self._functions[op]

    def __getattr__(self, op: str) -> Callable[..., Any]:
        functions: dict[str, Callable[..., Any]] = self.__dict__.get("_functions", {})
        if op not in functions:
            raise AttributeError(
                f"backend {self.__dict__.get('name')!r} has no primitive {op!r}, only {list(functions)}"
            )
        return functions[op]

    def __iter__(self) -> Iterator[str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)


@contextmanager
def _asking_for(name: str) -> Iterator[None]:
    before = os.environ.get(backends.VARIABLE)
    os.environ[backends.VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[backends.VARIABLE]
        else:
            os.environ[backends.VARIABLE] = before


def load_primitives(name: str, device: torch.device | str) -> Primitives:
    """Load the functions that a backend itself provides on a device.

    Args:
        name: a backend of the package ("triton", "compiled", "reference") or one given to ``register_backend``.
        device: where the tensors will be.

    Returns:
        Its primitives, without those that it leaves to the reference.

    Raises:
        BackendUnavailableError: the name is unknown, or the backend cannot run on that device.
    """
    device = torch.device(device)
    with _asking_for("reference"):
        plain = {op: backends.implementation(op, device) for op in backends.OPS}
    with _asking_for(name):
        found = {op: backends.implementation(op, device) for op in backends.OPS}
    own = {op: function for op, function in found.items() if name == "reference" or function is not plain[op]}
    return Primitives(own, name)


def device_for(name: str, device: torch.device | str | None = None) -> torch.device:
    """Find the device on which a backend can run: the requested one, or the first available, GPUs before the CPU.

    Raises:
        BackendUnavailableError: it can run on none of them; the message says why the last one was refused.
    """
    kinds = [kind for kind in ("cuda", "xpu") if getattr(torch, kind).is_available()]
    candidates = [torch.device(device)] if device is not None else [torch.device(kind) for kind in (*kinds, "cpu")]
    for candidate in candidates:
        try:
            with _asking_for(name):
                backends.choice(candidate)
        except BackendUnavailableError as error:
            refusal = error
        else:
            return candidate
    raise refusal


def runnable_backends() -> dict[str, torch.device]:
    """List the package's own backends that can run here, each with its device; not the reference."""
    refused = refused_backends()
    return {name: device_for(name) for name in OWN if name not in refused}


def refused_backends() -> dict[str, str]:
    """List the package's own backends that cannot run here, each with the reason."""
    found = {}
    for name in OWN:
        try:
            device_for(name)
        except BackendUnavailableError as error:
            found[name] = str(error)
    return found
