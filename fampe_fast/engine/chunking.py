"""How many samples a model pass takes: asked for, or as many as fit; halved once where they did not."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import FampeWarning
from ..model_care import Model, chunk_size
from .probing import probe

Result = TypeVar("Result")

# Of the free memory; the rest is for workspaces and fragmentation.
_SHARE = 0.8
# The backward pass holds gradients of activations beside what the forward pass has saved.
_BESIDE = 2
# Spectrum, sample, gradient and their like, in units of a sample.
_OWN = 8

# The largest chunk that fitted after one that did not, by model and kind of image.
_FITTING: WeakKeyDictionary[nn.Module, dict[Hashable, int]] = WeakKeyDictionary()


class ChunkSize:
    """Samples per model pass, for one run.

    Attributes:
        size: how many at most.
    """

    def __init__(self, models: tuple[Model, ...], images: Tensor, asked: int | None, precision: str = "fp32") -> None:
        """Choose.

        Args:
            models: whose passes they are.
            images: (B, C, H, W), what will be explained.
            asked: the caller's choice; None for 8 on a CPU and 64 elsewhere, or as many as fit into the free memory.
            precision: of the passes.

        Raises:
            TypeError, ValueError: a choice that is no whole number of at least 1, or models that ``probe`` refuses.
        """
        self._models = models
        self._key = images.device, tuple(images.shape[1:]), precision
        self._device = images.device
        self._halved = False
        size = chunk_size(asked, images.device)
        if asked is None and len(images):
            size = min(size, *(_that_fit(model, images) or size for model in models))
        self.size = min([size, *(known[self._key] for known in self._known() if self._key in known)])

    def run(self, call: Callable[[int], Result]) -> Result:
        """The result of a call that takes the size; where it runs out of memory, with half of it, once in a run.

        Raises:
            torch.OutOfMemoryError: the memory does not suffice for half of it either.
        """
        try:
            return call(self.size)
        except torch.OutOfMemoryError:
            if self._halved or self.size == 1:
                raise
        # Out here the traceback, which holds the call's tensors, is gone.
        self._halve()
        return call(self.size)

    def _halve(self) -> None:
        self._halved = True
        tried, self.size = self.size, self.size // 2
        for known in self._known():
            known[self._key] = self.size
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory with {tried} samples per model pass: going on with {self.size}, in later calls with this "
            f"model as well (internal_batch_size={self.size} spares the attempt)",
            FampeWarning,
            stacklevel=7,
        )

    def _known(self) -> list[dict[Hashable, int]]:
        return [_FITTING.setdefault(model, {}) for model in self._models if isinstance(model, nn.Module)]


def _that_fit(model: Model, images: Tensor) -> int | None:
    """As many samples as the free memory holds, at least one; None where that is not known."""
    saved, free = probe(model, images).saved_bytes, free_memory(images.device)
    if saved is None or free is None:
        return None
    each = _BESIDE * saved + _OWN * images[0].numel() * 4
    return max(1, int(_SHARE * free / each))


def free_memory(device: torch.device) -> int | None:
    """Bytes that a device can still hand out; None where it does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "cpu":
        try:
            lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return None
