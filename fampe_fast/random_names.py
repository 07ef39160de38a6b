"""What names a random number, checked: the run's seed and the images' ids, for methods and metrics alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_LARGEST_ID = 2**32 - 2  # the last number is the reserved word of the input-diversity draws


def check_seed(seed: object) -> int:
    """A whole number of 64 bits.

    Raises:
        TypeError: not a whole number.
        ValueError: outside [-2^63, 2^63).
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be a whole number, got {seed!r} ({type(seed).__name__})")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit into 64 bits, got {seed}")
    return seed


def check_image_ids(image_ids: Sequence[int] | Tensor | None, images: Tensor) -> Tensor:
    """Image ids (B,) int64 on the images' device; None numbers them from 0.

    Raises:
        TypeError: not integers.
        ValueError: not one per image, or outside [0, 2^32 - 2].
    """
    batch = len(images)
    if image_ids is None:
        return torch.arange(batch, device=images.device)
    ids = torch.as_tensor(image_ids)
    if ids.numel() and (ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype == torch.bool):
        raise TypeError(f"image_ids must be integers, got {ids.dtype}")
    if ids.shape != (batch,):
        raise ValueError(f"image_ids must have one entry per image, ({batch},), got shape {tuple(ids.shape)}")
    ids = ids.long()
    if batch and (int(ids.min()) < 0 or int(ids.max()) > _LARGEST_ID):
        raise ValueError(f"image_ids must lie in [0, 2^32 - 2], got {int(ids.min())} to {int(ids.max())}")
    return ids.to(images.device)
