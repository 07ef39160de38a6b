"""The random mixes of the reference through ``torch.compile``, for the CPU, where they would cost as much as a model.

One row at a time: the graph is then the same for every batch and chunk, it compiles once for all image sizes, and a
row's result cannot depend on its neighbours. Only operations that IEEE 754 rounds exactly stand inside, so the results
equal the plain reference's to the bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import FampeWarning
from ..reference.band_mix import mix_rows
from ..reference.dct_mix import dct_mix_rows
from ..reference.radial_mask import radial_mask
from ..reference.spectral_noise import HermitianGrid, hermitian_grid

# Compiling takes some seconds, as long as the plain function takes for about this many values; a run that never gets
# there is better off without. (The switch cannot be seen in the results.) torch 2.6 takes four times as long as 2.15.
COMPILE_AFTER = 30_000_000 if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 9) else 120_000_000


class _CompiledWhenWorthwhile:
    """A function that is compiled once it has been asked for ``COMPILE_AFTER`` values.

    If the compiler fails, it stays as it is, with one warning.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._plain = function
        self._compiled: Callable[..., Any] | None = torch.compile(function, dynamic=True, fullgraph=True)
        self._values = 0
        self._proven = False

    def __call__(self, values: Tensor, *args: Any) -> Any:
        self._values += values.numel()
        if self._compiled is None or self._values <= COMPILE_AFTER:
            return self._plain(values, *args)
        try:
            result = self._compiled(values, *args)
        except Exception as error:
            if self._proven:
                raise
            self._compiled = None
            warnings.warn(
                f"torch.compile failed for {self._plain.__name__} ({type(error).__name__}: {str(error)[:200]}); "
                "running it uncompiled, about ten times slower",
                FampeWarning,
                stacklevel=3,
            )
            return self._plain(values, *args)
        self._proven = True
        return result


_mix = _CompiledWhenWorthwhile(mix_rows)
_dct_mix = _CompiledWhenWorthwhile(dct_mix_rows)


@lru_cache(maxsize=16)
def _grid(height: int, width: int) -> HermitianGrid:
    return hermitian_grid(height, width)


@torch.no_grad()
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
) -> Tensor:
    """As ``fampe_fast.reference.band_mix.band_mix``, complex64 on the CPU."""
    channels, height, half = spectrum.shape[1:]
    parts = torch.view_as_real(spectrum.resolve_conj()).contiguous().flatten(2, 3)
    mixed = spectrum.new_empty((len(samples), channels, height * half))
    masks: dict[int, Tensor] = {}
    for row, image in enumerate(image_index.tolist()):
        one = slice(image, image + 1)
        if image not in masks:
            masks[image] = radial_mask(cutoff[one], height, width)[0].flatten(1)
        real, imaginary = _mix(
            parts[one],
            masks[image],
            weights[one],
            _grid(height, width),
            image_ids[one],
            samples[row : row + 1],
            seed,
            step,
            shared_multiplier,
        )
        torch.complex(real[0], imaginary[0], out=mixed[row])
    return mixed.view(len(samples), channels, height, half)


@torch.no_grad()
def dct_mix(
    spectrum: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
) -> Tensor:
    """As ``fampe_fast.reference.dct_mix.dct_mix``, float32 on the CPU."""
    flat = spectrum.contiguous().flatten(2)
    index = torch.arange(flat.shape[2])
    mixed = flat.new_empty((len(samples), *flat.shape[1:]))
    for row, image in enumerate(image_index.tolist()):
        one = slice(image, image + 1)
        mixed[row] = _dct_mix(flat[one], weights[one], index, image_ids[one], samples[row : row + 1], seed, step)[0]
    return mixed.view(len(samples), *spectrum.shape[1:])


IMPLEMENTATIONS: dict[str, Callable[..., Any]] = {"band_mix": band_mix, "dct_mix": dct_mix}
