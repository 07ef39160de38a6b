"""Find the number of images per pass at which a GPU is fastest, by a few passes of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from .decisions import at_once, note
from .device_time import time_call
from .model import Model, frozen_parameters
from .model_probe import ModelInfo, call
from .out_of_memory import is_out_of_memory, release_memory
from .per_model import cache_of

SIZES = (32, 64, 128, 256)
# A larger chunk holds more memory: it must be faster by more than this share.
_CLEARLY = 0.03
# Rows of a model's runs after which the probe's own are few beside them: each size is run three times.
PROBE_AFTER = 16 * 3 * sum(SIZES)

Surroundings = Callable[[], AbstractContextManager[object]]


class Rows(NamedTuple):
    """The images that a call shows a model, samples and views."""

    total: float = 0
    together: float = 0
    """As many as may share a pass: those of a step."""


ENDLESS = Rows(math.inf, math.inf)
"""A run whose length nobody knows, as that of a service."""


def fastest(seconds: Mapping[int, float]) -> int:
    """Choose the smallest size that takes hardly longer per image than the best one.

    Args:
        seconds: of a pass, by the number of its images; at least one.
    """
    each = {size: taken / size for size, taken in seconds.items()}
    return min(size for size, taken in each.items() if taken <= (1 + _CLEARLY) * min(each.values()))


def fastest_size(
    model: Model, images: Tensor, probed: ModelInfo, limit: int, rows: Rows, kind: Hashable, around: Surroundings
) -> int | None:
    """Find the fastest number of images per forward and backward pass, once a model's runs are long enough for that.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W) on a CUDA device, B at least 1.
        probed: what is known of the model.
        limit: images per pass that fit into the memory.
        rows: of the call.
        kind: of pass, which is the same in all calls that share the result.
        around: opened around the passes, for their precision.

    Returns:
        At most ``limit``, or None where the runs so far are too short, or no choice is left.
    """
    key = images.device, images.shape[1:], kind
    known: dict[Hashable, float] = cache_of(model, "rows shown")
    known[key] = known.get(key, 0) + rows.total
    sizes: dict[Hashable, int] = cache_of(model, "fastest sizes")
    if key not in sizes:
        candidates = [size for size in SIZES if size <= limit]
        if rows.together <= SIZES[0] or len(candidates) < 2 or not (at_once() or known[key] >= PROBE_AFTER):
            return None
        seconds = _seconds(model, images, probed, candidates, around)
        if not seconds:
            return None
        sizes[key] = fastest(seconds)
        measured = ", ".join(f"{size}: {1e3 * taken / size:.3f}" for size, taken in seconds.items())
        note(f"chunk: {sizes[key]} images per pass of {type(model).__name__}, by milliseconds per image of {measured}")
    return min(sizes[key], limit)


def _seconds(
    model: Model, images: Tensor, probed: ModelInfo, sizes: list[int], around: Surroundings
) -> dict[int, float]:
    """Time passes of each size, up to the first that does not fit."""
    found: dict[int, float] = {}
    for size in sizes:
        shown = images[:1].expand(size, -1, -1, -1).contiguous()

        def run(shown: Tensor = shown) -> Tensor:
            leaf = shown.requires_grad_(True)
            with torch.enable_grad():
                return torch.autograd.grad(call(model, leaf, probed).float().sum(), leaf)[0]

        try:
            with frozen_parameters(model), around():
                found[size] = time_call(run, images.device).device
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
    release_memory(images.device)
    return found
