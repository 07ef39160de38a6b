"""Diversify inputs: resize samples a little and pad them with zeros to a common frame; and the transpose."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor


def diversify(
    samples: Tensor, placements: Tensor, frame_height: int, frame_width: int, channels_last: bool = False
) -> Tensor:
    """Resize every row bilinearly (half-pixel centres) and put it into a frame of zeros (DI-FGSM, arXiv 1803.06978).

    Args:
        samples: (P, C, H, W), float32 or float64.
        placements: (P, 4) int64, of each row the height and width it is resized to, and the top and left pixel of the
            place it gets; inside the frame.
        frame_height: rows of the frame.
        frame_width: columns of the frame.
        channels_last: memory format of the result.

    Returns:
        (P, C, frame_height, frame_width) in the dtype of ``samples``.
    """
    shown = samples.new_zeros((*samples.shape[:2], frame_height, frame_width))
    for first, last, (height, width, top, left) in _runs(placements):
        resized = F.interpolate(samples[first:last], size=(height, width), mode="bilinear", align_corners=False)
        shown[first:last, :, top : top + height, left : left + width] = resized
    return shown.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def diversify_adjoint(gradient: Tensor, placements: Tensor, height: int, width: int) -> Tensor:
    """Apply the transpose of ``diversify``: from gradients of the frames to gradients of the samples.

    Args:
        gradient: (P, C, frame height, frame width), float32 or float64, any memory format.
        placements: (P, 4) int64, as in ``diversify``.
        height: H of the samples.
        width: W of the samples.

    Returns:
        (P, C, H, W), contiguous, in the dtype of ``gradient``.
    """
    back = gradient.new_empty((*gradient.shape[:2], height, width))
    for first, last, (resized_height, resized_width, top, left) in _runs(placements):
        cut = gradient[first:last, :, top : top + resized_height, left : left + resized_width]
        back[first:last] = torch.ops.aten.upsample_bilinear2d_backward(
            cut.contiguous(), [resized_height, resized_width], [*cut.shape[:2], height, width], False
        )
    return back


def _runs(placements: Tensor) -> Iterator[tuple[int, int, list[int]]]:
    """Yield stretches of rows with one placement: first row, last row + 1, placement."""
    first = 0
    for placement, rows in groupby(placements.tolist()):
        last = first + len(list(rows))
        yield first, last, placement
        first = last
