"""Compile the reference's random mixes for the CPU, where they would cost as much as a model.

One row at a time, so that the graph is the same for every batch and chunk, compiles once for all image sizes, and a
row's result cannot depend on its neighbours. It has only operations that IEEE 754 rounds exactly, so that the results
are bitwise equal to the plain reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..reference.band_mix import mix_rows
from ..reference.dct_mix import dct_mix_rows
from ..reference.radial_mask import radial_mask
from ..reference.spectral_noise import HermitianGrid, hermitian_grid
from ..runtime.compilation import Compiled
from ..runtime.isolation import isolated
from .samples import samples_of

# Compiling takes 24 s the first time and 5 s from torch's cache, as long as the plain function takes for 500 and 90
# million values; shorter runs, such as a few maps, are faster without. (The switch does not change
# the results.) Torch before 2.9 takes four times as long as 2.15.
COMPILE_AFTER = 200_000_000 if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9) else 800_000_000


class _CompiledWhenWorthwhile:
    """Compiles a function after it has computed ``COMPILE_AFTER`` values."""

    def __init__(self, function: Callable[..., Any], what: str) -> None:
        self._compiled = Compiled(function, what, dynamic=True)
        self._values = 0
        self.at_once = False

    def __call__(self, values: Tensor, *args: Any) -> Any:
        self._values = max(self._values, COMPILE_AFTER if self.at_once else 0) + values.numel()
        call = self._compiled if self._values > COMPILE_AFTER else self._compiled.plain
        return call(values, *args)


_rows: Callable[..., tuple[Tensor, Tensor]] = mix_rows


def _apart(*args: Any) -> tuple[Tensor, Tensor]:
    return _rows(*args, shared_multiplier=False)


def _shared(*args: Any) -> tuple[Tensor, Tensor]:
    return _rows(*args, shared_multiplier=True)


# The compiler allows a function eight graphs and then gives up on it. The mix has three, since one channel and
# one coefficient are constants to it; what would double them has a function of its own (this, and each combination of
# the process's settings), or is kept out (inference mode and autocast, below).
_mix = _CompiledWhenWorthwhile(_apart, "the band mix")
_shared_mix = _CompiledWhenWorthwhile(_shared, "the band mix with a shared multiplier")
_dct_mix = _CompiledWhenWorthwhile(dct_mix_rows, "the DCT mix")


@contextmanager
def compiled_at_once() -> Iterator[None]:
    """Compile every mix at its first call inside the context; it stays compiled."""
    mixes = (_mix, _shared_mix, _dct_mix)
    for mix in mixes:
        mix.at_once = True
    try:
        yield
    finally:
        for mix in mixes:
            mix.at_once = False


@lru_cache(maxsize=16)
def _grid(height: int, width: int) -> HermitianGrid:
    return HermitianGrid(*map(torch.clone, hermitian_grid(height, width)))


def _own(values: Tensor) -> Tensor:
    """Copy the inputs of a graph, which the compiler would compile again for other strides."""
    return values.clone(memory_format=torch.contiguous_format)


def _one(values: Tensor, index: int) -> Tensor:
    return _own(values[index : index + 1])


@isolated()
def band_mix(
    spectrum: Tensor,
    cutoff: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
    width: int,
    shared_multiplier: bool = False,
    shape: str = "gaussian",
) -> Tensor:
    """Compute ``fampe_fast.reference.band_mix.band_mix``, complex64 on the CPU."""
    channels, height, half = spectrum.shape[1:]
    parts = torch.view_as_real(spectrum.resolve_conj()).contiguous().flatten(2, 3)
    mixed = spectrum.new_empty((len(samples), channels, height * half))
    of_image: dict[int, tuple[Tensor, ...]] = {}
    seed, step, grid = _own(seed), _own(step), _grid(height, width)
    mix = _shared_mix if shared_multiplier else _mix
    for row, image in enumerate(image_index.tolist()):
        if image not in of_image:
            low = _own(radial_mask(cutoff[image : image + 1], height, width, shape)[0].flatten(1))
            of_image[image] = _one(parts, image), low, _one(weights, image), _one(image_ids, image)
        values, low, numbers, name = of_image[image]
        real, imaginary = mix(values, low, numbers, grid, name, _one(samples, row), seed, step)
        torch.complex(real[0], imaginary[0], out=mixed[row])
    return mixed.view(len(samples), channels, height, half)


@isolated()
def dct_mix(
    spectrum: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
) -> Tensor:
    """Compute ``fampe_fast.reference.dct_mix.dct_mix``, float32 on the CPU."""
    flat = spectrum.contiguous().flatten(2)
    index = torch.arange(flat.shape[2], device=flat.device)
    mixed = flat.new_empty((len(samples), *flat.shape[1:]))
    of_image: dict[int, tuple[Tensor, ...]] = {}
    seed, step = _own(seed), _own(step)
    for row, image in enumerate(image_index.tolist()):
        if image not in of_image:
            of_image[image] = _one(flat, image), _one(weights, image), _one(image_ids, image)
        values, numbers, name = of_image[image]
        mixed[row] = _dct_mix(values, numbers, index, name, _one(samples, row), seed, step)[0]
    return mixed.view(len(samples), *spectrum.shape[1:])


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {
    "band_mix": band_mix,
    "band_samples": samples_of(band_mix),
    "dct_mix": dct_mix,
}
