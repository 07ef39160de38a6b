"""Decode the images of requests."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..answers.explainer import Item
from ..answers.pixels import Pixels, pixels_of, same_words
from ..errors import ImageReadError, first_line
from ..images import read_image_bytes
from .asks import AskError, Instance
from .record import ImageName, name_of

_BEGINNING = re.compile(r" \(the file begins with .*\)$", re.DOTALL)


class Decoded(NamedTuple):
    """An image at the model's size, and its ids."""

    pixels: Pixels
    name: ImageName

    def item(self, instance: Instance) -> Item:
        """Make the explainer's item."""
        return Item(self.pixels, instance.target, self.id_of(instance))

    def id_of(self, instance: Instance) -> int:
        """Return the id in the random stream: the client's, or one derived from the pixels."""
        return self.name.image_id if instance.image_id is None else instance.image_id


def decode(data: bytes, transform: Callable[[Image.Image], Tensor], max_pixels: int) -> Decoded:
    """Decode an image and resize it for the model.

    Raises:
        AskError: the body is not an image, damaged, or has too many pixels.
    """
    try:
        image = read_image_bytes(data, "the image", max_pixels=max_pixels)
        return Decoded(pixels_of(image, transform), name_of(image))
    except ImageReadError as error:
        # The log must not contain bytes of the image.
        raise AskError(_BEGINNING.sub("", same_words(error.reason))) from error
    except MemoryError as error:
        raise AskError("the image does not fit into memory") from error
    except Exception as error:  # a foreign transform may raise anything
        raise AskError(f"the image cannot be brought to the model's size: {same_words(first_line(error))}") from error
