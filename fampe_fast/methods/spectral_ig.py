"""Define Spectral Integrated Gradients, along a path on which the image's singular components appear, largest first.

Kim, Lim, Lee and Choi, "Spectral Integrated Gradients for Coarse-to-Fine Feature Attribution", KDD 2026,
arXiv 2605.19607, and the authors' public code (leekwoon/sig, cleanig/explainer/path_utils.py, ig.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from ..checks import check_bounds, check_choice, check_count, check_number
from ..engine.request import Request
from ..metrics.scorer import Score
from ..progress import progress
from ..runtime.model import Model, check_callable, frozen_parameters
from ..runtime.model_probe import call
from ..runtime.outputs import probabilities, scores
from .base import RequestMethod, warn_of_strange


@dataclass(frozen=True, kw_only=True)
class SpectralIGConfig:
    """Hold the options of ``SpectralIG``.

    Attributes:
        passes: number of steps of the path, each a forward and a backward pass, at least 1. The authors' 200 points
            are 199 steps.
        overlap: share of the path in which a singular component appears, above 0 and at most 1; at 1 all appear at
            once, and the path is the straight line of integrated gradients.
        score: score to explain: the target's probability, as in the authors' runs, or its logit.
        bounds: smallest and largest pixel value; the path starts at an image of the smallest.
        absolute: take the map's absolute values, so that pixels are ranked by magnitude, whatever their sign; None is
            False.
    """

    passes: int = 50
    overlap: float = 0.4
    score: Score = "probability"
    bounds: tuple[float, float] = (0.0, 1.0)
    absolute: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", check_count("passes", self.passes))
        object.__setattr__(self, "overlap", check_number("overlap", self.overlap, 0, 1, open_low=True))
        object.__setattr__(self, "score", check_choice("score", self.score, get_args(Score)))
        object.__setattr__(self, "bounds", check_bounds(self.bounds))
        if not isinstance(self.absolute, bool | None):
            raise TypeError(f"absolute must be True, False or None, got {self.absolute!r}")
        object.__setattr__(self, "absolute", bool(self.absolute))


class SpectralIG(RequestMethod):
    """Add up the target's gradient times the step along a path of singular components, from black to the image.

    A channel minus black is ``sum_k s_k u_k v_k^T``, s descending. At time t in [0, 1] component k has the weight
    ``clip((t - (1 - overlap) (1 - s_k / s_1)) / overlap, 0, 1)``. The gradient is taken at the beginning of each step.
    The map sums to the image's score minus that of black, up to an error of the order of the step size.

    Args:
        model: classifier in pixel space, in evaluation mode; the path's images may leave ``bounds``.
        **options: fields of ``SpectralIGConfig``.

    Raises:
        TypeError: an option of a wrong type, or a model that cannot be called.
        ValueError: an option out of range.
    """

    name = "spectral_ig"
    multiplies_by_inputs = True

    def __init__(self, model: Model, **options: Any) -> None:
        check_callable(model)
        self.forward_func = model
        self.config = SpectralIGConfig(**options)
        self.bounds = self.config.bounds

    @property
    def passes(self) -> int:
        """Forward and backward passes per image."""
        return self.config.passes

    @property
    def absolute(self) -> bool:
        """Whether pixels are ranked by magnitude."""
        return bool(self.config.absolute)

    def describe(self) -> dict[str, object]:
        """Describe what the maps depend on besides the model."""
        return {"method": self.name, "config": asdict(self.config)}

    def _explain(self, request: Request, show_progress: bool) -> Tensor:
        images, passes = request.images, self.config.passes
        maps = torch.empty_like(images)
        with progress(len(images) * passes, self.name, show_progress) as advance, frozen_parameters(self.forward_func):
            for index in range(len(images)):
                path = _SpectralPath(images[index], self.bounds[0], self.config.overlap)
                # In float64, so that the sum does not depend on its division into passes.
                total = torch.zeros_like(images[index], dtype=torch.float64)

                def one(rows: slice, index: int = index, path: _SpectralPath = path) -> Tensor:
                    points = path.points(rows.start, rows.stop, passes)
                    return (self._gradients(request, index, points[:-1].float()) * points.diff(dim=0)).sum(0)

                for rows, found in request.chunks.each(passes, one):
                    total += found
                    advance(rows.stop - rows.start)
                maps[index] = total.float()
        warn_of_strange(maps, request.image_ids)
        return maps.abs() if self.absolute else maps

    def _gradients(self, request: Request, index: int, points: Tensor) -> Tensor:
        """Compute the gradients of one image's score at points of its path, (n, C, H, W) float32."""
        read = probabilities if self.config.score == "probability" else scores
        place = torch.full((len(points),), index, device=points.device)
        with torch.enable_grad():
            output = call(self.forward_func, points.requires_grad_(), request.probed[0])
            values = read(request.targets.logits(output, place), request.reading)
            (gradients,) = torch.autograd.grad(values[:, request.targets.classes[index]].sum(), points)
        return gradients


class _SpectralPath:
    """The path from black to one image, (C, H, W), through its singular components; in float64."""

    def __init__(self, image: Tensor, black: float, overlap: float) -> None:
        left, sizes, self._right = torch.linalg.svd(image.double() - black, full_matrices=False)
        self._left = left * sizes[:, None]
        # A channel that is black throughout has no largest component to compare with.
        strengths = sizes / sizes[:, :1].clamp(min=torch.finfo(sizes.dtype).tiny)
        self._starts = (1 - overlap) * (1 - strengths)
        self._black, self._overlap = black, overlap

    def points(self, first: int, last: int, steps: int) -> Tensor:
        """Compute the points ``first`` to ``last``, both included, of a path of so many steps, (n, C, H, W)."""
        times = torch.arange(first, last + 1, dtype=torch.float64, device=self._starts.device) / steps
        weights = ((times[:, None, None] - self._starts) / self._overlap).clamp(0, 1)
        points: Tensor = (self._left * weights[:, :, None]) @ self._right + self._black
        return points
