"""Provide the methods as Quantus's ``explain_func``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.model import Model
from .registry import create_method


def explain(
    model: Model, inputs: NDArray[Any], targets: NDArray[Any], *, method: str = "fampe", **options: Any
) -> NDArray[np.float32]:
    """Explain a batch in Quantus's conventions; pass this function as ``explain_func``.

    Args:
        model: classifier in pixel space, in evaluation mode.
        inputs: (B, C, H, W), values in the method's bounds.
        targets: (B,) class indices.
        method: a name of ``create_method``.
        **options: options of the method; ``device`` and Quantus's own options are accepted as well.

    Returns:
        Maps (B, C, H, W), float32.

    Raises:
        ValueError: as ``FAMPE.attribute``.
        TypeError: an option that the method does not have.
    """
    device = options.pop("device", None) or "cpu"
    for word in ("softmax", "channel_first", "normalise", "abs", "nr_channels", "img_size"):  # meant for Quantus itself
        options.pop(word, None)
    images = torch.as_tensor(np.asarray(inputs, dtype=np.float32), device=device)
    labels = torch.as_tensor(np.asarray(targets).astype(np.int64), device=device)
    maps = create_method(method, model, **options).attribute(images, labels)
    found: NDArray[np.float32] = maps.cpu().numpy()
    return found
