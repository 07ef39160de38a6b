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
    """An image at the model's size, and what names it."""

    pixels: Pixels
    name: ImageName

    def item(self, instance: Instance) -> Item:
        """Make what the explainer takes of it."""
        return Item(self.pixels, instance.target, self.id_of(instance))

    def id_of(self, instance: Instance) -> int:
        """Give the id that names it in the random stream: the client's, or that of its pixels."""
        return self.name.image_id if instance.image_id is None else instance.image_id


def decode(data: bytes, transform: Callable[[Image.Image], Tensor], max_pixels: int) -> Decoded:
    """Decode an image and bring it to the model's size.

    Raises:
        AskError: it is not an image, damaged, or has too many pixels.
    """
    try:
        image = read_image_bytes(data, "the image", max_pixels=max_pixels)
        return Decoded(pixels_of(image, transform), name_of(image))
    except ImageReadError as error:
        # A few bytes of the image are of no use to a log, and not ours to keep.
        raise AskError(_BEGINNING.sub("", same_words(error.reason))) from error
    except MemoryError as error:
        raise AskError("the image does not fit into memory") from error
    except Exception as error:  # of a transform by other hands
        raise AskError(f"the image cannot be brought to the model's size: {same_words(first_line(error))}") from error
