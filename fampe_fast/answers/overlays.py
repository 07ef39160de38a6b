"""Draw a map over its image as a PNG of the image's size, for a column of the shards."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..files import FIGURE, png_content
from ..plots.colours import default_smoothing, image_to_rgb, overlay_rgb, scale_map
from .summaries import FloatArray


def overlay_png(pixels: NDArray[Any], attribution: FloatArray) -> bytes | None:
    """Encode the evidence in colours over the darkened image.

    Args:
        pixels: (C, H, W), in bytes or in [0, 1].
        attribution: (C, H, W).

    Returns:
        The PNG; None for a map that holds NaN or infinity.
    """
    from PIL import Image

    if not np.isfinite(attribution).all():
        return None
    image = torch.from_numpy(pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 1))
    scaled = scale_map(torch.from_numpy(attribution), smoothing=default_smoothing(*attribution.shape[1:]))
    rgb = overlay_rgb(image_to_rgb(image), scaled)
    return png_content(Image.fromarray((rgb * 255).round().astype(np.uint8)), FIGURE, compress_level=6)
