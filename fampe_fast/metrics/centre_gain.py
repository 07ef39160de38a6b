"""Measure how much better a map is than the centre prior in insertion and deletion."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..runtime.compilation import Compile
from ..runtime.model import Model
from .centre_prior import centre_prior
from .insertion_deletion import InsertionDeletion, insertion_deletion
from .protocols import Protocol

__all__ = ["CentreGain", "centre_gain"]


class CentreGain(NamedTuple):
    """Scores of B maps relative to the centre prior's; 0 is as good as the prior, and higher is better in both."""

    insertion: Tensor
    """(B,) in [-1, 1], the map's insertion minus the prior's."""
    deletion: Tensor
    """(B,) in [-1, 1], the prior's deletion minus the map's."""
    of_maps: InsertionDeletion
    """The maps' own scores and curves."""
    of_prior: InsertionDeletion
    """The prior's scores and curves, for the same images."""


def centre_gain(
    model: Model,
    images: Tensor,
    maps: Tensor,
    targets: int | Sequence[int] | Tensor,
    *,
    protocol: str | Protocol = "rise",
    steps: int | None = None,
    passes: int | None = None,
    mean: float | Sequence[float] | Tensor | None = None,
    internal_batch_size: int | None = None,
    compile: Compile = "auto",
) -> CentreGain:
    """Measure insertion and deletion of maps, and how much better they are than those of a central Gaussian.

    Photographed objects are usually in the middle, so that ``centre_prior``, which depends on neither image nor model,
    scores well: only a map's gain over it shows the method's quality. The prior's curves depend only on the image, and
    are measured again in every call, which doubles the passes of ``insertion_deletion``.

    Arguments and errors are those of ``insertion_deletion``.

    Returns:
        `CentreGain`, on the images' device.
    """
    measure = partial(
        insertion_deletion,
        model,
        images,
        targets=targets,
        protocol=protocol,
        steps=steps,
        passes=passes,
        mean=mean,
        internal_batch_size=internal_batch_size,
        compile=compile,
    )
    own = measure(maps)  # which checks the images, too
    prior = measure(centre_prior(*images.shape[2:]).expand(len(images), 1, -1, -1))
    return CentreGain(own.insertion - prior.insertion, prior.deletion - own.deletion, own, prior)
