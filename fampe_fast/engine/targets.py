"""Which output of the model is explained: Captum's target conventions, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..model_care import Model
from ..probing import outputs, probe

Target = int | Sequence[int] | Sequence[tuple[int, ...]] | tuple[int, ...] | Tensor | None


class Targets(NamedTuple):
    """The class of every image, and for models with several output dimensions the place it is read at."""

    classes: Tensor
    """(B,) int64."""
    place: tuple[int, ...]
    """Indices of the output's dimensions after (B, classes)."""

    def logits(self, output: Tensor) -> Tensor:
        """(P, classes) of a model's output (P, classes, ...)."""
        if not self.place:
            return output
        index: tuple[slice | int, ...] = (slice(None), slice(None), *self.place)
        return output[index]


def resolve_targets(model: Model, images: Tensor, target: Target, chunk: int | None = None) -> Targets:
    """Check a target and bring it into one form.

    Args:
        model: the classifier.
        images: (B, C, H, W).
        target: None for the model's own argmax; an int for all images; a list or a tensor (B,) of ints; for a model
            with several output dimensions a tuple (class, place...).
        chunk: images per forward pass where the argmax is asked for; None for all at once.

    Returns:
        ``Targets``, on the images' device.

    Raises:
        TypeError: a target of another type.
        ValueError: wrong length, out of range, or a tuple that does not fit the output's dimensions.
    """
    batch = len(images)
    if target is None:
        if batch == 0:
            return Targets(torch.zeros(0, dtype=torch.long, device=images.device), ())
        output = outputs(model, images, chunk or batch)
        if output.ndim != 2:
            raise ValueError(
                f"the model's output is {tuple(output.shape)}, not (B, classes): give target as a tuple "
                f"(class, {', '.join('index' for _ in output.shape[2:])})"
            )
        return Targets(output.argmax(1), ())
    classes, place = _split(target, batch, images.device)
    if batch == 0:
        return Targets(classes, place)
    shape = probe(model, images).shape
    if len(shape) != 1 + len(place):
        raise ValueError(
            f"target {_shorten(target)} names {1 + len(place)} of the output's dimensions, and the output for one "
            f"image is {shape}: expected {'an index' if len(shape) == 1 else f'a tuple of {len(shape)}'}"
        )
    for size, index in zip(shape[1:], place, strict=True):
        if not -size <= index < size:
            raise ValueError(f"target {_shorten(target)} is out of range: the model's output is {shape}")
    wrong = (classes < 0) | (classes >= shape[0])
    if bool(wrong.any()):
        where = int(wrong.nonzero()[0])
        raise ValueError(
            f"target {int(classes[where])} (image {where}) is out of range: the model has {shape[0]} classes, "
            f"expected 0 to {shape[0] - 1}"
        )
    return Targets(classes, place)


def _split(target: Target, batch: int, device: torch.device) -> tuple[Tensor, tuple[int, ...]]:
    place: tuple[int, ...] = ()
    if isinstance(target, tuple):
        if not target or not all(_is_index(index) for index in target):
            raise TypeError(f"a tuple target must hold ints (class, place...), got {target!r}")
        indices = [int(index) for index in target]  # type: ignore[arg-type]
        target, place = indices[0], tuple(indices[1:])
    if _is_index(target):
        return torch.full((batch,), int(target), dtype=torch.long, device=device), place  # type: ignore[arg-type]
    if isinstance(target, Tensor):
        if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
            raise TypeError(f"target must hold integers, got a tensor of {target.dtype}")
        values = target.to(device, torch.long, copy=True)
        values = values.expand(batch) if values.numel() == 1 and values.ndim <= 1 else values
    elif isinstance(target, Sequence) and not isinstance(target, str) and all(_is_index(index) for index in target):
        values = torch.tensor([int(index) for index in target], dtype=torch.long, device=device)  # type: ignore[arg-type]
    else:
        raise TypeError(
            f"target must be None, an int, a list or tensor of ints, or a tuple of ints, got {_shorten(target)}"
        )
    if values.shape != (batch,):
        raise ValueError(f"target must have one entry per image, ({batch},), got shape {tuple(values.shape)}")
    return values, place


def _is_index(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, (bool, Tensor))


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
