"""Find the weights of a model's depths that give the most faithful maps on a few labelled images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import check_count, check_flag
from ..engine.config import PathConfig
from ..engine.depth import DepthEvidence, combined_map, evidence_of_pixels, layer_weights_of, pixel_weight_of
from ..metrics import Estimate, mean_and_error, paired_difference
from ..models.identity import identity_of
from ..progress import UpTo, progress
from ..runtime.model import Model
from .base import PathMethod
from .calibration import DepthCalibration
from .fampe import FAMPE
from .tuning import Faithfulness

PIXEL_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
LAYER_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
GATE_FLOORS = (0.1, 0.25, 0.5, 1.0, 3.0)
ROUNDS = 2
LEAST = 2
"""Least number of images in a search: a single one has no standard error."""

_ROUNDING = 1e-6  # rounding error of a float32 score, which is not a gain


class DepthWeights(NamedTuple):
    """One combination of weights of the depths.

    Attributes:
        pixels: weight of the pixels' evidence.
        layers: weight of each layer, from fine to coarse.
        floor: floor of the gate.
    """

    pixels: float
    layers: tuple[float, ...]
    floor: float

    @classmethod
    def of(cls, config: PathConfig, names: Sequence[str]) -> DepthWeights:
        """Read the combination of a configuration for these layers.

        Raises:
            ValueError: it has weights for another number of layers.
        """
        pixels, layers = pixel_weight_of(config), layer_weights_of(names, config)
        # With a single layer, the gate, only the pixels have detail.
        return cls(pixels if pixels or any(layers) else 1.0, layers, config.gate_floor)

    def applied(self, config: PathConfig) -> PathConfig:
        """Put the combination into a configuration."""
        return replace(config, pixel_weight=self.pixels, layer_weights=self.layers, gate_floor=self.floor)

    def variations(self) -> list[list[DepthWeights]]:
        """List, for one number after the other, the combinations that differ only in it, the layers first."""
        layers = [
            [self._replace(layers=(*self.layers[:k], weight, *self.layers[k + 1 :])) for weight in LAYER_WEIGHTS]
            for k in range(len(self.layers))
        ]
        pixels = [[self._replace(pixels=weight) for weight in PIXEL_WEIGHTS]]
        floors = [[self._replace(floor=floor) for floor in GATE_FLOORS]]
        return [
            [other for other in others if other != self and (other.pixels or any(other.layers))]
            for others in (*layers, *pixels, *floors)
        ]


Judge = Callable[[DepthWeights], Sequence[float]]
"""A function from a combination to the scores of the images' maps, one number per image."""


class Remembered:
    """Calls a judge once per combination, and remembers the scores."""

    def __init__(self, judge: Judge, advance: Callable[[int], None] = lambda count: None) -> None:
        """Store a judge, and a function to call with each new combination."""
        self._judge, self._advance = judge, advance
        self.known: dict[DepthWeights, Sequence[float]] = {}

    def __call__(self, weights: DepthWeights) -> Sequence[float]:
        """Return the scores of a combination."""
        if weights not in self.known:
            self.known[weights] = self._judge(weights)
            self._advance(1)
        return self.known[weights]


def search_weights(judge: Judge, start: DepthWeights) -> DepthWeights:
    """Search for the best weights, one number after the other, in at most two rounds.

    A number is changed only if the mean paired gain exceeds its standard error, as on a few images half of all changes
    are better by chance. This is a weak test, which a worthless change passes about one time in six: measure the gain
    on other images.

    Args:
        judge: the scores of at least 2 images.
        start: the first combination, which is also the result if nothing is better.
    """
    best = start
    for _ in range(ROUNDS):
        before = best
        for place in range(len(best.variations())):
            best = _better(judge, best, best.variations()[place])
        if best == before:
            break
    return best


def _better(judge: Judge, current: DepthWeights, others: Sequence[DepthWeights]) -> DepthWeights:
    gains = {other: paired_difference(judge(other), judge(current)) for other in others}
    clear = [other for other in others if gains[other].mean > max(gains[other].standard_error or 0.0, _ROUNDING)]
    return max(clear, key=lambda other: gains[other].mean, default=current)


