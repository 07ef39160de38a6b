"""What one image's forward pass tells of a model: the shape of its output, and what it keeps for the backward pass."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .model_care import Model, frozen_parameters, input_dtype, memory_format


class Probed(NamedTuple):
    """A model's answer to one image."""

    shape: tuple[int, ...]
    """Of its output for an image, without the batch: (classes,) or (classes, ...)."""
    saved_bytes: int | None
    """Kept for the backward pass; None where that cannot be seen."""


# A pass per call would be one wasted for each image that is explained alone.
_PROBED: WeakKeyDictionary[nn.Module, dict[Hashable, Probed]] = WeakKeyDictionary()


def probe(model: Model, images: Tensor) -> Probed:
    """Show the first image to a model, once for each kind of image; other callables than modules are asked every time.

    Args:
        model: gives (B, classes) or (B, classes, ...).
        images: (B, C, H, W), B at least 1.

    Raises:
        TypeError: the output is no tensor.
        ValueError: its first dimension is not the batch, or it has no class dimension.
    """
    if not isinstance(model, nn.Module):
        return _ask(model, images[:1])
    known = _PROBED.setdefault(model, {})
    # A head that was exchanged since shows in the parameters' shapes.
    shapes = tuple(parameter.shape for parameter in model.parameters())
    key = images.device, input_dtype(model), images.shape[1:], shapes
    if key not in known:
        known[key] = _ask(model, images[:1])
    return known[key]


def outputs(model: Model, images: Tensor, chunk: int) -> Tensor:
    """The model's output for all images, ``chunk`` of them at a time, without gradients.

    Raises:
        TypeError, ValueError: as ``probe``.
    """
    with torch.no_grad():
        return torch.cat([output_of(model, images[k : k + chunk]) for k in range(0, len(images), chunk)])


def _ask(model: Model, image: Tensor) -> Probed:
    if _compiled(model):
        # A pass with hooks would make it compile once more.
        with torch.no_grad():
            return Probed(tuple(output_of(model, image).shape[1:]), None)
    own = {tensor.untyped_storage().data_ptr() for tensor in _state_of(model)}
    saved: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        frozen_parameters(model),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(remember, lambda kept: kept),
    ):
        output = output_of(model, image.detach().clone().requires_grad_(True))
    return Probed(tuple(output.shape[1:]), sum(saved.values()))


def output_of(model: Model, images: Tensor) -> Tensor:
    """The model's output for images, in its type and memory format.

    Raises:
        TypeError, ValueError: as ``probe``.
    """
    output = model(images.to(input_dtype(model)).contiguous(memory_format=memory_format(model)))
    if not isinstance(output, Tensor):
        raise TypeError(f"the model must return a tensor of logits (B, classes), got {type(output).__name__}")
    if output.ndim < 2 or len(output) != len(images):
        raise ValueError(
            f"the model's output must be (B, classes); for images {tuple(images.shape)} it is {tuple(output.shape)}"
        )
    return output


def _state_of(model: Model) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []


def _compiled(model: Model) -> bool:
    modules = model.modules() if isinstance(model, nn.Module) else ()
    return any(type(module).__name__ == "OptimizedModule" for module in modules)
