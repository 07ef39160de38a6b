"""What a step of the path launches and moves on a GPU around the model, counted without one.

    TRITON_INTERPRET=0 FAMPE_FAST_PTX=sm_90 python -m pytest -s -p tests.ptx.plugin tests/kernels/test_step_traffic.py

prints the table. The step is that of 32 images of 224 px with 20 samples each, in chunks of 64, for a model that takes
channels-last samples. The kernels' bytes are the sectors that the machine's threads touch, each counted once per launch
and direction, as the cache serves what several threads share; "requested" counts it for every warp. Every operator of
torch's is a launch that reads its arguments and writes its result. A transform is a launch per axis, each of which
reads and writes all. The model, its loss and their gradients are left out.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

if "FAMPE_FAST_PTX" not in os.environ:
    pytest.skip("test_compiled_code runs this, on the machine", allow_module_level=True)

from fampe_fast import FAMPE
from fampe_fast.engine import aggregation, path
from fampe_fast.engine.request import Request
from fampe_fast.engine.targets import Targets
from fampe_fast.runtime.chunking import ChunkSize
from fampe_fast.runtime.model_probe import ModelInfo

from ..ptx.traffic import Counts, counting

BATCH, SAMPLES, SIDE, CHUNK = 32, 20, 224, 64
RECORDED = {"launches": 71, "GB": 3.43}
"""The most that a step may need. It needed 127 launches and 5.5 GB when samples were ordered sample by sample and came
from torch's transform to real numbers, which copies what it transforms and then divides by HW."""


def size_of(tensors: Any) -> int:
    """Bytes of the distinct memory of some tensors."""
    found = {t.untyped_storage().data_ptr(): t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor)}
    return sum(found.values())


class Bill(TorchDispatchMode):
    """Notes launches and bytes, by the operator that they belong to.

    A kernel runs on the machine the first time that it meets arguments of these shapes, and later gives whatever lies
    in memory: no count depends on the values.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self._begun = False
        self._kernels: dict[Any, tuple[Any, Counts]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, or make its result's memory, and note what a GPU would do."""
        name = func.name().partition(".")[0]
        if name == "fampe_fast::gradient_step":  # which test_memory_traffic counts; here the machine takes too long
            self._note(name, 3, 9 * size_of(args[:1]))
            return [*(torch.empty_like(args[0]) for _ in range(3)), torch.empty(len(args[0]))]
        if name.startswith("fampe_fast::"):
            return self._kernel(name, func, args)
        result = func(*args, **(kwargs or {}))
        given, made = tree_leaves((args, kwargs)), tree_leaves(result)
        if name == "aten::_fft_r2c":
            spectrum = size_of(made)
            self._note(name, 2, size_of(given) + 3 * spectrum)
        elif name == "aten::index":  # reads no more of the table than it takes
            self._note(name, 1, 2 * size_of(made) + size_of(tree_leaves(args[1])))
        elif not (func.is_view or "empty" in name or name in ("aten::detach", "aten::lift_fresh")):
            self._note(name, 1, size_of([*given, *made]))
        return result

    def begin_step(self, done: int) -> None:
        """Forget what came before: the first step, which the cut-off and the schedule precede; the second is last."""
        if not self._begun:
            self._begun = True
            for counter in (self.launches, self.bytes, self.moved):
                counter.clear()

    def _note(self, name: str, launches: int, count: int) -> None:
        self.launches[name] += launches
        self.bytes[name] += count

    def _kernel(self, name: str, func: Any, args: tuple[Any, ...]) -> Any:
        key = name, tuple((a.shape, a.stride()) if isinstance(a, Tensor) else a for a in args)
        if key not in self._kernels:
            with counting() as counts:
                self._kernels[key] = func(*args), counts
        result, counts = self._kernels[key]
        for (kernel, kind), traffic in counts.items():
            self._note(kernel, kind == "st", traffic.footprint)
            self.moved[kernel] += traffic.moved
        if name == "fampe_fast::band_samples":
            self._note("ifft2", 2, 4 * size_of([result]))
        return tree_map_only(Tensor, torch.empty_like, result)


class ChannelsLast(nn.Module):
    """Takes channels-last samples, as the weights of a convolutional network make it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 3, 2, 2).to(memory_format=torch.channels_last))

    def forward(self, pixels: Tensor) -> Tensor:
        """Never called: its gradient is replaced."""
        raise NotImplementedError


def test_launches_and_bytes_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "_gradient", lambda loss, inputs, with_factor: torch.empty_like(inputs))
    monkeypatch.setattr(path, "_warn_of_unusable", lambda *numbers: None)
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "triton")
    method = FAMPE(ChannelsLast(), steps=2, samples=SAMPLES, views=0, cutoff=5.0, compile="off")
    images = torch.rand(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    targets = Targets(torch.zeros(BATCH, dtype=torch.long), None)
    chunks = ChunkSize((), images, CHUNK, "test")
    request = Request((method.forward_func,), images, torch.arange(BATCH), targets, chunks, (ModelInfo(),), (True,))
    with Bill() as bill:
        path.follow_path(request, method.config, bill.begin_step)
    print(f"\n{'a step':<28}{'launches':>9}{'MB':>9}{'requested':>11}")
    for name, count in bill.bytes.most_common():
        requested = f"{bill.moved[name] / 1e6:11.1f}" if bill.moved[name] else ""
        print(f"{name:<28}{bill.launches[name]:>9}{count / 1e6:>9.1f}{requested}")
    launches, total = bill.launches.total(), bill.bytes.total() / 1e9
    print(f"{'all':<28}{launches:>9}{1e3 * total:>9.1f}")
    assert launches <= RECORDED["launches"]
    assert total <= RECORDED["GB"]
