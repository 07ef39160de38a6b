"""The primitives and the frequency tools give the bits of the quiet call whatever is set around them, or was before."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fampe_fast.frequency
from fampe_fast import ops
from fampe_fast.frequency import filtered_map, fourier_signature, low_pass, power_slope
from fampe_fast.frequency.bands import bands_between, equal_energy_bands, equal_width_bands
from fampe_fast.frequency.two_scale import two_scale_map
from fampe_fast.ops import compiled
from fampe_fast.ops.registration import MUTATED
from fampe_fast.reference import dct_mix as reference_dct
from fampe_fast.reference import radius as reference_radius
from fampe_fast.reference import spectral_noise
from fampe_fast.robustness import BandMixAugmentation, LowPassAugmentation
from fampe_fast.testing import Case, load_primitives
from fampe_fast.testing.arguments import example_arguments

CASE = Case(9, 12, batch=2, channels=3)
REFERENCE = load_primitives("reference", "cpu")
EXAMPLES = {op: example_arguments(op, CASE, "cpu") for op in REFERENCE}
IMAGES = torch.rand(2, 3, 9, 12, generator=torch.Generator().manual_seed(0))
SPECTRUM = torch.fft.rfft2(IMAGES)
MATRICES = IMAGES[0, 0] @ IMAGES[1, 1].T, IMAGES[0, 0].T @ IMAGES[1, 1]


def reference(op: str, **changes: Any) -> Any:
    """The result, or what a call changes."""
    arguments = {**EXAMPLES[op], **changes}
    arguments |= {name: arguments[name].clone() for name in MUTATED.get(op, ())}
    result = REFERENCE[op](**arguments)
    return result if result is not None else [arguments[name] for name in MUTATED[op]]


def all_of_bands(bands: Any) -> tuple[Tensor, ...]:
    return bands.edges, bands.index, bands.coefficients(), bands.energy(IMAGES), bands.project(IMAGES, 1)


CALLS: dict[str, Callable[[], Any]] = {
    **{op: partial(reference, op) for op in REFERENCE},
    "radial_mask in float64": lambda: reference("radial_mask", cutoff=EXAMPLES["radial_mask"]["cutoff"].double()),
    "band_mix in float64": lambda: reference("band_mix", spectrum=SPECTRUM.to(torch.complex128)),
    "band_mix, compiled": lambda: compiled.band_mix(**EXAMPLES["band_mix"]),
    "dct_mix, compiled": lambda: compiled.dct_mix(**EXAMPLES["dct_mix"]),
    "dct_matrix": lambda: (reference_dct.dct_matrix(9), reference_dct.dct_matrix(9, dtype=torch.float64)),
    "radius": lambda: (
        *reference_radius.signed_frequencies(9, 12), reference_radius.squared_radius(9, 12),
        reference_radius.shell_index(9, 12), reference_radius.multiplicity(12),
    ),
    "hermitian_grid": lambda: spectral_noise.hermitian_grid(9, 12),
    "hermitian_grid in float64": lambda: spectral_noise.hermitian_grid(8, 8, dtype=torch.float64),
    "separable_transform": lambda: ops.separable_transform(IMAGES, *MATRICES),
    "irfft2": lambda: ops.irfft2(SPECTRUM, 12),
    "low_pass": lambda: low_pass(IMAGES, 3),
    "low_pass in float64": lambda: low_pass(IMAGES.double(), 3),
    "filtered_map": lambda: filtered_map(IMAGES - IMAGES.mean(), 3),
    "two_scale_map": lambda: two_scale_map(IMAGES - IMAGES.mean(), 3),
    "fourier_signature": lambda: power_slope(fourier_signature(IMAGES)),
    "equal_width_bands": lambda: all_of_bands(equal_width_bands(9, 12, 3, include_dc=True)),
    "bands_between": lambda: all_of_bands(bands_between(9, 12, [2.0, 4])),
    "equal_energy_bands": lambda: all_of_bands(equal_energy_bands(IMAGES, 4)),
    "equal_energy_bands of constants": lambda: all_of_bands(equal_energy_bands(torch.ones_like(IMAGES) / 2, 2)),
    "LowPassAugmentation": lambda: LowPassAugmentation((2, 4), seed=1, probability=1)(IMAGES),
    "BandMixAugmentation": lambda: BandMixAugmentation(seed=1, probability=1)(IMAGES),
    "BandMixAugmentation, fixed": lambda: BandMixAugmentation(seed=1, probability=1, cutoff=3)(IMAGES),
}  # fmt: skip


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "another default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "nothing": nullcontext,
}


def forget() -> None:
    """Empty what these modules keep of earlier calls."""
    names = [f"fampe_fast.frequency.{found.name}" for found in pkgutil.iter_modules(fampe_fast.frequency.__path__)]
    for name in [*names, "fampe_fast.ops.compiled"]:
        for value in vars(importlib.import_module(name)).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


@pytest.fixture(scope="module")
def quiet() -> dict[str, Any]:
    forget()
    return {name: call() for name, call in CALLS.items()}


@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.parametrize("name", CALLS)
def test_the_bits_are_those_of_the_quiet_call(name: str, around: str, quiet: dict[str, Any]) -> None:
    forget()
    with SURROUNDINGS[around]():
        first = CALLS[name]()
    for found in (first, CALLS[name]()):  # now, and later outside with what was kept
        leaves, expected = tree_leaves(found), tree_leaves(quiet[name])
        assert len(leaves) == len(expected) > 0
        for got, wanted in zip(leaves, expected, strict=True):
            assert got.dtype == wanted.dtype
            assert got.device == wanted.device
            assert torch.equal(got, wanted)


def test_what_inference_mode_made_first_serves_gradients_later() -> None:
    calls: list[Callable[[Tensor], Tensor]] = [
        lambda images: low_pass(images, 2),
        lambda images: filtered_map(images, 2),
        lambda images: equal_width_bands(9, 12, 3).project(images, 1),
        lambda images: equal_energy_bands(images, 3).project(images, 1),
        lambda images: bands_between(9, 12, [2]).project(images, 0),
    ]
    for call in calls:
        forget()
        with torch.inference_mode():
            call(IMAGES)
        images = IMAGES.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(call(images).square().sum(), images)
        assert bool(gradient.isfinite().all())
