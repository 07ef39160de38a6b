"""Sum over samples: add rows of gradients to their images."""

from __future__ import annotations

from torch import Tensor


def accumulate(total: Tensor, gradient: Tensor, image_index: Tensor) -> None:
    """Add ``total[image_index[p]] += gradient[p]``, in place; on a CPU in ascending order of p.

    Args:
        total: (B, C, H, W), float32 or float64, contiguous; is changed.
        gradient: (P, C, H, W), any memory format.
        image_index: (P,) int64 in [0, B): the image of each row.
    """
    if total.device.type != "cpu":
        total.index_add_(0, image_index, gradient.to(total.dtype))
        return
    for row, image in enumerate(image_index.tolist()):  # four times as fast there, channels-last rows above all
        total[image].add_(gradient[row])