def search_in_parts(parts: Sequence[Judge], start: DepthWeights) -> tuple[DepthWeights, Estimate | None]:
    """Search on all images, and measure the gain of such a search on unseen images.

    Args:
        parts: a judge of all images, or two, each of one half of them.
        start: the first combination.

    Returns:
        The best weights on all images; and, for two parts, the mean gain over ``start`` of each part with the weights
        that fit the other one. It estimates the gain of the search, not of these weights, which have seen all images.
    """
    best = search_weights(lambda weights: list(chain.from_iterable(part(weights) for part in parts)), start)
    if len(parts) < 2:
        return best, None
    gained: list[float] = []
    for fitted, other in (parts, parts[::-1]):
        found = search_weights(fitted, start)
        gained += [one - before for one, before in zip(other(found), other(start), strict=True)]
    return best, mean_and_error(gained)


def most_evaluations(start: DepthWeights, parts: int) -> int:
    """Estimate the largest number of combinations to be scored, for each part separately."""
    return parts * (1 + ROUNDS * sum(map(len, start.variations())))


def outcome_of(
    model: Mapping[str, object],
    names: Sequence[str],
    method: PathMethod[Any],
    start: DepthWeights,
    parts: Sequence[Remembered],
    protocol: str,
) -> DepthCalibration:
    """Search, and summarise the result.

    Args:
        model: name and fingerprint, as ``identity_of`` gives them.
        names: names of the layers.
        method: the method whose evidence is combined.
        start: the first combination.
        parts: as in ``search_in_parts``.
        protocol: protocol of insertion and deletion.
    """
    best, held_out = search_in_parts(parts, start)
    score, before = (mean_and_error([one for part in parts for one in part(found)]) for found in (best, start))
    return DepthCalibration(
        model=str(model["model"]),
        fingerprint=str(model["fingerprint"]),
        layers=tuple(names),
        pixel_weight=best.pixels,
        layer_weights=best.layers,
        gate_floor=best.floor,
        score=score,
        default_score=before,
        held_out=held_out,
        protocol=protocol,
        images=score.n,
        evaluations=len(set().union(*(part.known for part in parts))),
        passes=method.passes,
    )


def check_combines(method: PathMethod[Any], model: Model) -> None:
    """Refuse a method whose maps do not depend on weights of depths, or whose layers have no names.

    Raises:
        TypeError: it is not a path method, or the model is not an nn.Module.
        ValueError: it takes no views of the image, or explains another model.
    """
    if not isinstance(method, PathMethod):
        raise TypeError(f"method must be FAMPE, or another path method with views, got {type(method).__name__}")
    if not isinstance(model, nn.Module):
        raise TypeError(f"layer names need an nn.Module, but the model is a {type(model).__name__}")
    if method.forward_func is not model:
        raise ValueError("method was made with another model than the one to calibrate")
    if not method.config.views:
        raise ValueError(f"{method.name} without views has no depths to weigh: set views=1 or 2, or passes")


def collect_evidence(
    method: PathMethod[Any],
    images: Tensor,
    targets: Tensor,
    image_ids: Sequence[int] | Tensor | None = None,
    internal_batch_size: int | None = None,
) -> DepthEvidence:
    """Collect the evidence that a method combines into maps; the pixels' is the path's, if it has one.

    Args and errors are those of ``PathMethod.attribute``.
    """
    _, details = method.attribute(
        images, targets, image_ids=image_ids, internal_batch_size=internal_batch_size, return_details=True
    )
    assert details.depths is not None  # it takes views
    pixels = evidence_of_pixels(details.attribution) if method.config.steps else details.depths.pixels
    return details.depths._replace(pixels=pixels)


class _Part(NamedTuple):
    """Images with their evidence."""

    images: Tensor
    targets: Tensor
    depths: DepthEvidence

    def some(self, rows: Tensor) -> _Part:
        depths = self.depths._replace(pixels=self.depths.pixels[rows], layers=self.depths.layers[rows])
        return _Part(self.images[rows], self.targets[rows], depths)


