"""Transform images to pixels at the model's size, in bytes if that is exact, and stack pixels to batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pixels = NDArray[np.uint8] | NDArray[np.float32]
"""An image (C, H, W), in bytes, or in [0, 1] if bytes cannot hold the transform's values."""

_ADDRESS = re.compile(r" ?\bat 0x[0-9a-fA-F]+")


def pixels_of(image: Image.Image, transform: Callable[[Image.Image], Tensor]) -> Pixels:
    """Transform an image to the model's size; errors are those of the transform."""
    pixels = transform(image)
    whole = pixels.mul(255).round().to(torch.uint8)
    found: Pixels = (whole if torch.equal(whole.to(torch.float32).div(255), pixels) else pixels).numpy()
    return found


def batch_of(images: Sequence[Pixels], device: torch.device) -> Tensor:
    """Stack images as (B, C, H, W) float32 in [0, 1] on a device, bitwise the same on every kind of device."""
    if all(image.dtype == np.uint8 for image in images):
        # Divided on the CPU, as a GPU multiplies by the reciprocal, which gives other bits.
        levels = (torch.arange(256, dtype=torch.float32) / 255).to(device)
        return levels[torch.from_numpy(np.stack(images)).to(device).long()]
    whole = [one.astype(np.float32) / np.float32(255) if one.dtype == np.uint8 else one for one in images]
    return torch.from_numpy(np.stack(whole)).to(device)


def same_words(reason: str) -> str:
    """Remove memory addresses, which differ from run to run, from an error's text."""
    return _ADDRESS.sub("", reason)
