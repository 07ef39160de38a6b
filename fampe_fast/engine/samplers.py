"""Draw perturbed samples: one spectrum per image and step, then any number of samples from it."""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .. import ops
from ..reference.dct_mix import dct_matrix
from .config import AttEXploreConfig, FAMPEConfig, PathConfig
from .targets import Targets


class Prepared(NamedTuple):
    """The results that are computed once per image, from x_0."""

    weights: Tensor
    """(B, K) float32: of the bands and the noise."""
    cutoff: Tensor | None
    """(B,) float32: cut-offs in cycles over the shorter side, or None where there are none."""
    transform: tuple[Tensor, ...] = ()
    """The matrices (H, H) and (W, W) of a transform that is done by matrices."""


class Batch(NamedTuple):
    """The images and targets of one step, and the state of their random numbers."""

    spectrum: Tensor
    """Sampler's transform of x_t."""
    prepared: Prepared
    seed: Tensor
    """() int64; it names the random numbers, with the step, the image's id and the sample's number."""
    step: Tensor
    """() int64, t."""
    image_ids: Tensor
    """(B,) int64 in [0, 2^32)."""
    targets: Targets
    height: int
    """H of the images, in pixels."""
    width: int
    """W of the images, which half a spectrum does not tell."""


class Chunk(NamedTuple):
    """Consecutive (image, sample) pairs, image by image, either all or none with input diversity."""

    image_index: Tensor
    """(P,) int64, position of the image in the batch."""
    samples: Tensor
    """(P,) int64, sample number."""
    placements: Tensor | None = None
    """(P, 4) int64 where the samples are diversified: resized height and width, top, left, in pixels."""


class Sampler(Protocol):
    """Makes perturbed samples of a batch of images."""

    @property
    def kind(self) -> Hashable:
        """Everything that ``draw`` depends on besides its arguments: samplers of one kind share compiled code."""

    def prepare(self, images: Tensor, spectrum: Tensor) -> Prepared:
        """Compute what is needed once per image, from x_0 and its transform."""

    def transform(self, images: Tensor) -> Tensor:
        """Compute what is needed once per step, from x_t: its spectrum."""

    def draw(self, batch: Batch, chunk: Chunk) -> Tensor:
        """Draw samples (P, C, H, W) in pixel space."""


def sampler_of(config: PathConfig) -> Sampler:
    """Make the sampler of a configuration; a plain ``PathConfig`` uses the unperturbed images."""
    if isinstance(config, FAMPEConfig):
        return BandMixSampler(config)
    return DCTSampler(config) if isinstance(config, AttEXploreConfig) else ImageSampler()


class ImageSampler:
    """Returns the unperturbed images as samples."""

    @property
    def kind(self) -> Hashable:
        """There is one kind."""
        return "image"

    def prepare(self, images: Tensor, spectrum: Tensor) -> Prepared:
        """Compute nothing: the images are the samples."""
        return Prepared(images.new_zeros((len(images), 1)), None)

    def transform(self, images: Tensor) -> Tensor:
        """Take the images as they are."""
        return images

    def draw(self, batch: Batch, chunk: Chunk) -> Tensor:
        """Repeat each image for its samples."""
        return batch.spectrum[chunk.image_index]


class BandMixSampler:
    """FAMPE's samples: band-weighted spectra with noise drawn straight in the spectrum."""

    def __init__(self, config: FAMPEConfig) -> None:
        self._config = config
        self._shared_multiplier = config.mode == "allpass"

    @property
    def kind(self) -> Hashable:
        """The sampler's name, whether both bands share their multipliers, and the mask's shape."""
        return "band_mix", self._shared_multiplier, self._config.mask_shape

    def prepare(self, images: Tensor, spectrum: Tensor) -> Prepared:
        """Compute the mode's numbers divided by HW, and the energy cut-off of each image or the fixed one.

        The mix is linear in these numbers, so its result is divided by HW, and ``band_samples`` does not do it.
        """
        config, (height, width) = self._config, images.shape[-2:]
        bands = (number / (height * width) for number in config.band_weights())
        if config.cutoff is not None:
            cutoff = images.new_full((len(images),), config.cutoff)
        else:
            cutoff = ops.energy_cutoff(spectrum, width, config.tau, config.include_dc)
        return Prepared(_for_every_image((*bands, config.sigma), images), cutoff)

    def transform(self, images: Tensor) -> Tensor:
        """Compute ``rfft2``, unscaled."""
        if not len(images):  # which MKL refuses
            return images.new_zeros((*images.shape[:-1], images.shape[-1] // 2 + 1), dtype=torch.complex64)
        spectrum: Tensor = torch.fft.rfft2(images)
        return spectrum

    def draw(self, batch: Batch, chunk: Chunk) -> Tensor:
        """Mix, and transform back."""
        weights, cutoff, _ = batch.prepared
        assert cutoff is not None
        return ops.band_samples(
            batch.spectrum,
            cutoff,
            weights,
            batch.image_ids,
            chunk.image_index,
            chunk.samples,
            batch.seed,
            batch.step,
            batch.width,
            self._shared_multiplier,
            self._config.mask_shape,
        )


class DCTSampler:
    """AttEXplore's samples: noise and random multipliers on the discrete cosine transform."""

    def __init__(self, config: AttEXploreConfig) -> None:
        self._config = config

    @property
    def kind(self) -> Hashable:
        """There is one kind."""
        return "dct_mix"

    def prepare(self, images: Tensor, spectrum: Tensor) -> Prepared:
        """Compute two numbers; there is no cut-off, every frequency is treated alike."""
        matrices = tuple(_dct(size, images.device) for size in images.shape[-2:])
        return Prepared(_for_every_image((self._config.rho, self._config.sigma), images), None, matrices)

    def transform(self, images: Tensor) -> Tensor:
        """Compute the orthonormal DCT-II along both axes."""
        rows, columns = (_dct(size, images.device) for size in images.shape[-2:])
        return ops.separable_transform(images, rows, columns)

    def draw(self, batch: Batch, chunk: Chunk) -> Tensor:
        """Mix, and transform back."""
        weights, _, (down, across) = batch.prepared
        mixed = ops.dct_mix(
            batch.spectrum, weights, batch.image_ids, chunk.image_index, chunk.samples, batch.seed, batch.step
        )
        return ops.separable_transform(mixed, down.T, across.T)


def _for_every_image(numbers: tuple[float, ...], images: Tensor) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float32, device=images.device).repeat(len(images), 1)


@lru_cache(maxsize=16)
def _dct(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is kept for calls outside, too
        return dct_matrix(size, device)