def calibrate_depths(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor]],
    method: PathMethod[Any] | None = None,
    *,
    protocol: str = "rise",
    metric_steps: int = 28,
    mean: float | Sequence[float] | Tensor | None = None,
    held_out: bool = True,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> DepthCalibration:
    """Search for the weights of a model's depths that give the most faithful maps on average.

    The evidence is collected once and combined many times. Starting from the method's own weights, each layer's weight
    (0, 0.5, 1, 2), the pixels' (0, 0.5, 1, 2, 4) and the gate's floor (0.1, 0.25, 0.5, 1, 3) are varied in turn, in at
    most two rounds, and a change is kept only if it gains more than its paired standard error. About 30 combinations
    are tried, each with ``2 (metric_steps + 1)`` forward passes per image.

    Args:
        model: classifier in pixel space, an nn.Module in evaluation mode.
        batches: images (B, C, H, W) and targets (B,), all images of one size, at least 2; they are kept in memory with
            their evidence.
        method: the method whose evidence is combined, made with the model and views; default: ``FAMPE(model)``.
        protocol: protocol of insertion and deletion.
        metric_steps: steps of insertion and deletion.
        mean: the mean colour that the protocol may need; default: the model's ``mean``.
        held_out: also fit on the 1st, 3rd, ... image and score on the others, and the other way round; left out with
            fewer than 4 images.
        internal_batch_size: samples and images per model pass.
        show_progress: show a bar of the combinations on standard error.

    Returns:
        The weights for this model, with their score, the default's, and the gain on held-out images.

    Raises:
        TypeError: a method that combines no depths, a model that is not an nn.Module, batches that are not pairs of
            tensors.
        ValueError: a method without views or of another model, fewer than 2 images, images of different sizes, or
            arguments that methods and metrics refuse.
    """
    metric_steps, held_out = check_count("metric_steps", metric_steps), check_flag("held_out", held_out)
    method = FAMPE(model) if method is None else method
    check_combines(method, model)
    judge = Faithfulness(model, protocol, metric_steps, mean, internal_batch_size, False)
    explained = _explained(batches, method, internal_batch_size)
    names = explained[0].depths.names
    start, config = DepthWeights.of(method.config, names), method.config
    count = sum(len(part.images) for part in explained)
    if count < LEAST:
        raise ValueError(f"a calibration needs at least {LEAST} images, got {count}")
    parts = _halves(explained) if held_out and count >= 2 * LEAST else [explained]

    def scores(part: Sequence[_Part], weights: DepthWeights) -> list[float]:
        changed = weights.applied(config)
        return [
            score
            for images, targets, depths in part
            for score in judge(images, targets, combined_map(depths, depths.pixels, changed), None)
        ]

    tries = most_evaluations(start, len(parts))
    with progress(tries, "combinations", show_progress) as advance:
        told = UpTo(tries, advance)
        judges = [Remembered(lambda weights, part=part: scores(part, weights), told) for part in parts]  # type: ignore[misc]
        found = outcome_of(identity_of(model), names, method, start, judges, protocol)
        told.finish()
    return found


def _explained(
    batches: Iterable[tuple[Tensor, Tensor]], method: PathMethod[Any], internal_batch_size: int | None
) -> list[_Part]:
    explained: list[_Part] = []
    count = 0
    for batch in batches:
        if not (isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
            raise TypeError(f"the batches must be pairs (images, targets) of tensors, got {type(batch).__name__}")
        images, targets = batch
        if not len(images):
            continue
        if explained and images.shape[1:] != explained[0].images.shape[1:]:
            sizes = tuple(images.shape[1:]), tuple(explained[0].images.shape[1:])
            raise ValueError(f"all images must have one size, got {sizes[0]} after {sizes[1]}")
        depths = collect_evidence(method, images, targets, list(range(count, count + len(images))), internal_batch_size)
        explained.append(_Part(images, targets, depths))
        count += len(images)
    if not explained:
        raise ValueError("the batches gave no images")
    return explained


def _halves(explained: Sequence[_Part]) -> list[list[_Part]]:
    """Take every other image, independent of the batches."""
    halves: list[list[_Part]] = [[], []]
    count = 0
    for part in explained:
        for half in (0, 1):
            rows = torch.arange((half - count) % 2, len(part.images), 2, device=part.images.device)
            if len(rows):
                halves[half].append(part.some(rows))
        count += len(part.images)
    return halves
