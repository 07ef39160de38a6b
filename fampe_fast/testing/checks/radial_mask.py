"""Check implementations of ``radial_mask``."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch

from ...reference.radial_mask import SHAPES
from ...reference.radial_mask import radial_mask as reference
from ...reference.radius import shell_index, signed_frequencies
from ..arguments import call, cutoffs, makes_arguments, single_and_exact
from ..error_rule import EPSILON, assert_as_accurate, assert_same, assert_true
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case
from ..statistics import assert_near
from .common import EDGES, LARGE, OTHER_MASKS, SMALL, assert_any_strides, assert_fresh, assert_repeatable

CUTOFFS = (1e-3, 1.0, 2.5, 40.0, 1e6)
VALUES = {
    "gaussian": (1, math.exp(-0.5), math.exp(-2)),
    "disc": (1, 1, 0),
    "butterworth": (1, 1 / 2, 1 / 17),
}
"""L at DC, at the cut-off and at twice the cut-off."""


def _in_all_shapes(*cases: Case) -> tuple[Case, ...]:
    return tuple(replace(case, mask=shape) for shape in SHAPES for case in cases)


@makes_arguments("radial_mask")
def _arguments(case: Case) -> dict[str, Any]:
    return {"cutoff": cutoffs(case), "height": case.height, "width": case.width, "shape": case.mask}


@check(
    "radial_mask",
    cases=(*SMALL, *EDGES, *LARGE, *(replace(case, mask=shape) for shape in OTHER_MASKS for case in (*SMALL, *LARGE))),
)
def check_radial_mask_is_as_accurate_as_the_reference(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule; see range, complement, dtype, shape and layout; in poisoned memory.

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


@check("radial_mask", cases=_in_all_shapes(Case(12, 12), Case(9, 11), Case(11, 9)))
def check_radial_mask_falls_to_its_shape_s_values(ops: Primitives, device: torch.device, case: Case) -> None:
    """Expect the formula's value at k cut-offs from DC along the shorter side, on both signs, and 1 at DC."""
    low, _ = ops.radial_mask(torch.tensor([2.0], device=device), case.height, case.width, case.mask)
    short = case.height <= case.width
    for k, value in enumerate(VALUES[case.mask]):
        places = ((2 * k, 0), (-2 * k % case.height, 0)) if short else ((0, 2 * k),)
        for place in places:
            assert_near(float(low[0][place]), value, EPSILON, f"L at {place}")


@check("radial_mask", cases=_in_all_shapes(Case(12, 20), Case(21, 10)))
def check_radial_mask_never_rises(ops: Primitives, device: torch.device, case: Case) -> None:
    """See L fall, or stay but for rounding, from each radius to the next, from 1 at DC to almost nothing far outside.

    The last cut-off is so small that DC is all that is left.
    """
    low, _ = ops.radial_mask(**_arguments(case, device, cutoff=torch.tensor([1.0, 2.5, 4.0, 0.004])))
    rows, columns = signed_frequencies(case.height, case.width)
    radius = (rows * case.width) ** 2 + (columns * case.height) ** 2
    falling = low.cpu().flatten(1)[:, radius.flatten().argsort(stable=True)]
    rise = float(falling.diff(dim=1).amax())
    assert_true(rise <= 4 * EPSILON, f"L rises by {rise:.3g} from one radius to the next")
    assert_true(bool((falling[:, 0] == 1).all()), f"L is {falling[:, 0].tolist()} at DC, expected 1")
    rest = float(falling[3, 1:].max())
    assert_true(rest <= 1e-7, f"L is {rest:.3g} at more than a hundred times the cut-off")


# In float32 a coefficient of 14 x 26, 26 x 14 and 39 x 21 changes sides.
EDGE_SIZES_OF_A_DISC = ((9, 12), (14, 26), (26, 14), (39, 21), (1, 9))


@check(
    "radial_mask",
    cases=(*(Case(*size, mask="disc") for size in EDGE_SIZES_OF_A_DISC), Case(299, 224, mask="disc", gpu=True)),
)
def check_radial_mask_decides_on_the_edge_of_a_disc_without_rounding(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """Compare the bits with a decision in whole numbers, for whole cut-offs and those one float32 below and above."""
    rows, columns = signed_frequencies(case.height, case.width)
    scaled = (rows * case.width) ** 2 + (columns * case.height) ** 2  # r^2 * long^2
    whole = torch.arange(1.0, float(shell_index(case.height, case.width).max()) + 1)
    radii = torch.cat([whole, *(torch.nextafter(whole, torch.tensor(end)) for end in (0.0, math.inf))])
    low, _ = ops.radial_mask(radii.to(device), case.height, case.width, case.mask)
    for radius, mask in zip(radii.tolist(), low.cpu(), strict=True):
        limit = int(Fraction(radius) ** 2 * max(case.size) ** 2)
        assert_same(mask, (scaled <= limit).float(), f"disc of radius {radius!r}")


@check("radial_mask", cases=_in_all_shapes(Case(12, 20)))
def check_radial_mask_depends_on_neither_batch_nor_strides_nor_run(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """Compare an image's masks alone, from any memory layout, in every run; no image gives no mask."""
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
