"""Make baseline maps that every method should beat, as they do not depend on the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..checks import check_bounds, check_seed
from ..engine.request import Request
from ..metrics.centre_prior import centre_prior
from ..metrics.random_words import Stream, random_words
from ..runtime.model import Model, check_callable
from .base import RequestMethod


class _Floor(RequestMethod):
    """A map that does not depend on the model, which is called only to predict a target that is not given.

    Args:
        model: any model that methods accept.
        bounds: smallest and largest pixel value.
    """

    name: str
    passes = 0
    multiplies_by_inputs = False
    gradients = False

    def __init__(self, model: Model, *, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        check_callable(model)
        self.forward_func = model
        self.bounds = check_bounds(bounds)

    def describe(self) -> dict[str, object]:
        """Describe what the maps depend on."""
        return {"method": self.name, "config": {"bounds": self.bounds}}

    def _map(self, request: Request, index: int) -> Tensor:
        """Make the map of one image, (H, W) float32."""
        raise NotImplementedError

    def _explain(self, request: Request, show_progress: bool) -> Tensor:
        maps = torch.empty_like(request.images)
        for index in range(len(maps)):
            maps[index] = self._map(request, index)
        return maps


class CentrePrior(_Floor):
    """Rank pixels by their closeness to the centre: ``metrics.centre_prior``.

    Args:
        model: the model, called only to predict a target that is not given.
        bounds: smallest and largest pixel value.

    Raises:
        TypeError, ValueError: as of every method.
    """

    name = "centre_prior"

    def _map(self, request: Request, index: int) -> Tensor:
        return centre_prior(*request.images.shape[-2:]).to(request.images.device)


class RandomMap(_Floor):
    """Rank pixels at random: uniform noise in [0, 1), one number per pixel.

    Args:
        model: the model, called only to predict a target that is not given.
        seed: seed of the noise, any 64-bit integer; together with the image's id it determines the noise.
        bounds: smallest and largest pixel value.

    Raises:
        TypeError, ValueError: as of every method.
    """

    name = "random_map"

    def __init__(self, model: Model, *, seed: int = 0, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__(model, bounds=bounds)
        self.seed = check_seed(seed)

    def describe(self) -> dict[str, Any]:
        """Describe what the maps depend on."""
        return {"method": self.name, "config": {"seed": self.seed, "bounds": self.bounds}}

    def _map(self, request: Request, index: int) -> Tensor:
        height, width = request.images.shape[-2:]
        image = request.image_ids[index : index + 1]
        words = random_words(Stream.RANDOM_MAPS, self.seed, image, torch.zeros_like(image), height * width)
        return ((words >> 8).float() * 2.0**-24).reshape(height, width)
