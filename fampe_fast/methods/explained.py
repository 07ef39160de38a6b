"""Explain a batch: the model's probabilities, the explained classes, their maps and cut-offs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..runtime.model import Model
from ..runtime.model_probe import probabilities_of
from .base import PathMethod


class Explained(NamedTuple):
    """The maps of a batch."""

    maps: Tensor
    """(B, C, H, W) float32."""
    probabilities: Tensor
    """(B, classes) in [0, 1], the model's probabilities."""
    targets: Tensor
    """(B,) int64, the explained classes."""
    cutoffs: Tensor | None
    """(B,) cut-offs in cycles over the shorter side; None for methods without one."""


def explain_batch(
    method: Any,
    model: Model,
    images: Tensor,
    targets: Sequence[int | None] | None = None,
    *,
    image_ids: Sequence[int],
    internal_batch_size: int | None = None,
) -> Explained:
    """Explain images for their targets, or for the model's predictions.

    Args:
        method: made for this model.
        model: classifier in pixel space.
        images: (B, C, H, W) in [0, 1], B at least 1.
        targets: the class of each image; None for one image or all for the model's prediction.
        image_ids: the images' names in the random stream.
        internal_batch_size: images per model pass; None for one pass for the probabilities, and the method's own choice
            for the maps.

    Raises:
        ValueError: a target that is not a class of the model, or arguments that the method refuses.
    """
    probabilities = probabilities_of(model, images, internal_batch_size)
    chosen = probabilities.argmax(1)
    if targets is not None:
        own = chosen.tolist()
        given = [choice if target is None else target for target, choice in zip(targets, own, strict=True)]
        chosen = torch.tensor(given, device=chosen.device)
        check_targets(chosen, probabilities)
    options: dict[str, Any] = {"image_ids": image_ids, "internal_batch_size": internal_batch_size}
    if isinstance(method, PathMethod):
        maps, cutoffs = method.maps_and_cutoffs(images, chosen, **options)
        return Explained(maps, probabilities, chosen, cutoffs)
    return Explained(method.attribute(images, chosen, **options), probabilities, chosen, None)


def check_targets(targets: Tensor, outputs: Tensor) -> None:
    """Refuse targets (B,) that are not classes of outputs (B, classes, ...), with a ValueError that names the first."""
    wrong = targets[(targets < 0) | (targets >= outputs.shape[1])].tolist()
    if wrong:
        raise ValueError(f"the target {wrong[0]} is out of range: the model has {outputs.shape[1]} classes")
