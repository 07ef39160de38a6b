"""Whether samples depend on batch and chunk on a GPU: spectra and smooth sizes do not, other pixels by rounding alone.

On a CPU ``test_path`` holds samples to the bit. cuFFT and cuBLAS choose their algorithms by the batch, too. On an H100
with torch 2.11, pixels of FAMPE's samples had the same bits in every chunk where no side has a prime factor above 7.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fampe_fast import AttEXploreConfig, FAMPEConfig, ops
from fampe_fast.engine.samplers import BandMixSampler, Batch, Chunk, DCTSampler, Sampler
from fampe_fast.testing.error_rule import EPSILON

from .test_path import draw

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

DEVICE = torch.device("cuda")
IMAGES, SAMPLES = 4, 16
PAIRS = [(image, number) for image in range(IMAGES) for number in range(SAMPLES)]
CHUNKS = (1, 2, 7, 20, 33)
SMOOTH = [(32, 32), (224, 224), (225, 225), (240, 320), (384, 384)]
"""Sizes without a prime factor above 7."""
SIZES = [*SMOOTH, (299, 299), (331, 331), (333, 500)]
SAMPLERS = {"FFT": BandMixSampler(FAMPEConfig()), "DCT": DCTSampler(AttEXploreConfig())}


def drawn(sampler: Sampler, size: tuple[int, int], chunk: int) -> dict[Any, Tensor]:
    images = torch.rand(IMAGES, 3, *size, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    with DEVICE:
        return draw(sampler, images, list(range(IMAGES)), PAIRS, chunk)


def largest_difference(found: dict[Any, Tensor], expected: dict[Any, Tensor]) -> float:
    """Between samples, in units of float32's epsilon times a sample's largest value."""
    return max(
        float((found[key] - sample).abs().max() / sample.abs().max()) / EPSILON for key, sample in expected.items()
    )


class ExactlyBack:
    """A sampler that transforms the same float32 spectra back in float64."""

    def __init__(self, sampler: Sampler) -> None:
        self.transform, self.prepare, self._draw = sampler.transform, sampler.prepare, sampler.draw

    def draw(self, batch: Batch, chunk: Chunk) -> Tensor:
        ifft2, irfft2 = torch.fft.ifft2, torch.fft.irfft2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.fft, "ifft2", lambda x, norm: ifft2(x.to(torch.complex128), norm=norm))
            patch.setattr(torch.fft, "irfft2", lambda x, s, norm: irfft2(x.to(torch.complex128), s, norm=norm))
            patch.setattr(ops, "separable_transform", lambda x, a, b: a.double() @ x.double() @ b.double().T)
            return self._draw(batch, chunk)


def rounding(name: str, size: tuple[int, int]) -> float:
    """Bound the error of an inverse transform in float32, in the units of ``largest_difference``.

    A rounding errs by u^2 / 3 of its result's square on the average, u = epsilon / 2, and roundings are independent
    (Higham and Mary, 2019). The variances add up, in units of u^2 / 3 of the largest pixel's square:

    - DCT: a product of matrices rounds n sums, in whatever order, none above the result's size: H + W.
    - FFT: a stage a +- w b rounds w, its product (twice) and the sum; b is half of the result's square, so the three
      count half: 2.5. A side n with a large prime factor takes Bluestein's algorithm, more than any other: two
      transforms of at most 4n numbers and three products.

    Beyond 7 standard deviations lies one pixel in 4e11, and the largest case has 3e7 in each chunk.
    """
    stages = sum(2 * math.log2(4 * side) + 3 for side in size)
    return 7 * math.sqrt((sum(size) if name == "DCT" else 2.5 * stages) / 3) / 2


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_spectra_are_the_same_to_the_bit(name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The samplers without their inverse transforms."""
    monkeypatch.setattr(torch.fft, "ifft2", lambda spectrum, norm: spectrum)
    monkeypatch.setattr(torch.fft, "irfft2", lambda spectrum, s, norm: torch.view_as_real(spectrum))
    monkeypatch.setattr(ops, "separable_transform", lambda values, rows, columns: values)
    together = drawn(SAMPLERS[name], size, len(PAIRS))
    for chunk in CHUNKS:
        assert largest_difference(drawn(SAMPLERS[name], size, chunk), together) == 0, chunk


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", SAMPLERS)
def test_pixels_are_the_same_but_for_rounding(name: str, size: tuple[int, int]) -> None:
    exact = drawn(ExactlyBack(SAMPLERS[name]), size, len(PAIRS))
    for chunk in (*CHUNKS, len(PAIRS)):
        assert largest_difference(drawn(SAMPLERS[name], size, chunk), exact) <= rounding(name, size), chunk


@pytest.mark.parametrize("size", SMOOTH, ids=str)
def test_pixels_by_fft_of_smooth_sizes_are_the_same_to_the_bit(size: tuple[int, int]) -> None:
    together = drawn(SAMPLERS["FFT"], size, len(PAIRS))
    for chunk in CHUNKS:
        assert largest_difference(drawn(SAMPLERS["FFT"], size, chunk), together) == 0, chunk


@pytest.mark.parametrize("size", SMOOTH, ids=str)
def test_real_transforms_of_smooth_sizes_are_the_same_to_the_bit(size: tuple[int, int]) -> None:
    """The transform of the reference and of odd widths by itself, by the number of signals in one call."""
    images = torch.rand(len(PAIRS), 3, *size, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    spectra = torch.fft.rfft2(images)
    together = torch.fft.irfft2(spectra, s=size)
    for chunk in CHUNKS:
        parts = [torch.fft.irfft2(part, s=size) for part in spectra.split(chunk)]
        assert torch.equal(torch.cat(parts), together), chunk
