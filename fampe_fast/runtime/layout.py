"""Find out whether a model gives the same answers with images and weights in channels-last memory format.

Tensor cores convolve in that format, and turn every other tensor to it and back.
"""

from __future__ import annotations

import os
from collections.abc import Hashable

import torch
from torch import Tensor, nn

from .cast_weights import cast_weights
from .decisions import note
from .model import Model, frozen_parameters, input_dtype, memory_format
from .model_probe import ModelInfo, call, holds_compiled
from .out_of_memory import is_out_of_memory
from .parts import parts_of
from .per_model import cache_of
from .tf32 import tensor_float32

VARIABLE = "FAMPE_FAST_CHANNELS_LAST"

# Another memory format adds up in another order: some 1e-6 of the largest logit. A wrong result differs by far more.
_TOLERANCE = 1e-4


def takes_channels_last(model: Model, images: Tensor, probed: ModelInfo) -> bool:
    """Tell whether the passes of a model on a CUDA device are better given channels-last images and weights.

    Asked once for each kind of image, by a pass in each format. ``FAMPE_FAST_CHANNELS_LAST=0`` says no for all.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W).
        probed: what is known of it.

    Returns:
        Whether its convolutions' weights are in torch's usual format and its logits are the same in the other one.
    """
    if images.device.type != "cuda" or not len(images) or os.environ.get(VARIABLE, "1") == "0":
        return False
    if not isinstance(model, nn.Module) or holds_compiled(model) or not _convolves(model):
        return False
    known: dict[Hashable, bool] = cache_of(model, "takes channels last")
    key = images.device, input_dtype(model), images.shape[1:]
    if key not in known:
        # A view that a batch of one still has may fail for two.
        shown = images[:1] if probed.single else torch.cat([images[:1], images[:1].flip(-1)])
        with tensor_float32(False):
            known[key] = same_answers(model, shown, probed)
        given = "given channels-last images and weights" if known[key] else "left in the memory format it has"
        note(f"memory format: {type(model).__name__} is {given}")
    return known[key]


def same_answers(model: nn.Module, images: Tensor, probed: ModelInfo) -> bool:
    """Compare a model's logits for images with those of its twin in channels-last format, whose gradients must exist.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W).
        probed: what is known of it.
    """
    try:
        with frozen_parameters(model), cast_weights(model, None, channels_last=True) as twin:
            with torch.no_grad():
                expected = call(model, images, probed)
            leaf = images.contiguous(memory_format=torch.channels_last).detach().requires_grad_(True)
            with torch.enable_grad():
                found = call(twin, leaf, probed, torch.channels_last)
                torch.autograd.grad(found.float().sum(), leaf)
    except Exception as error:  # foreign code: view's RuntimeError, an assertion about strides
        if is_out_of_memory(error):
            raise
        return False
    difference = (found.detach().float() - expected.float()).abs().max()
    return bool(difference <= _TOLERANCE * expected.float().abs().max())


def _convolves(model: nn.Module) -> bool:
    """Tell whether there is a weight that has another format to take, and none that has it already."""
    return memory_format(model) == torch.contiguous_format and any(
        parameter.ndim == 4 and not parameter.is_contiguous(memory_format=torch.channels_last)
        for _, parameter in parts_of(model).parameters
    )
