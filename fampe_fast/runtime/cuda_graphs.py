"""Decide which passes are captured in CUDA graphs, so that the host asks for all of a pass's work at once.

A pass of a few images keeps a GPU busy for less time than the host needs to ask for its hundreds of launches one by
one. ``torch.compile`` captures what it has compiled (``compilation``); here a pass is captured as it is: without a
compilation, and with results that are those of the plain pass to the bit.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import first_line
from .compilation import process_settings
from .decisions import at_once, note
from .device_memory import free_memory
from .device_time import CallTime, time_call
from .graph_capture import CaptureBusyError, GraphedCall, Pass
from .model_state import State
from .out_of_memory import is_out_of_memory, release_memory
from .per_model import cache_of

# Calls of a function after which ``auto`` spends a few passes on measuring and capturing it.
CAPTURE_AFTER = 16
MOST_GRAPHS = 8
"""Captures of a model: each one keeps the memory of a pass."""
_SHARE_OF_MEMORY = 1 / 8
# Captures of one kind of call that a changed model has made useless.
_MOST_CHANGES = 3


def graphs_pay(time: CallTime) -> bool:
    """Tell whether the device waits for the host in a chunk, which a CUDA graph asks for in one launch."""
    return time.host > time.device


def note_graphs(used: bool, what: str, time: CallTime) -> None:
    """Log whether CUDA graphs are used for what was timed."""
    note(
        f"CUDA graphs: {'used' if used else 'not used'} for {what} takes the host {1e3 * time.host:.2f} ms and the "
        f"device {1e3 * time.device:.2f} ms"
    )


class Captured(NamedTuple):
    """A captured call, and the model's state at that time."""

    state: State
    call: Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass
class GraphedCalls:
    """The captured calls of one function of a model, and the choice of ``auto`` whether there are any.

    Attributes:
        name: of the function, in the plural, for the log.
        all: those of all functions of the model.
        calls: so far.
        time: of a plain call, by its kind, once it has been measured.
        captured: by kind of call.
        changes: how often the model's state has changed since a capture, or memory was short, by kind of call.
        failed: kinds of calls that cannot be captured.
    """

    name: str
    all: Mapping[Any, GraphedCalls] = field(default_factory=dict)
    calls: int = 0
    time: dict[Hashable, CallTime] = field(default_factory=dict)
    captured: dict[Hashable, Captured] = field(default_factory=dict)
    changes: dict[Hashable, int] = field(default_factory=dict)
    failed: set[Hashable] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self,
        function: Pass,
        arguments: Sequence[Tensor],
        state: Callable[[], State | None],
        image_bytes: int | None,
        *,
        always: bool,
    ) -> list[Tensor] | None:
        """Run a captured call, capturing it if that pays.

        Args:
            function: makes the plain pass, of one model alone.
            arguments: the function's, on a CUDA device, the first one with a row for each image of the pass.
            state: returns the model's ``state_of``; it is not called where nothing would be captured.
            image_bytes: that a pass keeps of an image for its backward pass, None where that is not known.
            always: capture without measuring whether it pays.

        Returns:
            The function's results, or None where a plain call is to be made.
        """
        kind = _kind_of(arguments)
        self.calls += 1
        known = self.captured.get(kind)
        if known is None and not self._may_pay(kind, image_bytes, always):
            return None
        now = state()
        if now is None:
            return None
        if known is None or not known.state.holds(now):
            # A thread that waited might hold what the one with the lock waits for.
            if not self.lock.acquire(blocking=False):
                return function(*arguments) if always else None
            try:
                known = self._capture(kind, function, arguments, now, image_bytes, always)
            except CaptureBusyError:
                return function(*arguments) if always else None
            finally:
                self.lock.release()
        return None if known is None else known.call(arguments)

    def release(self) -> bool:
        """Free the memory of the captures; tell whether there were any."""
        found = bool(self.captured)
        self.captured.clear()
        return found

    def _may_pay(self, kind: Hashable, image_bytes: int | None, always: bool) -> bool:
        if kind in self.failed or self.changes.get(kind, 0) > _MOST_CHANGES:
            return False
        if sum(len(calls.captured) for calls in list(self.all.values()) or [self]) >= MOST_GRAPHS:
            return False
        if always:
            return True
        if image_bytes is None or (kind in self.time and not graphs_pay(self.time[kind])):
            return False
        return at_once() or self.calls > CAPTURE_AFTER

    def _capture(
        self,
        kind: Hashable,
        function: Pass,
        arguments: Sequence[Tensor],
        now: State,
        image_bytes: int | None,
        always: bool,
    ) -> Captured | None:
        device = arguments[0].device
        if self.captured.pop(kind, None) is not None:
            self.changes[kind] = self.changes.get(kind, 0) + 1
            if self.changes[kind] > _MOST_CHANGES:
                return None
        try:
            if not always and not self._pays(kind, function, arguments, image_bytes):
                return None
            found = self.captured[kind] = Captured(now.kept(), GraphedCall(function, arguments))
        except CaptureBusyError:
            raise
        except RuntimeError as error:  # a pass that waits for the device, or memory that is short
            if is_out_of_memory(error):
                self.changes[kind] = self.changes.get(kind, 0) + 1
            else:
                self.failed.add(kind)
            with contextlib.suppress(RuntimeError):
                release_memory(device)
            note(f"CUDA graphs: {self.name} cannot be captured: {first_line(error)}")
            return None
        return found

    def _pays(self, kind: Hashable, function: Pass, arguments: Sequence[Tensor], image_bytes: int | None) -> bool:
        device, images = arguments[0].device, len(arguments[0])
        free = free_memory(device)
        if image_bytes is None or free is None or images * image_bytes > _SHARE_OF_MEMORY * free:
            return False
        if kind not in self.time:
            taken = self.time[kind] = time_call(lambda: function(*arguments), device)
            note_graphs(graphs_pay(taken), f"{self.name}, a pass of which ({images} images)", taken)
        return graphs_pay(self.time[kind])


def graphed_calls(model: object, function: Hashable, kind: Hashable, name: str) -> GraphedCalls:
    """Look up the captured calls of one function of a model.

    Args:
        model: whose passes they are.
        function: what they compute.
        kind: of function: everything else that it depends on besides the model and its arguments.
        name: of the function, in the plural, for the log.
    """
    known = _functions_of(model)
    return known.setdefault((function, kind), GraphedCalls(f"{name} of {type(model).__name__}", known))


def release_captures(model: object, function: Hashable = None) -> bool:
    """Free the memory of a model's captures, of one function or of all; tell whether there were any."""
    found = [calls.release() for (of, _), calls in list(_functions_of(model).items()) if function in (None, of)]
    return any(found)


def _functions_of(model: object) -> dict[tuple[Hashable, Hashable], GraphedCalls]:
    known: Any = cache_of(model, "graphed calls")
    return known  # type: ignore[no-any-return]


def _kind_of(arguments: Sequence[Tensor]) -> Hashable:
    """Describe what a captured call depends on besides its function, its model and the values of its arguments."""
    cudnn: Any = torch.backends.cudnn  # whose settings have no types
    cuda: Any = torch.backends.cuda
    algorithms = (
        *(cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
        *(cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()),
        *(cuda.math_sdp_enabled(), cuda.cudnn_sdp_enabled()),
        *(cuda.matmul.allow_fp16_reduced_precision_reduction, cuda.matmul.allow_bf16_reduced_precision_reduction),
    )
    return (
        process_settings(),
        algorithms,
        arguments[0].device,
        tuple((one.shape, one.dtype, one.stride()) for one in arguments),
    )
