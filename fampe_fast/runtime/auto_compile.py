"""Decide for ``compile="auto"`` on a GPU when a model's passes are compiled, and whether CUDA graphs replay them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from typing import Literal

import torch

from .chunking import are_pinned, even_parts
from .compilation import Compile, resolve_compile
from .cuda_graphs import MOST_GRAPHS, graphs_pay, note_graphs
from .decisions import at_once, note
from .device_time import CallTime, time_call
from .per_model import cache_of

Mode = Literal["off", "on", "graphs"]

# In bytes that passes keep for their backward passes, which is known before a pass is timed and the same in every
# process: some 320,000 images through ResNet-50, 224 px, or 12288 chunks of a small model. On an H100 compiling its
# passes took 15 to 20 s, and saved 0.054 ms of each in bf16: so it is paid back if as much again follows.
COMPILE_AFTER = 12 * 2**40
# A small pass takes as long as its launches.
_LEAST_OF_A_PASS = 2**30


def work_of(rows: int, chunk: int, saved_bytes: int | None) -> float:
    """Weigh passes, in the unit of ``COMPILE_AFTER``.

    Args:
        rows: images that go through the model.
        chunk: images per pass.
        saved_bytes: that it keeps of an image for the backward pass; None where that is not known.
    """
    return max(rows * float(saved_bytes or 0), even_parts(rows, chunk) * float(_LEAST_OF_A_PASS))


@dataclass
class AutoCompile:
    """The choice of ``auto`` for one function of a model.

    Attributes:
        name: of the function, for the log.
        work: of its passes so far.
        compiled: whether it is compiled by now.
        time: of a chunk of its plain passes, once that has been measured.
        captured: the numbers of rows for which a CUDA graph was made.
    """

    name: str
    work: float = 0.0
    compiled: bool = False
    time: CallTime | None = None
    captured: set[int] = field(default_factory=set)

    def mode(self, work: float, sizes: Collection[int]) -> Mode:
        """Choose for a call.

        Args:
            work: of the call (``work_of``).
            sizes: the numbers of rows of its passes.
        """
        self.work += work
        if not self.compiled and (at_once() or self.work > COMPILE_AFTER):
            self.compiled = True
            note(f"compile: {self.name} are compiled from now on")
        if not self.compiled:
            return "off"
        return "graphs" if self._graphs(sizes) else "on"

    def asks_for_time(self, device: torch.device) -> bool:
        """Tell whether a chunk is still to be measured, as it is once where there are CUDA graphs."""
        return self.compiled and self.time is None and device.type == "cuda"

    def measure(self, call: Callable[[], object], device: torch.device, sizes: Collection[int]) -> Mode:
        """Measure a chunk of the plain passes, and choose again.

        Args:
            call: makes the chunk's passes; it is repeated.
            device: a CUDA device.
            sizes: as for ``mode``.
        """
        self.time = time_call(call, device)
        graphs = self._graphs(sizes)
        note_graphs(graphs, f"{self.name}, a chunk of which", self.time)
        return "graphs" if graphs else "on"

    def _graphs(self, sizes: Collection[int]) -> bool:
        if self.time is None or not graphs_pay(self.time) or len(self.captured.union(sizes)) > MOST_GRAPHS:
            return False
        self.captured.update(sizes)
        return True


def auto_compile(
    model: object, function: Hashable, name: str, wanted: Compile, device: torch.device
) -> Mode | AutoCompile:
    """Settle how a model's function runs on a device, or give the record by which ``auto`` decides call by call.

    Where sizes are pinned results may not depend on what ran before: ``auto`` compiles at once there, without graphs.

    Args:
        model: whose passes they are.
        function: which of its functions; there is a record for each.
        name: of the function, in the plural, for the log.
        wanted: the caller's choice.
        device: where the model runs.

    Raises:
        ValueError: CUDA graphs for a device that has none.
    """
    settled = resolve_compile(wanted, device)
    if settled != "auto":
        return settled
    if are_pinned():
        return "on"
    known = cache_of(model, "auto compile")
    found: AutoCompile = known.setdefault((function, device), AutoCompile(f"{name} of {type(model).__name__}"))
    return found
