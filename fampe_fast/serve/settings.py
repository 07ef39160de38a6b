"""Define the limits of a service."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ..checks import check_count, check_number
from ..images.reading import MAX_PIXELS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
"""Pattern of a model's name in a URL."""


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """The limits of a service.

    Attributes:
        name: name of the model in URLs; letters, digits, dots, underscores and hyphens.
        queue: number of images that may wait for the device; more are refused.
        batch_size: largest number of images in a batch.
        internal_batch_size: samples per model pass.
        max_passes: largest number of passes in a request.
        max_bytes: largest request body, in bytes.
        max_pixels: largest image, in pixels.
        max_reading: limit of the total bytes of bodies being read, over all requests.
        deadline: seconds after which a request is given up.
        read_timeout: seconds to receive a request's head, and again its body.
        drain_timeout: seconds to answer the open requests after the service was asked to end.
        decoders: number of threads that decode images and encode replies.
    """

    name: str
    queue: int = 64
    batch_size: int = 8
    internal_batch_size: int = 8
    max_passes: int = 200
    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_reading: int = 256 * 2**20
    deadline: float = 30.0
    read_timeout: float = 10.0
    drain_timeout: float = 30.0
    decoders: int = 2

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"a model's name in addresses has letters, digits, '.', '_' and '-', 63 at most; got {self.name!r}"
            )
        for name in (
            "queue", "batch_size", "internal_batch_size", "max_passes", "max_bytes", "max_pixels", "max_reading",
            "decoders",
        ):  # fmt: skip
            check_count(name, getattr(self, name))
        for name in ("deadline", "read_timeout", "drain_timeout"):
            check_number(name, getattr(self, name), 0, open_low=True, expected="seconds above 0", largest=86400)
        if self.max_pixels > MAX_PIXELS:
            raise ValueError(f"max_pixels must be at most {MAX_PIXELS}, beyond which Pillow refuses images")
        if self.max_reading < self.max_bytes:
            raise ValueError(
                f"max_reading ({self.max_reading}) must be max_bytes ({self.max_bytes}) at least: else the largest body"
                " never has room"
            )


def service_name(model: str) -> str:
    """Make a name for URLs from a model's name."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-._")[:63]
    return name or "model"


def retry_after(waiting: int, seconds_per_image: float) -> int:
    """Estimate the seconds after which to retry, 1 to 60, from the queue and the time per image."""
    return max(1, min(60, math.ceil(waiting * seconds_per_image)))
