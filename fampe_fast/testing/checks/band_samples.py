"""Checks of ``band_samples``."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...ops.backends import lacks_float64
from ...reference.band_samples import band_samples as reference
from ..arguments import call, example_arguments, makes_arguments, single_and_exact
from ..error_rule import assert_same, assert_true
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case
from .band_mix import LARGE_MIXES, MASK_CASES, MODE_CASES, ONE_IMAGE, PER_IMAGE, PER_ROW
from .common import (
    EDGES,
    LARGE,
    SMALL,
    assert_accurate_and_fresh,
    assert_any_strides,
    assert_no_rows,
    assert_repeatable,
    assert_rows_stand_alone,
)

EVEN = (Case(6, 10), Case(7, 14), Case(5, 2), Case(1, 4), Case(10, 36))
"""Widths of both remainders of 4, which an even image's packing tells apart, and its smallest."""


@makes_arguments("band_samples")
def _arguments(case: Case) -> dict[str, Any]:
    arguments = example_arguments("band_mix", case, torch.empty(0).device, torch.empty(0).device)
    weights = arguments["weights"].clone()
    weights[:, :5] /= case.height * case.width
    return {**arguments, "weights": weights}


@check("band_samples", cases=(*SMALL, *EDGES, *EVEN, *MODE_CASES, *MASK_CASES, *ONE_IMAGE, *LARGE_MIXES))
def check_band_samples_are_as_accurate_as_the_reference(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule in every mode, dtype, shape and layout, in poisoned memory."""
    arguments = _arguments(case, device)
    got = call(ops.band_samples, arguments)
    # The error is mostly the FFT library's, which the reference shares on the same device and not elsewhere: 3.4 to 4.1
    # units in the last place of the plane's largest value by cuFFT on an H100, 2.3 to 2.9 on a CPU.
    expected = single_and_exact(reference, arguments, "cpu" if lacks_float64(device) else device)
    assert_accurate_and_fresh(got, *expected, arguments, device)


@check("band_samples", cases=(*SMALL, *EVEN, *(Case(case.height, case.width, gpu=True) for case in LARGE)))
def check_band_samples_without_randomness_are_the_images(ops: Primitives, device: torch.device, case: Case) -> None:
    """Give every pixel its own value, whose place shows where it went."""
    pixels = torch.arange(case.height * case.width, dtype=torch.float32).view(1, 1, *case.size)
    images = torch.cat([pixels, pixels.flip(2, 3)]).expand(-1, case.channels, -1, -1) / pixels.numel()
    weights = torch.tensor([[1 / pixels.numel(), 0, 0, 0, 0, 0]]).expand(2, -1)
    arguments = _arguments(case, device, spectrum=torch.fft.rfft2(images), weights=weights)
    got = call(ops.band_samples, arguments).cpu()
    worst = (got - images[arguments["image_index"].cpu()]).abs().max().item()
    assert_true(worst <= min(2e-6, 0.1 / pixels.numel()), f"{worst:.3g} off the images")


@check("band_samples", cases=(Case(9, 12, batch=3, channels=1, rows=7), Case(9, 9, batch=3, channels=1, rows=7)))
def check_band_samples_of_a_row_stand_alone(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the bits on a CPU in any order of rows and any batch; NaN stays in its own image's rows; no rows.

    On a GPU a library transforms them, whose last bits may hang on the batch.
    """
    arguments = _arguments(case, device)
    if device.type == "cpu":
        assert_rows_stand_alone(ops.band_samples, arguments, PER_IMAGE, PER_ROW)
    clean = ops.band_samples(**arguments)
    spoiled = {**arguments, "spectrum": arguments["spectrum"].clone()}
    spoiled["spectrum"][1] = math.nan
    others = arguments["image_index"] != 1
    assert_same(ops.band_samples(**spoiled)[others], clean[others], "rows of the other images beside NaN")
    assert_no_rows(ops.band_samples, arguments, PER_ROW, (case.channels, case.height, case.width))


@check("band_samples", cases=(Case(8, 10, rows=2), Case(9, 9, rows=2), Case(224, 224, 8, 3, 64, gpu=True)))
def check_band_samples_depend_on_neither_strides_nor_run(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the bits from every argument in every layout, run after run."""
    arguments = _arguments(case, device)
    if case.height < 100:
        assert_any_strides(ops.band_samples, arguments)
    assert_repeatable(ops.band_samples, arguments, device)
