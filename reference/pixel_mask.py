"""Make the masked images of insertion and deletion, for any list of (image, step) pairs at once."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_mask(start: Tensor, finish: Tensor, first_step: Tensor, image_index: Tensor, step: Tensor) -> Tensor:
    """Show ``finish[b]`` in row p where ``first_step[b] <= step[p]``, else ``start[b]``; ``b = image_index[p]``.

    Args:
        start: (B, C, H, W) floating-point, the images at step 0; any strides, expanded dimensions included.
        finish: (B, C, H, W) of the same dtype, the images after the last step; any strides.
        first_step: (B, H, W) int32, the step from which on a pixel shows ``finish``.
        image_index: (P,) int64 in [0, B), the image of each row.
        step: (P,) int64, the step of each row.

    Returns:
        (P, C, H, W) in the dtype of ``start``; channels-last if ``start`` or ``finish`` is, else contiguous.
    """
    changed = first_step[image_index] <= step[:, None, None]
    rows = torch.where(changed[:, None], finish[image_index], start[image_index])
    return rows.contiguous(memory_format=result_format(start, finish))


def result_format(start: Tensor, finish: Tensor) -> torch.memory_format:
    """Return channels-last if ``start`` or ``finish`` (B, C, H, W) is, else contiguous.

    A single channel is both: contiguous then, so that the result does not depend on it.
    """
    channels_last = start.shape[1] > 1 and any(
        image.is_contiguous(memory_format=torch.channels_last) for image in (start, finish)
    )
    return torch.channels_last if channels_last else torch.contiguous_format
