"""Provide labelled images offline: this package's textures, and scikit-learn's handwritten digits.

The textures are backgrounds of 1/f noise, half of them with a faint coarse and a faint fine texture. Their presence is
the class, and either band suffices to tell it; which band a classifier relies on depends on its training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..batch.extras import needs
from ..images.generated import BANDS, band_texture, generate
from .defence_nets import DigitNet, SmallNet
from .defence_settings import DefenceSettings


@dataclass(frozen=True, eq=False)
class Split:
    """The training and test images of classifiers.

    Attributes:
        images: (N, C, H, W) float32 in [0, 1], for training.
        labels: (N,) int64.
        test_images: (M, C, H, W), none of them among ``images``.
        test_labels: (M,) int64.
    """

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def digest(self) -> str:
        """Compute the SHA-256 of all images and labels, in hexadecimal."""
        digest = hashlib.sha256()
        for part in (self.images, self.labels, self.test_images, self.test_labels):
            digest.update(f"{tuple(part.shape)}".encode() + part.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class DataSet:
    """A data set on which classifiers are trained.

    Attributes:
        classes: names of the classes.
        split: makes the images for given settings.
        net: makes a network for a number of classes.
        rings: number of bands of equal width of its reliance curves.
        flips: whether training may mirror images without changing their class.
        own: its own defaults of some settings.
        check: checks settings for ``split`` before any work; raises the same errors.
    """

    classes: tuple[str, ...]
    split: Callable[[DefenceSettings], Split]
    net: Callable[[int], nn.Module]
    rings: int
    flips: bool
    own: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[DefenceSettings], object] = lambda settings: None

    def settings(self, **given: Any) -> DefenceSettings:
        """Combine the given settings, its own and the defaults, in this order; TypeError or ValueError if invalid."""
        return DefenceSettings(**{**self.own, **given})


def texture_split(settings: DefenceSettings, bands: Sequence[str] = tuple(BANDS)) -> Split:
    """Generate textures for training, and with the next seed for the test.

    Args:
        settings: seed, size, contrast and numbers of images.
        bands: names, in ``images.generated.BANDS``, of the textures that mark the class.
    """
    return Split(
        *_textures(settings.train_images, settings.seed, settings, bands),
        *_textures(settings.test_images, settings.seed + 1, settings, bands),
    )


def _textures(count: int, seed: int, settings: DefenceSettings, bands: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Generate images (count, 3, S, S) in [0, 1] and their classes: 1 with textures, 0 without, in turn."""
    backgrounds = generate(count, seed=seed, size=settings.size).backgrounds
    labels = torch.arange(count) % 2
    rng = np.random.default_rng(seed)
    textures = np.stack([sum(band_texture(rng, BANDS[band], settings.size) for band in bands) for _ in range(count)])
    added = settings.contrast * torch.from_numpy(textures).float() * labels[:, None, None]
    # Less contrast for the background, so that nothing is clipped.
    return (0.25 + 0.5 * backgrounds + added[:, None]).clamp(0, 1), labels


def digit_split(settings: DefenceSettings) -> Split:
    """Split scikit-learn's 1,797 digits, 8 x 8 grey pixels, into training and test images by the seed.

    Raises:
        ImportError: scikit-learn is not installed; the message says what to do.
        ValueError: more images than exist.
    """
    images, labels = _digits(settings)
    first, last = settings.train_images, settings.train_images + settings.test_images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(settings.seed))[:last]
    images, labels = images[order], labels[order]
    return Split(images[:first], labels[:first], images[first:], labels[first:])


def _digits(settings: DefenceSettings) -> tuple[Tensor, Tensor]:
    """Load all digits and their labels, if they are enough for the settings."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise needs("digits", "scikit-learn", "for the digits") from error
    found = load_digits()
    count, wanted = len(found.images), settings.train_images + settings.test_images
    if wanted > count:
        raise ValueError(f"train_images and test_images must be at most {count} digits together, got {wanted}")
    return torch.from_numpy(found.images / 16).float()[:, None], torch.from_numpy(found.target).long()


DATA: dict[str, DataSet] = {
    "digits": DataSet(
        tuple("0123456789"),
        digit_split,
        DigitNet,
        rings=5,  # the maximum for 8 x 8 pixels
        flips=False,
        own={"train_images": 1297, "test_images": 500, "train_steps": 600, "cutoff": 2.3, "eps": 0.15},
        check=_digits,
    ),
    "textures": DataSet(("plain background", "textured background"), texture_split, SmallNet, rings=12, flips=True),
}
"""The data sets, by the names in ``catalog.TRAINING_DATA``."""
