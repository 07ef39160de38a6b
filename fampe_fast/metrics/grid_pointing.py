"""Play the grid pointing game: test whether a map marks the target object among several in one image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_choice, check_count, check_image_ids, check_seed, check_targets, check_unit_images
from ..runtime.isolation import isolated
from ..runtime.model import check_model
from ..runtime.model_probe import probe, takes_size
from .explaining import attribute_options, check_method, explain, name_of
from .localisation import relevance_mass
from .partners import Partners
from .random_words import Stream, random_words

__all__ = ["GridPointing", "grid_pointing"]

Cells = Literal["reduced", "native"]


class GridPointing(NamedTuple):
    """Scores of a method for B images, each in its own composite."""

    scores: Tensor
    """(B,) in [0, 1], the share of the positive map in the image's cell; higher is better, chance is 1 / grid^2."""
    cells: Tensor
    """(B,) int64, the image's cell, counted from 0, row by row."""
    partners: Tensor
    """(B, grid^2 - 1) int64, the ids of the images in the other cells, row by row."""


def grid_pointing(
    method: Any,
    images: Tensor,
    targets: int | Sequence[int] | Tensor,
    *,
    partners: Partners | None = None,
    grid: int = 2,
    cells: Cells = "reduced",
    seed: int = 0,
    image_ids: Sequence[int] | Tensor | None = None,
    internal_batch_size: int | None = None,
) -> GridPointing:
    """Measure the share of a map on the object of the explained class, next to objects of other classes.

    Böhle, Fritz and Schiele, "Convolutional dynamic alignment networks for interpretable classifications", CVPR 2021
    (arXiv 2104.00032), the localisation metric. Each image is put into a grid with images of other
    classes, no two of one class, and the composite is explained for the image's class. The score is the share of the
    positive map that lies in its cell; the map is summed over the channels, and negative sums count as zero. A map that
    does not depend on the class, such as a centre prior or an edge detector, scores ``1 / grid^2`` on average; a map
    without positive values scores 0.

    The authors use images of which the model is confident, and cells of the model's own input size, which a
    convolutional network accepts. Here every image counts, and by default the composite has the model's input size, so
    that every model can be scored.

    The cell and the partners of an image depend on the seed, its id and the partners' ids, not on the other images of
    the call.

    Args:
        method: anything with ``attribute(inputs, target=targets)``: a method of this package, or Captum's.
        images: (B, C, H, W) floating-point in [0, 1], as the method takes them.
        targets: the class of all images, or one per image: a list or a tensor (B,) of ints.
        partners: images for the other cells, of the same shape; default: the images of the call.
        grid: number of cells per row and column, at least 2.
        cells: size of a cell: "reduced", each image shrunk (bilinear, antialiased) so that the composite has its size;
            or "native", the image's own size, for models that accept an image ``grid`` times as high and wide.
        seed: seed of the cells and partners, 64 bits; the method has its own seed.
        image_ids: (B,) integers in [0, 2^32 - 2] that name the images in the random streams; default: their position.
        internal_batch_size: passed on to the method if given.

    Returns:
        `GridPointing`, on the images' device, scores in float64.

    Raises:
        TypeError: a method without ``attribute``, one that gives no floating-point tensor, an argument of the wrong
            type.
        ValueError: wrong shapes, NaN or infinity (naming the image), images outside [0, 1], targets of the wrong
            number, fewer classes than the grid needs, a grid below 2 or finer than the image, a model that does not
            take native cells, maps that are not of the composite's size.
        Exception: whatever the method raises.
    """
    check_method(method)
    check_unit_images(images)
    classes = check_targets(targets, images)
    ids = check_image_ids(image_ids, images)
    grid, seed = check_count("grid", grid, at_least=2), check_seed(seed)
    cells = check_choice("cells", cells, get_args(Cells))
    options = attribute_options(method, ids, image_ids is not None, internal_batch_size)
    if partners is not None and not isinstance(partners, Partners):
        raise TypeError(f"partners must be Partners or None, got {type(partners).__name__}")
    pool = Partners.of(images, classes, ids) if partners is None else partners
    # Without images, check that the pool's own images find partners, as runs do before their work.
    pool.check(classes if len(images) else pool.targets, grid**2 - 1)
    height, width = images.shape[2:]
    if grid > min(height, width):
        raise ValueError(f"a grid of {grid} x {grid} is finer than images of {height} x {width}")
    if cells == "native":
        height, width = grid * height, grid * width
        _check_size(method, images, height, width)

    # [B], a random 32-bit word each, as a share of the cells
    places = random_words(Stream.CELLS, seed, ids, torch.zeros_like(ids), 1)[:, 0] * grid**2 >> 32
    bounds = [(slice(*rows), slice(*columns)) for rows in _parts(height, grid) for columns in _parts(width, grid)]
    composites = images.new_empty((len(images), images.shape[1], height, width))
    masks = torch.zeros((len(images), height, width), dtype=torch.bool, device="cpu")
    others = torch.zeros((len(images), grid**2 - 1), dtype=torch.long, device="cpu")
    for k, (place, image_id, target) in enumerate(zip(*(v.tolist() for v in (places, ids, classes)), strict=True)):
        chosen = pool.choose(image_id, target, grid**2 - 1, seed)
        members = [_partner(pool, number, images) for number in chosen]
        members.insert(place, images[k])
        for where, member in zip(bounds, members, strict=True):
            composites[k][:, where[0], where[1]] = _resized(member, where)
        masks[k][bounds[place]] = True
        others[k] = pool.ids[chosen]
    scores = torch.zeros(len(images), dtype=torch.float64, device="cpu")
    if len(images):
        maps = explain(method, composites, classes, options)
        if maps.ndim != 4 or maps.shape[2:] != (height, width):
            raise ValueError(f"the method must return maps of {height} x {width}, got shape {tuple(maps.shape)}")
        scores = relevance_mass(maps, masks)
    device = images.device
    return GridPointing(scores.to(device), places, others.to(device))


def _parts(side: int, grid: int) -> list[tuple[int, int]]:
    """Split a side into parts whose lengths differ by at most 1."""
    edges = [side * k // grid for k in range(grid + 1)]
    return list(pairwise(edges))


def _partner(pool: Partners, place: int, images: Tensor) -> Tensor:
    image = pool.load(place)
    if image.shape != images.shape[1:]:
        raise ValueError(
            f"partners must have the images' shape {tuple(images.shape[1:])}, the one with id {int(pool.ids[place])} "
            f"has {tuple(image.shape)}"
        )
    return image.to(images)


def _resized(image: Tensor, where: tuple[slice, slice]) -> Tensor:
    height, width = (part.stop - part.start for part in where)
    if image.shape[1:] == (height, width):
        return image
    pixels = image[None].to(torch.promote_types(image.dtype, torch.float32))
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1).to(image)


@isolated()
def _check_size(method: Any, images: Tensor, height: int, width: int) -> None:
    """Refuse composites that the method's model does not accept, as far as the method tells its model.

    Raises:
        ValueError: the model fails on such an image, or returns an output of another form.
    """
    model = getattr(method, "forward_func", None)
    if not callable(model):
        return
    shown = images[:1]
    if not len(shown):
        noise = torch.rand((1, *images.shape[1:]), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        shown = noise.to(images)
    check_model(model, shown)
    if not takes_size(model, shown, probe(model, shown), height, width):
        raise ValueError(
            f"cells='native' makes composites of {height} x {width}, which {name_of(model)} does not take; it "
            f"takes {shown.shape[2]} x {shown.shape[3]}: use cells='reduced'"
        )
