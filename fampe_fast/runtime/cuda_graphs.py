"""Capture a model's pass in a CUDA graph, so that the host asks for all of its work at once from then on.

A pass of a few images keeps a GPU busy for less time than the host needs to ask for its hundreds of launches one by
one. ``torch.compile`` captures what it has compiled (``compilation``); here a pass is captured as it is: without a
compilation, and with results that are those of the plain pass to the bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .auto_compile import MOST_GRAPHS, graphs_pay, note_graphs
from .chunking import free_memory
from .compilation import process_settings
from .decisions import at_once, note
from .device_time import CallTime, time_call
from .out_of_memory import release_memory
from .parts import Parts, has_hooks
from .per_model import cache_of

Pass = Callable[..., list[Tensor]]

# Calls of a function after which ``auto`` spends a few passes on measuring and capturing it.
CAPTURE_AFTER = 16
# A graph keeps the memory of a pass.
_SHARE_OF_MEMORY = 1 / 8
# Captures of one kind of call that a changed model has made useless.
_MOST_CHANGES = 3
_WARM_UPS = 2
# Of the largest value. What a replay reads or writes in the wrong place differs by far more.
_TOLERANCE = 1e-2
_PLAIN = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


def can_capture(device: torch.device) -> bool:
    """Tell whether a device has CUDA graphs."""
    return device.type == "cuda"


class GraphedCall:
    """A call that was captured with tensors of its own, which every later call's arguments are copied to.

    Threads may share it: one call ends, on the device too, before the next one's copies begin.
    """

    def __init__(self, function: Pass, arguments: Sequence[Tensor]) -> None:
        """Call the function to warm up, and capture it.

        Args:
            function: asks for work on the current stream, waits for none of it, and returns new tensors.
            arguments: on one CUDA device; calls must have the same shapes, types and strides.

        Raises:
            RuntimeError: the function waits for the device, or does what cannot be captured.
        """
        self._device = arguments[0].device
        self._arguments = [torch.empty_like(argument).copy_(argument) for argument in arguments]
        self._graph, self._lock = torch.cuda.CUDAGraph(), threading.Lock()
        cuda: Any = torch.cuda  # whose streams and events have no types
        self._done = cuda.Event()
        with torch.cuda.device(self._device):
            caller, own = cuda.current_stream(), cuda.Stream()
            own.wait_stream(caller)
            with torch.cuda.stream(own):
                for _ in range(_WARM_UPS):  # libraries are loaded, and their algorithms chosen
                    function(*self._arguments)
                own.synchronize()
                # Other threads may go on using the device as they like.
                self._graph.capture_begin(capture_error_mode="thread_local")
                try:
                    try:
                        self._results = function(*self._arguments)
                    finally:
                        self._graph.capture_end()
                except RuntimeError:
                    _end_capture(self._device)
                    raise
                self._done.record(own)

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """Replay the call; the results are the caller's own."""
        with self._lock, torch.cuda.device(self._device):
            stream: Any = torch.cuda.current_stream()
            stream.wait_event(self._done)
            for own, argument in zip(self._arguments, arguments, strict=True):
                own.copy_(argument)
            self._graph.replay()
            found = [result.clone() for result in self._results]
            self._done.record(stream)
            return found


def _end_capture(device: torch.device) -> None:
    """End a failed capture by one that succeeds: torch's random generator stays in it, and its next number raises."""
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(capture_error_mode="thread_local")
    torch.zeros(1, device=device)
    graph.capture_end()


def _check(replayed: Sequence[Tensor], plain: Sequence[Tensor]) -> None:
    """Compare a replay's results with the plain call's, whose last bits may differ where a model adds up in any order.

    Raises:
        RuntimeError: they are not the same.
    """
    for one, other in zip(replayed, plain, strict=True):
        if not torch.allclose(one, other, rtol=0, atol=_TOLERANCE * float(other.abs().max()), equal_nan=True):
            raise RuntimeError("its replay gives other results")


