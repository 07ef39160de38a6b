"""Measure stability: how far a method's map moves when the image moves a little."""

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
    """The distances that the maps of B images moved; lower is more stable, 0 is not at all.

    Attributes:
        scores: (B,), the mean or the largest of the distances.
        distances: (B, samples), between the map of the image and that of each perturbed copy.
        radius: of the perturbation, in pixel units.
        reduce: "mean" or "max".
        distance: what was measured.
        normalise: whether distances are divided by the map's own length.
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
    which Captum leaves to the caller. It depends on the seed and the image's id, not on the images beside it. A method
    that takes ``image_ids``, as all of this package do, gets the image's own id for every copy: a stochastic method
    explains them with the same noise, and what is measured is the image's change and not the method's chance.

    Small distances say nothing about a map being right: a method that always gives the same map scores 0.

    Args:
        method: anything with ``attribute(inputs, target=targets)``: a method of this package, or Captum's.
        images: (B, C, H, W) floating-point in [0, 1], as the method takes them.
        targets: the class of all images, or one per image: a list or a tensor (B,) of ints. Copies keep it.
        radius: largest change of a value, in pixel units, above 0.
        samples: perturbed copies per image; the cost is ``samples + 1`` attributions.
        reduce: the "mean" or the "max" of the copies' distances.
        distance: "l1", "l2", "squared_l2", over all values of the map, or "spearman": one minus the rank correlation
            of the values, in [0, 2], which sees the order alone (1 where one of the two maps is constant).
        normalise: divide by the same measure of the unperturbed map (by 1 where that is zero); "spearman" has no scale
            to divide by, and stays as it is.
        seed: number that the perturbations follow from, 64 bits; the method has its own.
        image_ids: (B,) integers in [0, 2^32 - 2] that name the images in the random streams; default: their position.
        internal_batch_size: passed on to the method where given.
        show_progress: draw a progress bar on standard error.

    Returns:
        `Stability`, on the images' device, in their type (float32 at least).

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
