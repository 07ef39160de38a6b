"""Read image files as PIL images and tensors, and generate test images."""

from .reading import (
    IMAGE_EXTENSIONS,
    FoundImages,
    find_images,
    load_images,
    read_image,
    read_image_bytes,
    survey_images,
    to_rgb,
)

__all__ = [
    "IMAGE_EXTENSIONS",
    "FoundImages",
    "find_images",
    "load_images",
    "read_image",
    "read_image_bytes",
    "survey_images",
    "to_rgb",
]