@dataclass
class GraphedCalls:
    """The captured calls of one function of a model, and the choice of ``auto`` whether there are any.

    Attributes:
        name: of the function, in the plural, for the log.
        calls: so far.
        time: of a plain call, by its kind, once it has been measured.
        captured: the model's state when a kind of call was captured, and the capture.
        changes: how often that state has changed since, by kind of call.
        failed: kinds of calls that cannot be captured.
    """

    name: str
    calls: int = 0
    time: dict[Hashable, CallTime] = field(default_factory=dict)
    captured: dict[Hashable, tuple[Hashable, GraphedCall]] = field(default_factory=dict)
    changes: dict[Hashable, int] = field(default_factory=dict)
    failed: set[Hashable] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self,
        function: Pass,
        arguments: Sequence[Tensor],
        state: Callable[[], Hashable | None],
        kept_bytes: int | None,
        *,
        always: bool,
    ) -> list[Tensor] | None:
        """Run a captured call, capturing it if that pays.

        Args:
            function: makes the plain pass, of one model alone.
            arguments: the function's, on a CUDA device, the first one with a row for each image of the pass.
            state: returns the model's ``state_of``; it is not called where nothing would be captured.
            kept_bytes: of memory that a pass needs, None where that is not known.
            always: capture without measuring whether it pays.

        Returns:
            The function's results, or None where a plain call is to be made.
        """
        kind = process_settings(), tuple((one.shape, one.dtype, one.stride()) for one in arguments)
        with self.lock:
            self.calls += 1
            known = self.captured.get(kind)
            try:
                if known is None and not self._may_pay(kind, arguments[0].device, kept_bytes, always):
                    return None
                found = state()
                if found is None:
                    return None
                if known is not None and known[0] != found:
                    del self.captured[kind]
                    self.changes[kind] = self.changes.get(kind, 0) + 1
                    if self.changes[kind] > _MOST_CHANGES:
                        return None
                    known = None
                if known is None:
                    if not always and not self._pays(kind, function, arguments):
                        return None
                    call = GraphedCall(function, arguments)
                    _check(call(arguments), function(*arguments))
                    known = self.captured[kind] = found, call
            except RuntimeError as error:  # a pass that waits for the device, or memory that is short
                self.failed.add(kind)
                release_memory(arguments[0].device)
                note(f"CUDA graphs: {self.name} cannot be captured: {str(error).splitlines()[0]}")
                return None
        return known[1](arguments)

    def _may_pay(self, kind: Hashable, device: torch.device, kept_bytes: int | None, always: bool) -> bool:
        if kind in self.failed or self.changes.get(kind, 0) > _MOST_CHANGES or len(self.captured) >= MOST_GRAPHS:
            return False
        if always:
            return True
        if (not at_once() and self.calls <= CAPTURE_AFTER) or kept_bytes is None:
            return False
        if kind in self.time and not graphs_pay(self.time[kind]):
            return False
        free = free_memory(device)
        return free is not None and kept_bytes <= _SHARE_OF_MEMORY * free

    def _pays(self, kind: Hashable, function: Pass, arguments: Sequence[Tensor]) -> bool:
        if kind not in self.time:
            taken = self.time[kind] = time_call(lambda: function(*arguments), arguments[0].device)
            note_graphs(graphs_pay(taken), f"{self.name}, a pass of which ({len(arguments[0])} images)", taken)
        return graphs_pay(self.time[kind])


def graphed_calls(model: object, function: str, kind: Hashable) -> GraphedCalls:
    """Look up the captured calls of one function of a model.

    Args:
        model: whose passes they are.
        function: what they compute, in the plural.
        kind: of function: everything that it depends on besides the model and its arguments.
    """
    known = _functions_of(model)
    return known.setdefault((function, kind), GraphedCalls(f"the {function} of {type(model).__name__}"))


def release_captures(model: object, function: str) -> None:
    """Free the memory of a function's captures, of every kind, which are no longer used."""
    for (name, _), calls in list(_functions_of(model).items()):
        if name == function:
            with calls.lock:
                calls.captured.clear()


def _functions_of(model: object) -> dict[tuple[str, Hashable], GraphedCalls]:
    known: Any = cache_of(model, "graphed calls")
    return known  # type: ignore[no-any-return]


def state_of(parts: Parts) -> Hashable | None:
    """Describe what a captured pass of a model depends on: addresses, modules, and the attributes of these.

    A change is noticed where a tensor's address is another one, or a module or its attribute was set anew, and not
    where a list or another object was changed in place.

    Returns:
        A value that equals that of a model whose pass would be the same; None for a model whose pass does what no
        replay repeats: it has no modules, or some have hooks or are programs of TorchScript.
    """
    if not parts.modules:
        return None
    found: list[Hashable] = [tensor.data_ptr() for _, tensor in parts.tensors]
    for _, module in parts.modules:
        if isinstance(module, torch.jit.ScriptModule) or has_hooks(module):
            return None
        values = vars(module).values()
        found.append((id(module), *(value if type(value) in _PLAIN else id(value) for value in values)))
    return tuple(found)
