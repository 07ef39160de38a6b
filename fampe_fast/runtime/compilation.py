"""Run functions through ``torch.compile``, and uncompiled where that fails."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal

import torch

from ..errors import warn
from .compile_cache import load_compile_cache
from .isolation import DEVICE_TYPES
from .tf32 import matrix_precision, tf32_in_use

Compile = Literal["auto", "off", "on", "graphs"]

_FILTERING = threading.RLock()


def resolve_compile(wanted: Compile, device: torch.device) -> Compile:
    """Resolve ``auto`` for a CPU, where it is off; elsewhere it is decided call by call (``auto_compile``).

    Raises:
        ValueError: CUDA graphs for a device that has none.
    """
    if wanted == "graphs" and device.type != "cuda":
        raise ValueError(f"compile='graphs' needs a CUDA GPU, and the images are on {device}; use 'on' or 'off'")
    return "off" if wanted == "auto" and device.type == "cpu" else wanted


class Compiled:
    """A function through ``torch.compile(fullgraph=True)``; after a call of it fails, the plain function is used.

    Attributes:
        active: whether the compiled function is used.
    """

    def __init__(self, function: Callable[..., Any], what: str, **options: Any) -> None:
        """Compile lazily, at the first call.

        Args:
            function: a plain function, closure or not.
            what: the function's name in the warning.
            options: options of ``torch.compile``.
        """
        self.plain = function
        self.active = True
        self._what = what
        self._options = options
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, *args: Any) -> Any:
        """Call the compiled function, or the plain one after the compiler has failed.

        Raises:
            Whatever the plain function raises, and out-of-memory errors.
        """
        if not self.active:
            return self.plain(*args)
        try:
            settings = process_settings()
            compiled = self._compiled.get(settings)
            return compiled(*args) if compiled else self._first_call(settings, *args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            self.active = False
            result = self.plain(*args)  # raises the caller's own mistakes
            reason = " ".join(str(error).split())
            warn(
                f"torch.compile failed for {self._what}, which now runs uncompiled: "
                f"{type(error).__name__}: {reason[:300]}"
            )
            return result

    def _first_call(self, settings: tuple[Any, ...], *args: Any) -> Any:
        load_compile_cache()
        # Warning filters belong to the whole process: two threads that save and restore them would mix them up.
        with _FILTERING, warnings.catch_warnings():
            # Spectra only pass through: the compiler generates no code for them.
            warnings.filterwarnings("ignore", "Torchinductor does not support code generation for complex")
            compiled = torch.compile(with_code_of_its_own(self.plain), fullgraph=True, **self._options)
            self._compiled[settings] = compiled
            return compiled(*args)


def process_settings() -> tuple[Any, ...]:
    """Return the process's settings that make the compiler build another graph.

    The compiler gives up on a function after eight graphs, so each combination of settings gets its own function.
    """
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        matrix_precision(),
        tf32_in_use()[1],  # of convolutions, whose algorithms a CUDA graph holds
        torch.is_autocast_cache_enabled(),
        *((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in DEVICE_TYPES),
    )


def with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function a code object of its own: the compiler limits graphs per code object, which closures share."""
    if not isinstance(function, FunctionType):
        return function
    own = FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    return own


def compiled_graphs() -> int:
    """Count the graphs that torch has compiled in this process."""
    if "torch._dynamo" not in sys.modules:
        return 0
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
