"""Random numbers of the metrics: named by seed, image id and sample number, as the methods' noise is."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from fampe_fast.reference.philox import philox4x32, split_seed

__all__ = ["Stream", "check_image_ids", "check_seed", "random_words"]

_LARGEST_ID = 2**32 - 2  # as for the methods' noise, whose ids these are


class Stream(IntEnum):
    """What the numbers are for: the word of the counter that holds the step on the path in the methods' noise."""

    SUBSETS = 0xFFFFFFFF
    PERTURBATIONS = 0xFFFFFFFE


def random_words(stream: Stream, seed: int, image_ids: Tensor, samples: Tensor, count: int) -> Tensor:
    """Random 32-bit words: Philox4x32 with the counter (word / 4, sample, stream, image id) and the seed as its key.

    Args:
        stream: what they are for.
        seed: 64 bits.
        image_ids: (P,) int64 in [0, 2^32 - 2], whose image a row belongs to.
        samples: (P,) int64 in [0, 2^32), the row's sample number.
        count: words per row.

    Returns:
        (P, count) int64, values in [0, 2^32), on the ids' device.
    """
    block = torch.arange(-(-count // 4), device=image_ids.device).expand(len(image_ids), -1)
    step = torch.tensor(int(stream), device=image_ids.device)
    key = split_seed(torch.tensor(seed, device=image_ids.device))
    words = philox4x32((block, samples[:, None], step, image_ids[:, None]), key)
    return torch.stack(words, -1).flatten(1)[:, :count]


def check_seed(seed: object) -> int:
    """A 64-bit whole number.

    Raises:
        TypeError: not a whole number.
        ValueError: outside [-2^63, 2^63).
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be a whole number, got {seed!r} ({type(seed).__name__})")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must lie in [-2^63, 2^63), got {seed}")
    return seed


def check_image_ids(image_ids: Sequence[int] | Tensor | None, images: Tensor) -> Tensor:
    """Image ids (B,) int64 on the images' device; None numbers them from 0.

    Raises:
        TypeError: not integers.
        ValueError: not one per image, or outside [0, 2^32 - 2].
    """
    if image_ids is None:
        return torch.arange(len(images), device=images.device)
    ids = torch.as_tensor(image_ids)
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise TypeError(f"image_ids must be integers, got {ids.dtype}")
    if ids.shape != (len(images),):
        raise ValueError(f"image_ids must have one entry per image, ({len(images)},), got shape {tuple(ids.shape)}")
    ids = ids.long()
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) > _LARGEST_ID):
        raise ValueError(f"image_ids must lie in [0, 2^32 - 2], got {int(ids.min())} to {int(ids.max())}")
    return ids.to(images.device)
