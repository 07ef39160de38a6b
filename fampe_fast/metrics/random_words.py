"""Draw random numbers for metrics, masks and random maps as functions of seed, image id and sample number."""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from ..reference.philox import philox4x32, split_seed

__all__ = ["Stream", "random_words"]


class Stream(IntEnum):
    """The purpose of the random numbers, in the counter word that holds the path's step for the methods' noise."""

    SUBSETS = 0xFFFFFFFF
    PERTURBATIONS = 0xFFFFFFFE
    PARTNERS = 0xFFFFFFFD
    CELLS = 0xFFFFFFFC
    MASKS = 0xFFFFFFFB
    RANDOM_MAPS = 0xFFFFFFFA
    COORDINATES = 0xFFFFFFF9
    DIRECTIONS = 0xFFFFFFF8


def random_words(stream: Stream, seed: int, image_ids: Tensor, samples: Tensor, count: int) -> Tensor:
    """Draw random 32-bit words by Philox4x32: counter (word / 4, sample, stream, image id), key the seed.

    Args:
        stream: purpose of the numbers.
        seed: seed, 64 bits.
        image_ids: (P,) int64 in [0, 2^32 - 2], the id of each row's image.
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
