"""Checks of ``radial_mask``."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...reference.radial_mask import radial_mask as reference
from ..arguments import call, cutoffs, makes_arguments, single_and_exact
from ..error_rule import EPSILON, assert_as_accurate, assert_same, assert_true
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case
from ..statistics import assert_near
from .common import EDGES, LARGE, SMALL, assert_any_strides, assert_fresh, assert_repeatable

CUTOFFS = (1e-3, 1.0, 2.5, 40.0, 1e6)


@makes_arguments("radial_mask")
def _arguments(case: Case) -> dict[str, Any]:
    return {"cutoff": cutoffs(case), "height": case.height, "width": case.width}


@check("radial_mask", cases=(*SMALL, *EDGES, *LARGE))
def check_radial_mask_is_as_accurate_as_the_reference(ops: Primitives, device: torch.device, case: Case) -> None:
    """Error rule, range, complement, dtype, shape and layout, in poisoned memory.

    Both masks are shares of 1, so the plane that sets the scale of errors is the two of them side by side: where the
    cut-off lies far outside of the image the largest ``1 - L`` is below any rounding of L.
    """
    arguments = _arguments(case, device, cutoff=torch.tensor(CUTOFFS))
    masks = call(ops.radial_mask, arguments)
    singles, exacts = single_and_exact(reference, arguments)
    got_both, single_both, exact_both = (torch.cat(pair, -1) for pair in (masks, singles, exacts))
    assert_as_accurate(got_both, single_both, exact_both)
    for got in masks:
        assert_true(got.dtype == torch.float32, f"result is {got.dtype}, expected torch.float32")
        assert_fresh(got, arguments, device)
        assert_true(bool((got >= 0).all() and (got <= 1).all()), "a mask leaves [0, 1]")
    low, high = masks
    assert_same(high, 1 - low, "the high mask against 1 - low")


@check("radial_mask", cases=(Case(12, 12), Case(9, 11), Case(11, 9)))
def check_radial_mask_falls_to_the_gaussian_s_values(ops: Primitives, device: torch.device, case: Case) -> None:
    """``exp(-k^2/2)`` at k cut-offs from DC along the shorter side, on both signs, and 1 at DC."""
    low, _ = ops.radial_mask(torch.tensor([2.0], device=device), case.height, case.width)
    short = case.height <= case.width
    for k in (0, 1, 2):
        value = math.exp(-(k**2) / 2)
        places = ((2 * k, 0), (-2 * k % case.height, 0)) if short else ((0, 2 * k),)
        for place in places:
            assert_near(float(low[0][place]), value, EPSILON, f"L at {place}")


@check("radial_mask", cases=(Case(12, 20),))
def check_radial_mask_depends_on_neither_batch_nor_strides_nor_run(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """An image's masks are the same alone, from any memory layout, in every run; no image gives no mask."""
    arguments = _arguments(case, device, cutoff=torch.tensor([1.0, 2.5, 3.0]))
    low, high = ops.radial_mask(**arguments)
    alone = ops.radial_mask(**{**arguments, "cutoff": arguments["cutoff"][1:2]})
    assert_same(alone[0], low[1:2], "L alone")
    assert_same(alone[1], high[1:2], "Hi alone")
    assert_any_strides(ops.radial_mask, arguments)
    assert_repeatable(ops.radial_mask, arguments, device)
    for mask in ops.radial_mask(**{**arguments, "cutoff": arguments["cutoff"][:0]}):
        expected = (0, case.height, case.width // 2 + 1)
        assert_true(tuple(mask.shape) == expected, f"no cut-offs give shape {tuple(mask.shape)}, expected {expected}")
