"""Complete a backend that mixes bands but draws no samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..reference.band_mix import band_mix
from ..reference.band_samples import to_pixels


def samples_of(mix: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make ``band_samples`` of another implementation of ``band_mix``."""
    signature = inspect.signature(band_mix)

    def samples(*args: Any, **named: Any) -> Tensor:
        return to_pixels(mix(*args, **named), signature.bind(*args, **named).arguments["width"])

    return samples
