"""Measure stability: how much a method's map changes when the image changes a little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..checks import (
    LARGEST,
    check_count,
    check_flag,
    check_image_ids,
    check_positive,
    check_seed,
    check_targets,
    check_unit_images,
)
from ..progress import progress
from ..reference.philox import to_uniform
from .explaining import attribute_options, check_method, explain
from .random_words import Stream, random_words
from .rank_correlation import rank_agreement

__all__ = ["Stability", "stability"]

Reduce = Literal["mean", "max"]
Distance = Literal["l1", "l2", "squared_l2", "spearman"]


@dataclass(frozen=True, eq=False)
class Stability:
    """The changes of the maps of B images; lower is more stable, 0 is no change.

    Attributes:
        scores: (B,), the mean or the largest of the distances.
        distances: (B, samples), between the image's map and that of each perturbed copy.
        radius: radius of the perturbation, in pixel units.
        reduce: "mean" or "max".
        distance: the kind of distance.
        normalise: whether distances are divided by the map's norm.
    """

    scores: Tensor
    distances: Tensor
    radius: float
    reduce: Reduce
    distance: Distance
    normalise: bool


def stability(
    method: Any,
    images: Tensor,
    targets: int | Sequence[int] | Tensor,
    *,
    radius: float = 0.02,
    samples: int = 10,
    reduce: Reduce = "mean",
    distance: Distance = "l2",
    normalise: bool = True,
    seed: int = 0,
    image_ids: Sequence[int] | Tensor | None = None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> Stability:
    """Measure the distance between the map of an image and the maps of copies with a little noise.

    ``reduce="max"``: the max-sensitivity of Yeh et al., "On the (in)fidelity and sensitivity of explanations", NeurIPS
    2019 (arXiv 1901.09392, section 4), which Captum estimates as here (``sensitivity_max``: uniform noise, l2 norm,
    divided by the norm of the map). ``reduce="mean"``: the average sensitivity of Bhatt et al., IJCAI 2020 (arXiv
    2005.00631, definition 2), Xplique's ``AverageStability`` (whose "l2" is ``squared_l2`` with ``normalise=False``;
    it adds noise of one sign, and its radius has no effect).

    The noise is uniform in [-radius, radius] per pixel and channel, and the perturbed copies are clamped to [0, 1],
    which Captum leaves to the caller. It depends on the seed and the image's id, not on the other images. A method that
    accepts ``image_ids``, as all methods of this package do, gets the image's own id for every copy, so that a
    stochastic method uses the same noise and only the effect of the image's change is measured.

    Small distances do not mean that a map is right: a method that always returns the same map scores 0.

    Args:
        method: anything with ``attribute(inputs, target=targets)``: a method of this package, or Captum's.
        images: (B, C, H, W) floating-point in [0, 1], as the method takes them.
        targets: the class of all images, or one per image: a list or a tensor (B,) of ints. Copies keep it.
        radius: largest change of a value, in pixel units, above 0.
        samples: number of perturbed copies per image; the cost is ``samples + 1`` attributions.
        reduce: reduction over the copies' distances: "mean" or "max".
        distance: distance of maps: "l1", "l2" or "squared_l2" over all values, or "spearman": one minus the rank
            correlation, in [0, 2], which depends only on the order (1 if one of the two maps is constant).
        normalise: divide by the same norm of the unperturbed map (by 1 if that is zero); "spearman" is not divided, as
            it has no scale.
        seed: seed of the perturbations, 64 bits; the method has its own seed.
        image_ids: (B,) integers in [0, 2^32 - 2] that name the images in the random streams; default: their position.
        internal_batch_size: passed on to the method if given.
        show_progress: draw a progress bar on standard error.

    Returns:
        `Stability`, on the images' device, in their dtype (float32 at least).

    Raises:
        TypeError: a method without ``attribute``, one that gives no floating-point tensor, an argument of the wrong
            type.
        ValueError: wrong shapes, NaN or infinity (naming the image), images outside [0, 1], targets of the wrong
            number, a radius that is not above 0, an unknown distance, maps of varying shape.
        Exception: whatever the method raises.
    """
    check_method(method)
    with torch.no_grad():
        check_unit_images(images)
    classes = check_targets(targets, images)
    ids = check_image_ids(image_ids, images)
    seed, samples = check_seed(seed), check_count("samples", samples)
    radius = check_positive("radius", radius, expected="finite and above 0, in pixel units", largest=LARGEST)
    for name, value, known in (("reduce", reduce, get_args(Reduce)), ("distance", distance, get_args(Distance))):
        if value not in known:
            raise ValueError(f"{name} must be one of {list(known)}, got {value!r}")
    normalise = check_flag("normalise", normalise)
    kind = torch.promote_types(images.dtype, torch.float32)
    distances = torch.zeros((len(images), samples), dtype=kind, device="cpu")
    if len(images):
        options = attribute_options(method, ids, image_ids is not None, internal_batch_size)
        pixels = images.detach().to(kind)
        with progress(samples + 1, "stability", show_progress) as advance:
            still = explain(method, images, classes, options)
            advance(1)
            for sample in range(samples):
                moved = explain(method, _perturbed(pixels, radius, seed, ids, sample).to(images), classes, options)
                if moved.shape != still.shape:
                    raise ValueError(
                        f"the method's maps must keep their shape {tuple(still.shape)}, got {tuple(moved.shape)}"
                    )
                distances[:, sample] = _distance(still, moved, distance, normalise)
                advance(1)
    scores = distances.mean(1) if reduce == "mean" else distances.amax(1)
    device = images.device
    return Stability(scores.to(device), distances.to(device), radius, reduce, distance, normalise)


def _perturbed(pixels: Tensor, radius: float, seed: int, ids: Tensor, sample: int) -> Tensor:
    number = torch.full_like(ids[:1], sample)
    moved = torch.empty_like(pixels)
    for k, image in enumerate(pixels):  # one at a time: the words take ten times the memory of the image
        words = random_words(Stream.PERTURBATIONS, seed, ids[k : k + 1], number, image.numel())
        moved[k] = (image + radius * to_uniform(words, image.dtype).reshape(image.shape)).clamp(0, 1)
    return moved


def _distance(still: Tensor, moved: Tensor, distance: Distance, normalise: bool) -> Tensor:
    still, moved = still.flatten(1), moved.flatten(1)
    if distance == "spearman":
        return 1 - rank_agreement(still, moved)
    found, own = _length(moved - still, distance), _length(still, distance)
    return found / torch.where(own > 0, own, 1) if normalise else found


def _length(values: Tensor, distance: Distance) -> Tensor:
    if distance == "l1":
        return values.abs().sum(1)
    squared = (values**2).sum(1)
    return squared if distance == "squared_l2" else squared.sqrt()
