"""Checks of what the metrics are given, made before any work; messages name what was given and what was expected."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def check_images(images: object) -> None:
    """Floating-point (B, C, H, W), finite, in [0, 1]."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor (B, C, H, W), got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(f"images must be floating-point with values in [0, 1], got {images.dtype}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images must be (B, C, H, W) with C, H and W at least 1, got shape {tuple(images.shape)}")
    check_finite(images, "images")
    if len(images) and (float(images.min()) < 0 or float(images.max()) > 1):
        raise ValueError(
            f"images must lie in [0, 1], got values from {float(images.min()):g} to {float(images.max()):g}; "
            "normalisation belongs into the model"
        )


def check_maps(maps: object, images: Tensor) -> None:
    """Floating-point, finite, of the images' shape or with one channel."""
    if not isinstance(maps, Tensor):
        raise TypeError(f"maps must be a torch.Tensor (B, C, H, W), got {type(maps).__name__}")
    if not maps.is_floating_point():
        raise TypeError(f"maps must be floating-point, got {maps.dtype}")
    batch, _, height, width = images.shape
    if maps.shape not in (images.shape, (batch, 1, height, width)):
        raise ValueError(
            f"maps must have the images' shape {tuple(images.shape)} or {(batch, 1, height, width)}, "
            f"got {tuple(maps.shape)}"
        )
    check_finite(maps, "maps")


def check_finite(values: Tensor, what: str) -> None:
    """Neither NaN nor infinity; the message names the images."""
    bad = ~values.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        where = bad.nonzero().flatten().tolist()
        shown = ", ".join(map(str, where[:5])) + (", ..." if len(where) > 5 else "")
        raise ValueError(f"{what} must be finite, got NaN or infinity in image(s) {shown}")


def check_targets(targets: int | Sequence[int] | Tensor, images: Tensor) -> Tensor:
    """Targets as (B,) int64 on the images' device; whether the model has these classes shows at its first output."""
    batch = len(images)
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "iu":
        targets = torch.from_numpy(targets.astype(np.int64))
    if not isinstance(targets, Tensor):
        single = not isinstance(targets, Sequence)
        numbers = targets if isinstance(targets, Sequence) else [targets]
        if isinstance(targets, str) or not all(_is_index(number) for number in numbers):
            raise TypeError(
                f"targets must be an int, or a sequence, array or tensor of ints, got {str(targets)[:80]!r}"
            )
        whole = [int(number) for number in numbers]
        for image, number in enumerate(whole):
            if not -(2**63) <= number < 2**63:
                raise ValueError(f"target {number} (image {image}) is out of range: expected the index of a class")
        values = torch.tensor(whole, dtype=torch.long, device="cpu")
    else:
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise TypeError(f"targets must hold integers, got a tensor of {targets.dtype}")
        single = targets.ndim == 0
        values = targets.detach().long().reshape(1) if single else targets.detach().long()
    if single:
        values = values.expand(batch)
    if values.shape != (batch,):
        raise ValueError(f"targets must have one entry per image, ({batch},), got shape {tuple(values.shape)}")
    if bool((values < 0).any()):
        image = int((values < 0).nonzero()[0])
        raise ValueError(f"target {int(values[image])} (image {image}) is out of range: expected 0 or more")
    return values.to(images.device)


def check_classes(shape: tuple[int, ...], targets: Tensor) -> None:
    """The output for an image has the shape (classes,), and every target is one of them."""
    if len(shape) != 1:
        raise ValueError(f"the model's output must be (B, classes); for one image it is {(1, *shape)}")
    (classes,) = shape
    wrong = (targets < 0) | (targets >= classes)
    if bool(wrong.any()):
        image = int(wrong.nonzero()[0])
        raise ValueError(
            f"target {int(targets[image])} (image {image}) is out of range: the model has {classes} classes, "
            f"expected 0 to {classes - 1}"
        )


def _is_index(value: object) -> bool:
    if isinstance(value, Tensor):  # as in a list of entries of a tensor
        return value.ndim == 0 and not value.is_floating_point() and value.dtype != torch.bool
    if isinstance(value, (bool, np.bool_)):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True
