"""Check implementations of ``band_mix``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...reference.band_mix import band_mix as reference
from ...reference.radial_mask import SHAPES
from ...reference.spectral_noise import hermitian_grid
from ..arguments import MODES, call, cutoffs, makes_arguments, random, rows_of, single_and_exact, spectra
from ..error_rule import assert_as_accurate, assert_same, assert_true
from ..known_answers import PHILOX, uniform_of
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case
from ..statistics import assert_hermitian, assert_independent, assert_uniform, assert_white
from .common import (
    EDGES,
    LARGE,
    OTHER_MASKS,
    SMALL,
    assert_accurate_and_fresh,
    assert_any_strides,
    assert_no_rows,
    assert_repeatable,
    assert_rows_stand_alone,
)

PER_IMAGE = ("spectrum", "cutoff", "weights", "image_ids")
PER_ROW = ("samples",)

MODE_CASES = tuple(Case(*size, mode=mode) for size in ((9, 9), (12, 20)) for mode in ("modulate", "allpass"))
MASK_CASES = tuple(
    Case(*size, mode=mode, mask=shape)
    for shape in OTHER_MASKS
    for size, mode in (((9, 8), "mix"), ((12, 20), "modulate"), ((21, 10), "mix"))
)
ONE_IMAGE = (Case(13, 17, batch=1, channels=1), Case(13, 17, batch=1, channels=3))
LARGE_MIXES = tuple(
    Case(case.height, case.width, batch=3, channels=3, rows=8, mode=mode, gpu=True)
    for case in LARGE
    for mode in ("mix", "modulate", "allpass")
)


@makes_arguments("band_mix")
def _arguments(case: Case) -> dict[str, Any]:
    numbers, shared = MODES[case.mode]
    return {
        "spectrum": spectra(case),
        "cutoff": cutoffs(case),
        "weights": torch.tensor([numbers]).expand(case.batch, -1),
        **rows_of(case),
        "width": case.width,
        "shared_multiplier": shared,
        "shape": case.mask,
    }


def _weights(*numbers: tuple[float, ...]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32)


@check("band_mix", cases=(*SMALL, *EDGES, *MODE_CASES, *MASK_CASES, *ONE_IMAGE, *LARGE_MIXES))
def check_band_mix_is_as_accurate_as_the_reference(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule in every mode, dtype, shape and layout, in poisoned memory."""
    arguments = _arguments(case, device)
    got = call(ops.band_mix, arguments)
    assert_accurate_and_fresh(got, *single_and_exact(reference, arguments), arguments, device)


