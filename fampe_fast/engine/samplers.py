"""Where perturbed samples come from: one spectrum per image and step, then any number of samples from it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .. import ops
from ..reference.dct_mix import dct_matrix
from .config import AttEXploreConfig, FAMPEConfig


class Stream(NamedTuple):
    """What names the random numbers of a batch."""

    seed: Tensor
    """() int64."""
    image_ids: Tensor
    """(B,) int64 in [0, 2^32)."""


class Rows(NamedTuple):
    """The (image, sample) pairs of a chunk."""

    image_index: Tensor
    """(P,) int64, position of the image in the batch."""
    samples: Tensor
    """(P,) int64, sample number."""


class Sampler(Protocol):
    """Makes perturbed samples of a batch of images."""

    def prepare(self, images: Tensor) -> Tensor | None:
        """What is computed once per image, from x_0: the cut-offs (B,), or None where there are none."""

    def transform(self, images: Tensor) -> Tensor:
        """What is computed once per step, from x_t: its spectrum."""

    def draw(
        self, spectrum: Tensor, prepared: Tensor | None, rows: Rows, stream: Stream, step: Tensor, width: int
    ) -> Tensor:
        """Samples (P, C, H, W) in pixel space."""


class BandMixSampler:
    """FAMPE's samples: band-weighted spectra with noise drawn straight in the spectrum."""

    def __init__(self, config: FAMPEConfig) -> None:
        self._config = config

    def prepare(self, images: Tensor) -> Tensor:
        """The energy cut-off of each image, or the fixed one."""
        if self._config.cutoff is not None:
            return images.new_full((len(images),), self._config.cutoff)
        return ops.energy_cutoff(self.transform(images), images.shape[-1], self._config.tau, self._config.include_dc)

    def transform(self, images: Tensor) -> Tensor:
        """``rfft2``, unscaled."""
        spectrum: Tensor = torch.fft.rfft2(images)
        return spectrum

    def draw(
        self, spectrum: Tensor, prepared: Tensor | None, rows: Rows, stream: Stream, step: Tensor, width: int
    ) -> Tensor:
        """One mix and one inverse transform."""
        assert prepared is not None
        numbers = (*self._config.band_weights(), self._config.sigma)
        weights = torch.tensor([numbers], device=spectrum.device).expand(len(prepared), -1)
        mixed = ops.band_mix(
            spectrum,
            prepared,
            weights,
            stream.image_ids,
            rows.image_index,
            rows.samples,
            stream.seed,
            step,
            width,
            self._config.mode == "allpass",
        )
        samples: Tensor = torch.fft.irfft2(mixed, s=(spectrum.shape[-2], width))
        return samples


class DCTSampler:
    """AttEXplore's samples: noise and random multipliers on the discrete cosine transform."""

    def __init__(self, config: AttEXploreConfig) -> None:
        self._config = config

    def prepare(self, images: Tensor) -> None:
        """Nothing: every frequency is treated alike."""

    def transform(self, images: Tensor) -> Tensor:
        """Orthonormal DCT-II along both axes."""
        rows, columns = (_dct(size, images.device) for size in images.shape[-2:])
        return rows @ images @ columns.T

    def draw(
        self, spectrum: Tensor, prepared: Tensor | None, rows: Rows, stream: Stream, step: Tensor, width: int
    ) -> Tensor:
        """One mix and one inverse transform."""
        weights = torch.tensor([[self._config.rho, self._config.sigma]], device=spectrum.device)
        mixed = ops.dct_mix(
            spectrum,
            weights.expand(len(spectrum), -1),
            stream.image_ids,
            rows.image_index,
            rows.samples,
            stream.seed,
            step,
        )
        down, across = (_dct(size, spectrum.device) for size in spectrum.shape[-2:])
        return down.T @ mixed @ across


@lru_cache(maxsize=16)
def _dct(size: int, device: torch.device) -> Tensor:
    return dct_matrix(size, device)
