"""Checks of images, made before any work; every message names what was given and what was expected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST_SIDE = 8
# What the kernels' 32-bit indices and exact radii reach, the larger frames of input diversity included.
LARGEST_SIDE = 16384
LARGEST_IMAGE = 2**30


def check_images(images: object, bounds: tuple[float, float]) -> Tensor:
    """Images as contiguous float32.

    Raises:
        TypeError: no tensor, or not floating-point.
        ValueError: not (B, C, H, W), a side below 8 or above 16384 pixels, more than 2^30 values per image, NaN or
            infinity, or values outside ``bounds``.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"inputs must be a torch.Tensor (B, C, H, W), got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"inputs must be floating-point with values in [{bounds[0]:g}, {bounds[1]:g}], got {images.dtype}"
            + (" (divide 8-bit images by 255)" if images.dtype == torch.uint8 else "")
        )
    if images.ndim != 4:
        raise ValueError(f"inputs must be (B, C, H, W), got shape {tuple(images.shape)}")
    if images.shape[1] == 0:
        raise ValueError(f"inputs must have at least one channel, got shape {tuple(images.shape)}")
    check_size(images.shape[1:])
    if len(images) == 0:
        return images.detach().float()
    flat = images.detach().flatten(1)
    lowest, highest = flat.amin(1), flat.amax(1)
    strange = ~(lowest.isfinite() & highest.isfinite())  # a NaN pixel makes both NaN
    if bool(strange.any()):
        raise ValueError(f"inputs hold NaN or infinity in image(s) {_list(strange)}; expected finite values")
    outside = (lowest < bounds[0]) | (highest > bounds[1])
    if bool(outside.any()):
        raise ValueError(
            f"inputs must lie in [{bounds[0]:g}, {bounds[1]:g}], got values from {float(lowest.min()):g} to "
            f"{float(highest.max()):g} (image(s) {_list(outside)}); normalisation belongs into the model, "
            "other ranges into `bounds`"
        )
    checked = images.detach().float().contiguous()
    return checked.clone() if checked.is_inference() else checked


def check_size(shape: Sequence[int]) -> None:
    """Check the size (C, H, W) of an image.

    Raises:
        ValueError: a side below 8 or above 16384 pixels, or more than 2^30 values.
    """
    if min(shape[-2:]) < SMALLEST_SIDE:
        raise ValueError(f"images must be at least {SMALLEST_SIDE} pixels high and wide, got {shape[-2]} x {shape[-1]}")
    if max(shape[-2:]) > LARGEST_SIDE or math.prod(shape) > LARGEST_IMAGE:
        raise ValueError(
            f"images may have {LARGEST_SIDE} pixels a side and {LARGEST_IMAGE} values at most, got "
            f"{tuple(shape)}; explain a smaller version"
        )


def _list(flags: Tensor, most: int = 5) -> str:
    where = flags.nonzero().flatten().tolist()
    return ", ".join(str(index) for index in where[:most]) + (", ..." if len(where) > most else "")
