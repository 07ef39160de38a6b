"""Define RISE, which ranks pixels by the mean probability of the masked images that show them; it needs only scores.

Petsiuk, Das and Saenko, "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018,
arXiv 1806.07421, and the authors' public code (eclique/RISE, explanations.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..checks import check_bounds, check_count, check_number, check_seed
from ..engine.request import Request
from ..metrics.protocols import mean_colour
from ..metrics.random_words import Stream, random_words
from ..progress import progress
from ..runtime.model import Model, check_callable
from ..runtime.model_probe import call
from ..runtime.outputs import probabilities
from .base import RequestMethod


@dataclass(frozen=True, kw_only=True)
class RISEConfig:
    """Hold the options of ``RISE``.

    Attributes:
        passes: number of masks per image, at least 1; each is a forward pass only, about half a pass of a gradient
            method. The paper uses 4000 (VGG16) or 8000 (ResNet-50).
        grid: number of cells per side of a mask, at least 1.
        probability: probability that a cell is kept, above 0 and at most 1.
        seed: seed of the masks, any 64-bit integer; together with the image's id it determines the masks.
        bounds: smallest and largest pixel value; masked pixels get the smallest one if the model has no ``mean``.
    """

    passes: int = 4000
    grid: int = 7
    probability: float = 0.5
    seed: int = 0
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", check_count("passes", self.passes))
        object.__setattr__(self, "grid", check_count("grid", self.grid))
        object.__setattr__(self, "probability", check_number("probability", self.probability, 0, 1, open_low=True))
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "bounds", check_bounds(self.bounds))


class RISE(RequestMethod):
    """Average random masks by the target's probability in the masked image: ``sum_n p_n M_n / (passes probability)``.

    Masked pixels get the model's mean colour (``model.mean``, which every ``Classifier`` has), as in the authors' code,
    where it is zero after normalisation; for a model without one, the smallest pixel value. The map is the same in
    every channel, in [0, 1 / probability].

    Args:
        model: classifier in pixel space, in evaluation mode; it needs no gradients.
        **options: fields of ``RISEConfig``.

    Raises:
        TypeError: an option of a wrong type, or a model that cannot be called.
        ValueError: an option out of range.
    """

    name = "rise"
    gradients = False

    def __init__(self, model: Model, **options: Any) -> None:
        check_callable(model)
        self.forward_func = model
        self.config = RISEConfig(**options)
        self.bounds = self.config.bounds

    @property
    def passes(self) -> int:
        """Forward passes per image; there is no backward pass."""
        return self.config.passes

    @property
    def multiplies_by_inputs(self) -> bool:
        """False: the map has units of probability."""
        return False

    def describe(self) -> dict[str, object]:
        """Describe what the maps depend on besides the model."""
        return {"method": self.name, "config": asdict(self.config)}

    def _explain(self, request: Request, show_progress: bool) -> Tensor:
        images, passes = request.images, self.config.passes
        hidden = _hidden(self.forward_func, images, self.bounds[0])
        maps = torch.empty_like(images[:, :1])
        with progress(len(images) * passes, self.name, show_progress) as advance, torch.no_grad():
            for index in range(len(images)):
                # In float64, so that the sum does not depend on its division into passes.
                total = torch.zeros(images.shape[-2:], dtype=torch.float64, device=images.device)

                def one(rows: slice, index: int = index) -> Tensor:
                    masks = self._masks(request, index, rows)
                    chances = self._chances(request, index, hidden + masks[:, None] * (images[index] - hidden))
                    return torch.einsum("n,nhw->hw", chances.double(), masks.double())

                for rows, found in request.chunks.each(passes, one):
                    total += found
                    advance(rows.stop - rows.start)
                maps[index, 0] = (total / (passes * self.config.probability)).float()
        return maps.expand_as(images).contiguous()

    def _masks(self, request: Request, index: int, rows: slice) -> Tensor:
        """Draw masks of one image, (n, H, W) float32 in [0, 1]."""
        grid, (height, width) = self.config.grid, request.images.shape[-2:]
        numbers = torch.arange(rows.start, rows.stop, device=request.images.device)
        ids = request.image_ids[index].expand(len(numbers))
        words = random_words(Stream.MASKS, self.config.seed, ids, numbers, grid * grid + 2)
        kept = round(self.config.probability * 2**32)  # whole: a float would be of the caller's default type
        cells = (words[:, 2:] < kept).float().reshape(-1, grid, grid)
        down, across = (
            _enlarging(size, grid, words.device)[_shifted(words[:, axis], size, grid)]
            for axis, size in enumerate((height, width))
        )
        return down @ cells @ across.mT

    def _chances(self, request: Request, index: int, shown: Tensor) -> Tensor:
        """Compute the target's probability in variants of one image, (n,)."""
        output = call(self.forward_func, shown, request.probed[0])
        place = torch.full((len(shown),), index, device=shown.device)
        logits = request.targets.logits(output, place)
        return probabilities(logits, request.reading)[:, request.targets.classes[index]]


def _shifted(words: Tensor, size: int, grid: int) -> Tensor:
    """Draw the offset, below one cell, of a window of ``size`` pixels in the enlarged cells; its pixels, (n, size)."""
    cell = -(-size // grid)
    return ((words * cell) >> 32)[:, None] + torch.arange(size, device=words.device)


@lru_cache(maxsize=8)
def _enlarging(size: int, grid: int, device: torch.device) -> Tensor:
    """Compute the matrix (pixels, grid) that enlarges cells bilinearly on an axis, to one cell more than ``size``."""
    with torch.inference_mode(False):  # cached for later calls outside this context, too
        pixels = (grid + 1) * -(-size // grid)
        cells = torch.eye(grid, dtype=torch.float64, device="cpu")[None]
        enlarged = torch.nn.functional.interpolate(cells, size=pixels, mode="linear", align_corners=False)
        return enlarged[0].T.to(device, torch.float32).contiguous()


def _hidden(model: Model, images: Tensor, smallest: float) -> Tensor:
    """Return the colour of masked pixels, (C or 1, 1, 1)."""
    mean = getattr(model, "mean", None)
    if isinstance(mean, (Tensor, int, float, list, tuple)):
        return mean_colour(mean, images.shape[1]).to(images).reshape(-1, 1, 1)
    return torch.full((1, 1, 1), smallest, device=images.device, dtype=images.dtype)
