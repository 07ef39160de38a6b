"""Transform PIL images to pixel space: resize, crop, scale to [0, 1]; the model does the normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import to_rgb

# Resizing scales the longer side with the shorter one: a line of 1 x 50,000 pixels would become 3 billion of them.
MAX_ASPECT = 100

CHANNELS = 3
INTERPOLATIONS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}


class PixelTransform:
    """A resize-and-crop with the guarantees that the package relies on.

    Called with a PIL image, returns float32 (C, H, W) in [0, 1]. Images of other modes are converted to RGB first, as
    ``fampe_fast.images.to_rgb`` does, and for one channel from there to grey (ITU-R 601-2 luma, Pillow's "L"). Resizing
    happens in bytes, where Pillow clips the overshoot of the bicubic kernel itself; the clamp is for transforms that
    resize floats. Picklable where ``resize`` is.

    Raises:
        TypeError: the argument is not a PIL image.
        ValueError: one side is more than 100 times the other; or the model takes another number of channels than one
            or three, which no image file has.
    """

    def __init__(self, resize: Callable[[Image.Image], Image.Image | Tensor], channels: int = CHANNELS) -> None:
        self.resize = resize
        self.channels = channels

    def __call__(self, image: Image.Image) -> Tensor:
        """Make the image float32 (C, H, W) in [0, 1]."""
        if self.channels not in (1, CHANNELS):
            raise ValueError(
                f"the model takes {self.channels} channels, and image files are read as RGB (or as grey, for one "
                "channel): pass your own transform to Classifier(model, transform=...), or pass tensors"
            )
        if not isinstance(image, Image.Image):
            raise TypeError(
                f"expected a PIL image, got {type(image).__name__}; fampe_fast.images.read_image reads one from a file"
            )
        width, height = image.size
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise ValueError(f"an image of {width} x {height} pixels: one side is over {MAX_ASPECT} times the other")
        rgb = to_rgb(image)
        resized = self.resize(rgb if self.channels == CHANNELS else rgb.convert("L"))
        pixels = resized if isinstance(resized, Tensor) else _to_tensor(resized)
        return pixels.clamp(0.0, 1.0)

    def __repr__(self) -> str:
        channels = "" if self.channels == CHANNELS else f", channels={self.channels}"
        return f"{type(self).__name__}({self.resize!r}{channels})"


def _to_tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image))
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return pixels.contiguous().to(torch.float32).div(255)


@dataclass(frozen=True)
class ResizeAndCrop:
    """Resize until the image just covers ``size / crop_share``, then crop ``size`` from the centre.

    For a square ``size`` this is torchvision's ``Resize`` (of the shorter side) and ``CenterCrop``, to the byte.

    Attributes:
        size: (H, W) of the result.
        crop_share: share of the covered side that the crop keeps, in (0, 1]; 7/8 is ImageNet's 224 of 256.
        interpolation: the resizing filter, a name from ``INTERPOLATIONS``.
    """

    size: tuple[int, int]
    crop_share: float = 0.875
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> Image.Image:
        """Cut the centre of the image, of ``size``."""
        (height, width), (image_width, image_height) = self.size, image.size
        # The nudge keeps 341.99999 = 299 / (299 / 342) from losing a pixel.
        cover_height, cover_width = (int(side / self.crop_share + 1e-6) for side in (height, width))
        if cover_height * image_width >= cover_width * image_height:
            resized = (cover_height * image_width // image_height, cover_height)
        else:
            resized = (cover_width, cover_width * image_height // image_width)
        left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
        return image.resize(resized, INTERPOLATIONS[self.interpolation]).crop((left, top, left + width, top + height))


def timm_transform(config: dict[str, Any]) -> PixelTransform:
    """Make the evaluation transform of a timm data configuration, without its normalisation.

    Args:
        config: as from ``timm.data.resolve_model_data_config``; ``mean`` is needed too, as the colour of the borders
            that some models pad with. The number of channels is the first of ``input_size``.
    """
    from timm.data import create_transform  # type: ignore[attr-defined]
    from torchvision.transforms import Compose, Normalize

    steps = create_transform(**config, is_training=False).transforms
    return PixelTransform(
        Compose([step for step in steps if not isinstance(step, Normalize)]), int(config["input_size"][0])
    )


def torchvision_transform(
    weights: Any, input_size: tuple[int, int] | None, interpolation: str | None
) -> tuple[PixelTransform, tuple[int, int], Sequence[float], Sequence[float]]:
    """Make the transform of torchvision's weights, without its normalisation.

    Args:
        weights: a member of a torchvision weights enumeration, for image classification.
        input_size: (H, W) instead of the crop of the weights; the crop keeps its share of the resized image.
        interpolation: a name from ``INTERPOLATIONS`` instead of the filter of the weights.

    Returns:
        Transform, input size (H, W), mean, std.
    """
    preset = weights.transforms()
    mean, std, crop = preset.mean, preset.std, preset.crop_size[0]
    if input_size in (None, (crop, crop)) and interpolation is None:
        preset.mean, preset.std = [0.0] * CHANNELS, [1.0] * CHANNELS
        return PixelTransform(preset), (crop, crop), mean, std
    size = input_size or (crop, crop)
    resize = ResizeAndCrop(size, crop / preset.resize_size[0], interpolation or preset.interpolation.value)
    return PixelTransform(resize), size, mean, std
