"""Resolve which output of the model is explained: Captum's target conventions, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.model import Model
from ..runtime.model_probe import ModelInfo, outputs, probe

Target = int | Sequence[int] | Sequence[tuple[int, ...]] | tuple[int, ...] | Tensor | NDArray[Any] | None


class Targets(NamedTuple):
    """The class of every image, and for models with several output dimensions the position where it is read."""

    classes: Tensor
    """(B,) int64."""
    places: Tensor | None
    """(B, D) int64: indices of the output's D dimensions after (B, classes); None for most models, which have none."""

    def logits(self, output: Tensor, image_index: Tensor) -> Tensor:
        """Read the scores of all classes at the images' places.

        Args:
            output: (P, classes, ...), a model's.
            image_index: (P,) int64, the image a row belongs to.

        Returns:
            (P, classes).
        """
        if self.places is None:
            return output
        row = torch.arange(len(output), device=output.device)
        index: tuple[Tensor | slice, ...] = (row, slice(None), *self.places[image_index].unbind(1))
        return output[index]

    def of(self, index: int) -> int | tuple[int, ...]:
        """Give one image's target, as Captum takes it."""
        place = [] if self.places is None else self.places[index].tolist()
        chosen = int(self.classes[index])
        return (chosen, *place) if place else chosen


def resolve_targets(
    model: Model, images: Tensor, target: Target, chunk: int | None = None, probed: ModelInfo | None = None
) -> Targets:
    """Check a target and convert it to ``Targets``.

    Args:
        model: the classifier.
        images: (B, C, H, W).
        target: None for the model's own argmax; an int for all images; a list, an array or a tensor (B,) of ints; for a
            model with several output dimensions a tuple (class, position...), or a list of B tuples.
        chunk: images per forward pass if the model's argmax is needed; None for all at once.
        probed: the model's ``ModelInfo``, if it has been probed.

    Returns:
        ``Targets``, on the images' device.

    Raises:
        TypeError: a target of another type.
        ValueError: wrong length, out of range, or a tuple that does not fit the output's dimensions.
    """
    batch, device = len(images), images.device
    if target is None:
        if batch == 0:
            return Targets(torch.zeros(0, dtype=torch.long, device=device), None)
        return first_choices(outputs(model, images, chunk or batch, probed))
    indices = _indices(target, batch)
    if batch == 0:
        return _targets(indices, device)
    shape = (probe(model, images) if probed is None else probed).shape
    if len(shape) != indices.shape[1]:
        raise ValueError(
            f"target {_shorten(target)} names {indices.shape[1]} of the output's dimensions, and the output for one "
            f"image is {shape}: expected {'an index' if len(shape) == 1 else f'a tuple of {len(shape)}'}"
        )
    wrong = (indices[:, 0] < 0) | (indices[:, 0] >= shape[0])
    if bool(wrong.any()):
        where = int(wrong.nonzero()[0])
        raise ValueError(
            f"target {int(indices[where, 0])} (image {where}) is out of range: the model has {shape[0]} classes, "
            f"expected 0 to {shape[0] - 1}"
        )
    sizes = torch.tensor(shape, device=indices.device)
    if bool(((indices < -sizes) | (indices >= sizes)).any()):
        raise ValueError(f"target {_shorten(target)} is out of range: the model's output is {shape}")
    return _targets(indices, device)


def _targets(indices: Tensor, device: torch.device) -> Targets:
    """Split (B, 1 + D), checked where it was given, as a GPU would have to be waited for."""
    indices = indices.to(device)
    # No views: a compiler guards what they are views of.
    return Targets(indices[:, 0].clone(), indices[:, 1:].clone() if indices.shape[1] > 1 else None)


def first_choices(output: Tensor) -> Targets:
    """Use the model's argmax over its output (B, classes) as the targets.

    Raises:
        ValueError: an output with more dimensions, for which the argmax is not defined.
    """
    if output.ndim != 2:
        raise ValueError(
            f"the model's output is {tuple(output.shape)}, not (B, classes): give target as a tuple "
            f"(class, {', '.join('index' for _ in output.shape[2:])})"
        )
    return Targets(output.argmax(1), None)


def _indices(target: Target, batch: int) -> Tensor:
    """Convert a target to (B, 1 + D) int64, class and position of every image, on the target's device."""
    if isinstance(target, Tensor) and target.dtype == torch.uint64:  # whose large numbers torch wraps
        target = target.cpu().numpy()
    if isinstance(target, np.ndarray):
        if target.dtype.kind not in "iu":
            raise TypeError(f"target must hold integers, got an array of {target.dtype}")
        if target.dtype == np.uint64 and target.size:
            _whole(target.max())
        target = torch.from_numpy(np.atleast_1d(target.astype(np.int64)))
    if isinstance(target, Tensor):
        if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
            raise TypeError(f"target must hold integers, got a tensor of {target.dtype}")
        values = target.detach().to(torch.long, copy=True)
        values = values.reshape(1).expand(batch) if values.numel() == 1 and values.ndim <= 1 else values
    elif isinstance(target, tuple):
        if not target or not all(_is_index(index) for index in target):
            raise TypeError(f"a tuple target must hold ints (class, position...), got {target!r}")
        return torch.tensor([_whole(index) for index in target], device="cpu").expand(batch, -1)  # type: ignore[arg-type]
    elif _is_index(target):
        return torch.full((batch, 1), _whole(target), dtype=torch.long, device="cpu")  # type: ignore[arg-type]
    elif isinstance(target, Sequence) and not isinstance(target, str):
        return _of_a_list(target, batch)
    else:
        raise TypeError(_expected(target))
    if values.shape != (batch,):
        raise ValueError(f"target must have one entry per image, ({batch},), got shape {tuple(values.shape)}")
    return values[:, None]


def _of_a_list(target: Sequence[Any], batch: int) -> Tensor:
    rows = [entry if isinstance(entry, tuple) else (entry,) for entry in target]
    if not all(_is_index(index) for row in rows for index in row):
        raise TypeError(_expected(target))
    if len(rows) != batch:
        raise ValueError(f"target must have one entry per image, ({batch},), got shape ({len(rows)},)")
    if not rows:
        return torch.zeros((0, 1), dtype=torch.long, device="cpu")
    lengths = {len(row) for row in rows}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"target {_shorten(target)}: expected tuples of one length, got {sorted(lengths)}")
    return torch.tensor([[_whole(index) for index in row] for row in rows], device="cpu").reshape(batch, -1)


def _whole(index: Any) -> int:
    """Convert an index to an int that fits into a tensor.

    Raises:
        ValueError: it has more than 64 bits.
    """
    whole = int(index)
    if not -(2**63) <= whole < 2**63:
        raise ValueError(f"target {_shorten(whole)} is out of range: expected the index of a class")
    return whole


def _expected(target: object) -> str:
    return (
        "target must be None, an int, a list, array or tensor of ints, a tuple of ints, or a list of tuples, got "
        f"{_shorten(target)}"
    )


def _is_index(value: object) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    if isinstance(value, Tensor):  # as in a list of entries of a tensor
        return value.ndim == 0 and not value.is_floating_point() and value.dtype != torch.bool
    return hasattr(value, "__index__")


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
