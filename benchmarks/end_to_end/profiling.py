"""Find where a call's time goes by sorting the profiler's events into a few kinds of work."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from ..common.timing import Call, seconds_of

FORWARD, BACKWARD, COMPILED = "model, forward", "model, backward", "model, compiled"
SAMPLING, DIVERSITY, SUM, STEP, COPIES, OTHER, HOST = (
    "sampling", "input diversity", "sum of gradients", "step", "copies", "other operators", "host",
)  # fmt: skip
KINDS = (FORWARD, BACKWARD, COMPILED, SAMPLING, DIVERSITY, SUM, STEP, COPIES, OTHER, HOST)

_MARK = "fampe_fast budget: forward"
# The first that fits the name of an event decides for all that it called.
_RULES = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (re.escape(_MARK), FORWARD),
        (r"fampe_fast::(band_mix|dct_mix|irfft2|separable_transform|energy_cutoff|radial_mask)|aten::fft_", SAMPLING),
        (r"fampe_fast::diversify", DIVERSITY),
        (r"fampe_fast::accumulate|aten::(add_|index_add_|new_zeros|zeros)$", SUM),
        (r"fampe_fast::gradient_step", STEP),
        (r"autograd::engine::evaluate_function", BACKWARD),
        (r"aten::(contiguous|copy_|clone|to|_to_copy)$", COPIES),
    )
)
_SYNCHRONISATIONS = re.compile(r"(cuda|hip)\w*Synchronize$")
_OWN_WAITS = 2  # before and after the call
_COPIES_OF_DEVICE = re.compile(r"Memcpy (HtoD|DtoH)")


class Marked(nn.Module):
    """A model whose forward passes show in the profile."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, pixels: Tensor) -> Tensor:
        """Run the model."""
        with record_function(_MARK):
            found: Tensor = self.model(pixels)
        return found


@dataclass
class Budget:
    """A call's time.

    Attributes:
        seconds: of a call without the profiler, the median.
        share: of each kind of work, by name; they sum to 1.
        launches: kernels that the call launched; 0 on a CPU.
        synchronisations: waits of the host for the device.
        transfers: copies between host and device.
    """

    seconds: float
    share: dict[str, float] = field(default_factory=dict)
    launches: int = 0
    synchronisations: int = 0
    transfers: int = 0


def profile_call(call: Call, device: torch.device, repetitions: int = 3) -> Budget:
    """Time a call, then profile it once.

    On a GPU the shares are of the wall-clock time, by the time of the kernels that the work launched; what is left is
    the host's: the device waited. On a CPU they are by the operators' time, and the host's is Python between them.
    """
    call()
    seconds = statistics.median_high(seconds_of(call, device) for _ in range(repetitions))
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiled:
        wall = seconds_of(call, device)
    events = list(profiled.events() or ())
    spent = sort_events(events, on_device=device.type == "cuda")
    # The profiler slows the host: shares are of what it saw.
    total = max(wall, sum(spent.values()) / 1e6)
    share = {kind: spent[kind] / 1e6 / total for kind in KINDS if kind != HOST}
    share[HOST] = 1 - sum(share.values())
    names = Counter(event.name for event in events)
    return Budget(
        seconds,
        share,
        sum(len(event.kernels) for event in events),
        max(0, sum(count for name, count in names.items() if _SYNCHRONISATIONS.search(name)) - _OWN_WAITS),
        sum(count for name, count in names.items() if _COPIES_OF_DEVICE.search(name)),
    )


def sort_events(events: Sequence[Any], *, on_device: bool) -> Counter[str]:
    """Sum microseconds by kind of work, each event counted once."""
    spent: Counter[str] = Counter()
    for event in events:
        # A GPU's kernels are listed, too; their time is also that of the operators that launched them.
        if event.cpu_parent is None and getattr(event, "device_type", DeviceType.CPU) == DeviceType.CPU:
            _sort(event, OTHER, on_device, spent)
    return spent


def _sort(event: Any, inherited: str, on_device: bool, spent: Counter[str]) -> None:
    kind = next((kind for pattern, kind in _RULES if pattern.match(event.name)), None)
    if kind is not None:
        spent[kind] += event.device_time_total if on_device else event.cpu_time_total
        return
    if "Compiled" in event.name:  # the graph of a loop: what is none of the package's operators is the model's
        inherited = COMPILED
    spent[inherited] += event.self_device_time_total if on_device else event.self_cpu_time_total
    for child in event.cpu_children:
        _sort(child, inherited, on_device, spent)
