"""Whether samples hang on batch and chunk on a GPU: their spectra must not, and their pixels are what this decides.

On a CPU ``test_path`` holds samples to the bit. cuFFT and cuBLAS choose their algorithms by the batch, and do not say
whether a signal's last bits depend on it. Where the tests of pixels to the bit fail, docs and docstrings keep what they
say of GPUs; where they pass on the GPUs that matter, they may promise what they promise of a CPU. These alone are not
marked ``gpu``: no kernel is wrong where they fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fampe_fast import AttEXploreConfig, FAMPEConfig, ops
from fampe_fast.engine.samplers import BandMixSampler, DCTSampler, Sampler
from fampe_fast.testing.error_rule import EPSILON

from .test_path import draw

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

IMAGES, SAMPLES = 4, 16
PAIRS = [(image, number) for image in range(IMAGES) for number in range(SAMPLES)]
CHUNKS = (1, 2, 7, 20, 33)
SIZES = [(224, 224), (299, 299), (32, 32), (240, 320)]


def drawn(sampler: Sampler, size: tuple[int, int], pairs: list[tuple[int, int]], chunk: int) -> dict[Any, Tensor]:
    images = torch.rand(IMAGES, 3, *size, generator=torch.Generator().manual_seed(1)).cuda()
    with torch.device("cuda"):
        return draw(sampler, images, list(range(IMAGES)), pairs, chunk)


def largest_difference(sampler: Sampler, size: tuple[int, int]) -> float:
    """Between samples drawn together and in chunks, in units of float32's epsilon times a sample's largest value."""
    together = drawn(sampler, size, PAIRS, len(PAIRS))
    worst = 0.0
    for chunk in CHUNKS:
        for key, sample in drawn(sampler, size, PAIRS, chunk).items():
            scale = float(together[key].abs().max()) * EPSILON
            worst = max(worst, float((sample - together[key]).abs().max()) / scale)
    return worst


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["band_mix", "dct_mix"])
def test_spectra_are_the_same_to_the_bit(name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The samplers without their inverse transforms."""
    monkeypatch.setattr(torch.fft, "ifft2", lambda spectrum, norm: spectrum)
    monkeypatch.setattr(torch.fft, "irfft2", lambda spectrum, s, norm: torch.view_as_real(spectrum))
    monkeypatch.setattr(ops, "separable_transform", lambda values, rows, columns: values)
    sampler = BandMixSampler(FAMPEConfig()) if name == "band_mix" else DCTSampler(AttEXploreConfig())
    assert largest_difference(sampler, size) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("sampler", [BandMixSampler(FAMPEConfig()), DCTSampler(AttEXploreConfig())], ids=["FFT", "DCT"])
def test_pixels_are_the_same_but_for_rounding(sampler: Sampler, size: tuple[int, int]) -> None:
    assert largest_difference(sampler, size) <= 8


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("sampler", [BandMixSampler(FAMPEConfig()), DCTSampler(AttEXploreConfig())], ids=["FFT", "DCT"])
def test_pixels_are_the_same_to_the_bit(sampler: Sampler, size: tuple[int, int]) -> None:
    """Decides what may be promised of this GPU and these libraries."""
    assert largest_difference(sampler, size) == 0


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("transform", [torch.fft.ifft2, torch.fft.irfft2], ids=["complex", "real"])
def test_inverse_transforms_are_the_same_to_the_bit(transform: Callable[..., Tensor], size: tuple[int, int]) -> None:
    """The transforms by themselves, by the number of signals in one call."""
    spectra = torch.fft.rfft2(torch.rand(64, 3, *size, generator=torch.Generator().manual_seed(2))).cuda()
    together = transform(spectra)
    for chunk in CHUNKS:
        assert torch.equal(torch.cat([transform(part) for part in spectra.split(chunk)]), together), chunk