@check("band_mix", cases=(*SMALL, *(Case(case.height, case.width, gpu=True) for case in LARGE)))
def check_band_mix_draws_the_reference_s_words(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the random numbers themselves, all four words, using weights and masks of 0 and 1.

    Noise is the word's number times the float32 nearest to sqrt(1.5*H*W), rounded once: equal to the bit.
    """
    case = Case(case.height, case.width, batch=3, channels=1)
    spectrum = torch.ones(3, 1, case.height, case.width // 2 + 1, dtype=torch.complex64)
    spectrum[0] = 0
    weights = _weights(
        (1, 0, 0, 0, 0, 1),  # on zeros: the noise, real and imaginary
        (0, 0, 1, 0, 0, 0),  # on ones, and L = 1: xiL
        (0, 0, 0, 0, 1, 0),  # on ones, and L = 0 but for DC: xiH
    )
    # 1e30 squared is infinite: L is exp(-0), exactly 1 however coarse a GPU's exponential is.
    cutoff = torch.tensor([1, 1e30, 1e-3])
    arguments = _arguments(case, device, spectrum=spectrum, weights=weights, cutoff=cutoff)
    got, expected = call(ops.band_mix, arguments), single_and_exact(reference, arguments)[0]
    for row, what in enumerate(("noise", "multiplier of the low band", "multiplier of the high band")):
        assert_same(torch.view_as_real(got[row]), torch.view_as_real(expected[row]), what)
    assert_true(bool((got.abs().amax((1, 2, 3)) > 0.5).all()), "no randomness in the result")


@check("band_mix", cases=(Case(8, 8), Case(9, 9)))
def check_band_mix_draws_the_published_words_at_dc(ops: Primitives, device: torch.device, case: Case) -> None:
    """Find the Random123 vector of counter 0 and key 0 at seed, step, image, sample, channel and coefficient 0."""
    words = next(v for v in PHILOX if v.rounds == 10 and not any(v.counter)).words
    numbers = [uniform_of(word) for word in words]
    zero = torch.tensor(0)
    for weights, value, expected in (
        ((1, 0, 0, 0, 0, 1), 0.0, numbers[0] * math.sqrt(3 * case.height * case.width)),
        ((0, 0, 1, 0, 0, 0), 1.0, numbers[2]),  # L is 1 at DC
        ((1, 0, 2, 0, 0, 0), 1.0, 1 + 2 * numbers[2]),
        ((0, 0, 0, 0, 1, 0), 1.0, 0.0),  # Hi is 0 there
    ):
        one = Case(case.height, case.width, batch=1, channels=1, rows=1)
        spectrum = torch.full((1, 1, case.height, case.width // 2 + 1), value, dtype=torch.complex64)
        at_zero = {"image_ids": zero[None], "samples": zero[None], "seed": zero, "step": zero}
        arguments = _arguments(one, device, spectrum=spectrum, weights=_weights(weights), **at_zero)
        got = complex(ops.band_mix(**arguments)[0, 0, 0, 0].item())
        close = abs(got - expected) <= 1e-6 * max(1.0, abs(expected))
        assert_true(close, f"weights {weights}: {got} at DC, expected {expected}")
    # The multiplier of the high band beside DC has coefficient 1: no published vector, but it must not be word 2.
    shared = {"weights": _weights((0, 0, 1, 0, 1, 0)), "spectrum": torch.ones_like(spectrum), **at_zero}
    arguments = _arguments(one, device, **shared, shared_multiplier=True)
    got = complex(ops.band_mix(**arguments)[0, 0, 0, 0].item())
    assert_true(abs(got - numbers[2]) <= 1e-6, f"shared multiplier {got} at DC, expected {numbers[2]}")


@check("band_mix", cases=(Case(8, 8), Case(9, 12), Case(12, 9)))
def check_band_mix_of_nothing_is_the_transform_of_real_noise(ops: Primitives, device: torch.device, case: Case) -> None:
    """Check that noise times multipliers, on zero spectra, is exactly Hermitian and survives the inverse transform."""
    one = Case(case.height, case.width, batch=1, rows=2)
    spectrum = torch.zeros(1, 2, case.height, case.width // 2 + 1, dtype=torch.complex64)
    mixed = ops.band_mix(**_arguments(one, device, spectrum=spectrum)).cpu()
    assert_hermitian(mixed, case.width)
    again = torch.fft.rfft2(torch.fft.irfft2(mixed, s=case.size))
    worst = (again - mixed).abs().max().item()
    assert_true(worst <= 1e-5 * mixed.abs().max().item(), f"rfft2(irfft2(noise)) is off by {worst:.3g}")


@check("band_mix", cases=(*(Case(*size, mask=shape) for shape in SHAPES for size in ((8, 8), (9, 12))),))
def check_band_mix_without_randomness_is_the_filter(ops: Primitives, device: torch.device, case: Case) -> None:
    """Halve the image at alpha = 1/2, leave it at g0 = 1, and filter the full plane with unequal weights.

    Of 9 x 12 the coefficient (2, 2) lies on the cut-off, 2.5, and so on the edge of the disc.
    """
    images = random(2, 1, *case.size, seed=9)
    u, v = (torch.fft.fftfreq(n, dtype=torch.float64) for n in case.size)
    squared = min(case.size) ** 2 * (u[:, None] ** 2 + v**2) / 2.5**2
    low = {
        "gaussian": torch.exp(-squared / 2),
        "disc": (squared < 1 + 1e-9).double(),
        "butterworth": 1 / (1 + squared**2),
    }[case.mask]
    for numbers, gain in (
        ((0, 0.5, 0, 0.5, 0, 0), torch.full_like(low, 0.5)),
        ((1, 0, 0, 0, 0, 0), torch.ones_like(low)),
        ((0, 0.25, 0, 0.75, 0, 0), 0.25 * low + 0.75 * (1 - low)),
    ):
        changes = {"cutoff": torch.full((2,), 2.5), "weights": _weights(numbers, numbers)}
        one = Case(case.height, case.width, channels=1, rows=2, mask=case.mask)
        arguments = _arguments(one, device, spectrum=torch.fft.rfft2(images), **changes)
        got = torch.fft.irfft2(ops.band_mix(**arguments).cpu(), s=case.size)
        expected = torch.fft.ifft2(torch.fft.fft2(images.double()) * gain).real
        worst = (got - expected).abs().max().item()
        assert_true(worst <= 1e-6, f"weights {numbers}: {worst:.3g} off the filtered image")


@check("band_mix", cases=(Case(9, 9, channels=1),))
def check_band_mix_of_zero_and_constant_images(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule to images of no and of one frequency: no NaN."""
    images = torch.stack([torch.zeros(1, *case.size), torch.full((1, *case.size), 0.5)])
    arguments = _arguments(case, device, spectrum=torch.fft.rfft2(images))
    assert_as_accurate(ops.band_mix(**arguments), *single_and_exact(reference, arguments))


@check("band_mix", cases=(Case(9, 12, batch=3, channels=1, rows=7), Case(224, 224, 3, 3, 9, gpu=True)))
def check_band_mix_of_a_row_stands_alone(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the bits in any order of rows and any batch; NaN stays in its own image's rows; no rows, no result."""
    arguments = _arguments(case, device)
    assert_rows_stand_alone(ops.band_mix, arguments, PER_IMAGE, PER_ROW)
    clean = ops.band_mix(**arguments)
    spoiled = {**arguments, "spectrum": arguments["spectrum"].clone()}
    spoiled["spectrum"][1] = math.nan
    others = arguments["image_index"] != 1
    assert_same(ops.band_mix(**spoiled)[others], clean[others], "rows of the other images beside NaN")
    assert_no_rows(ops.band_mix, arguments, PER_ROW, (case.channels, case.height, case.width // 2 + 1))


@check("band_mix", cases=(Case(8, 10, rows=2), Case(9, 8, rows=2)))
def check_band_mix_takes_any_strides(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the bits from every argument in every layout."""
    assert_any_strides(ops.band_mix, _arguments(case, device))


@check("band_mix", cases=(Case(9, 12, channels=1), Case(224, 224, 8, 3, 64, gpu=True)))
def check_band_mix_is_repeatable(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the bits run after run."""
    assert_repeatable(ops.band_mix, _arguments(case, device), device)


def _samples(
    mix: Callable[..., Tensor],
    device: torch.device,
    size: tuple[int, int],
    rows: int,
    value: float,
    numbers: tuple[float, ...],
    cutoff: float,
) -> Tensor:
    """Mix one channel of one image, sample after sample: (rows, H, W//2+1) on the CPU."""
    case = Case(*size, batch=1, channels=1, rows=rows)
    changes: dict[str, Any] = {
        "spectrum": torch.full((1, 1, size[0], size[1] // 2 + 1), value, dtype=torch.complex64),
        "cutoff": torch.tensor([cutoff]),
        "weights": _weights(numbers),
        "samples": torch.arange(rows),
    }
    mixed: Tensor = mix(**_arguments(case, device, **changes))
    return mixed[:, 0].cpu()


STATISTICS = (Case(16, 16, rows=30), Case(15, 12, rows=20), *(Case(n, n, rows=4000, gpu=True) for n in (16, 65)))


@check("band_mix", cases=STATISTICS)
def check_band_mix_noise_is_white_and_gaussian_in_the_pixels(ops: Primitives, device: torch.device, case: Case) -> None:
    """Test for unit variance everywhere, no correlation at any shift, no excess kurtosis."""
    noise = _samples(ops.band_mix, device, case.size, case.rows, 0.0, (1, 0, 0, 0, 0, 1), 1.0)
    assert_white(torch.fft.irfft2(noise.to(torch.complex128), s=case.size))


@check("band_mix", cases=(Case(31, 30, rows=8), *(Case(n, n, rows=4000, gpu=True) for n in (16, 65))))
def check_band_mix_multipliers_are_uniform_and_independent(ops: Primitives, device: torch.device, case: Case) -> None:
    """Test for U(-1, 1) in both bands, independent of each other; every row of an edge column once."""
    grid = hermitian_grid(*case.size).coefficient
    own = grid == torch.arange(len(grid))
    own[0] = False  # DC has no high band
    low = _samples(ops.band_mix, device, case.size, case.rows, 1.0, (0, 0, 1, 0, 0, 0), 1e6).real.flatten(1)[:, own]
    high = _samples(ops.band_mix, device, case.size, case.rows, 1.0, (0, 0, 0, 0, 1, 0), 1e-3).real.flatten(1)[:, own]
    assert_uniform(low, "low multiplier")
    assert_uniform(high, "high multiplier")
    assert_independent(low, high)


@check("band_mix", cases=(Case(8, 8, batch=1, channels=2, rows=1),))
def check_band_mix_streams_differ(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the streams of another seed (both halves), step, image, sample and channel: all differ."""
    spectrum = torch.zeros(1, 2, case.height, case.width // 2 + 1, dtype=torch.complex64)
    zero = {"seed": torch.tensor(0), "step": torch.tensor(0)}
    zero |= {name: torch.zeros(1, dtype=torch.long) for name in ("image_ids", "samples")}

    def draw(**changes: int) -> Tensor:
        named = {name: torch.full_like(value, changes.get(name, 0)) for name, value in zero.items()}
        weights = _weights((1, 0, 0, 0, 0, 1))
        mixed: Tensor = ops.band_mix(**_arguments(case, device, spectrum=spectrum, weights=weights, **named))
        return mixed[0].real.cpu()

    base = draw()
    others = {
        "seed 1": draw(seed=1),
        "seed 2^32": draw(seed=2**32),
        "seed -1": draw(seed=-1),
        "step": draw(step=1),
        "image": draw(image_ids=1),
        "sample": draw(samples=1),
    }
    for name, other in others.items():
        assert_true(not bool(torch.isclose(base, other).any()), f"another {name} gives the same noise somewhere")
    assert_true(not bool(torch.isclose(base[0], base[1]).any()), "two channels share noise")
