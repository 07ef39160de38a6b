"""Check implementations of ``dct_mix``."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...reference.dct_mix import dct_mix as reference
from ..arguments import RHO, SIGMA, call, makes_arguments, normal, rows_of, single_and_exact
from ..error_rule import EPSILON, assert_same, assert_true
from ..known_answers import PHILOX, uniform_of
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case
from ..statistics import assert_independent, assert_near, assert_uniform
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

PER_IMAGE = ("spectrum", "weights", "image_ids")
PER_ROW = ("samples",)

EXACT_RHO = 2.0**24
"""1 + rho*xi is then a whole number that float32 holds: it shows the multiplier's 24 bits."""


@makes_arguments("dct_mix")
def _arguments(case: Case) -> dict[str, Any]:
    return {
        "spectrum": normal(case.batch, case.channels, *case.size),
        "weights": torch.tensor([[RHO, SIGMA]]).expand(case.batch, -1),
        **rows_of(case),
    }


@check("dct_mix", cases=(*SMALL, *EDGES, *LARGE))
def check_dct_mix_is_as_accurate_as_the_reference(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule; see dtype, shape and layout; in poisoned memory."""
    arguments = _arguments(case, device)
    got = call(ops.dct_mix, arguments)
    assert_accurate_and_fresh(got, *single_and_exact(reference, arguments), arguments, device)


@check("dct_mix", cases=SMALL)
def check_dct_mix_draws_the_reference_s_words(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare noise on zeros (the number times the float32 nearest to sqrt(3)) and multipliers on ones, to the bit."""
    spectrum = torch.ones(2, case.channels, *case.size)
    spectrum[0] = 0
    weights = torch.tensor([[0, 1.0], [EXACT_RHO, 0]])
    arguments = _arguments(case, device, spectrum=spectrum, weights=weights)
    got, expected = call(ops.dct_mix, arguments), single_and_exact(reference, arguments)[0]
    assert_same(got, expected, "noise and multipliers")
    assert_true(bool((got.abs().amax((1, 2, 3)) > 0.5).all()), "no randomness in the result")


@check("dct_mix", cases=(Case(8, 8, batch=1, channels=1, rows=1),))
def check_dct_mix_draws_the_published_words_at_dc(ops: Primitives, device: torch.device, case: Case) -> None:
    """Find the Random123 vector of counter 0 and key 0 at seed, step, image, sample, channel and coefficient 0."""
    words = next(v for v in PHILOX if v.rounds == 10 and not any(v.counter)).words
    zero = torch.tensor(0)
    at_zero = {"image_ids": zero[None], "samples": zero[None], "seed": zero, "step": zero}
    for value, numbers, expected in (
        (0.0, (0.0, 1.0), math.sqrt(3) * uniform_of(words[0])),
        (1.0, (0.5, 0.0), 1 + 0.5 * uniform_of(words[2])),
    ):
        spectrum = torch.full((1, 1, *case.size), value)
        arguments = _arguments(case, device, spectrum=spectrum, weights=torch.tensor([numbers]), **at_zero)
        got = ops.dct_mix(**arguments)[0, 0, 0, 0].item()
        assert_true(abs(got - expected) <= 1e-6, f"weights {numbers}: {got} at DC, expected {expected}")


@check("dct_mix", cases=(Case(9, 12, batch=3, channels=1, rows=7), Case(224, 224, 3, 3, 9, gpu=True)))
def check_dct_mix_of_a_row_stands_alone(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the bits in any order of rows and any batch; no rows, no result."""
    arguments = _arguments(case, device)
    assert_rows_stand_alone(ops.dct_mix, arguments, PER_IMAGE, PER_ROW)
    assert_no_rows(ops.dct_mix, arguments, PER_ROW, (case.channels, *case.size))


@check("dct_mix", cases=(Case(9, 12, rows=2),))
def check_dct_mix_depends_on_neither_strides_nor_run(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the bits from every argument in every layout, run after run."""
    assert_any_strides(ops.dct_mix, _arguments(case, device))
    assert_repeatable(ops.dct_mix, _arguments(case, device), device)


@check("dct_mix", cases=(Case(12, 20, batch=1, channels=1, rows=200),))
def check_dct_mix_noise_and_multipliers_are_uniform_and_independent(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """Test for noise of unit variance and multipliers U(-1, 1), independent of each other."""
    drawn = []
    for value, numbers in ((0.0, (0.0, 1.0)), (1.0, (EXACT_RHO, 0.0))):
        spectrum = torch.full((1, 1, *case.size), value)
        changes = {"spectrum": spectrum, "weights": torch.tensor([numbers]), "samples": torch.arange(case.rows)}
        drawn.append(ops.dct_mix(**_arguments(case, device, **changes)).cpu().double())
    noise, multiplier = drawn[0], (drawn[1] - 1) / EXACT_RHO
    assert_near(float((noise**2).mean()), 1, math.sqrt(0.8 / noise.numel()), "noise: variance")
    assert_uniform(noise / math.sqrt(3) * (1 - EPSILON), "noise / sqrt(3)")
    assert_uniform(multiplier, "multiplier")
    assert_independent(noise, multiplier, "noise and multiplier")
