"""Check implementations of ``pixel_mask``."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ...reference.pixel_mask import pixel_mask as reference
from ..arguments import call, makes_arguments, moved, random, whole
from ..error_rule import assert_same, assert_true
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case
from .common import EDGES, LARGE, SMALL, assert_any_strides, assert_no_rows, assert_repeatable, assert_rows_stand_alone

PER_IMAGE = ("start", "finish", "first_step")
PER_ROW = ("step",)


@makes_arguments("pixel_mask")
def _arguments(case: Case) -> dict[str, Any]:
    """Make rows image by image, each with its steps in their order."""
    images, steps = (case.batch, case.channels, *case.size), -(-case.rows // case.batch)
    row = torch.arange(case.rows)
    return {
        "start": random(*images, seed=1),
        "finish": random(*images, seed=2),
        "first_step": whole(0, steps + 1, case.batch, *case.size, seed=6, dtype=torch.int32),
        "image_index": row // max(steps, 1),
        "step": row % max(steps, 1),
    }


def _out_of_order(case: Case, device: torch.device) -> dict[str, Any]:
    """Make three images, rows in no order, steps up to the ends of their range."""
    return _arguments(
        replace(case, batch=3, rows=7),
        device,
        first_step=whole(0, 9, 3, *case.size, seed=6, dtype=torch.int32),
        image_index=torch.tensor([0, 0, 0, 2, 2, 1, 0]),
        step=torch.tensor([0, 3, 2**40, 4, -(2**40), 8, 5]),
    )


def _assert_equal(ops: Primitives, arguments: dict[str, Any]) -> None:
    expected = reference(**moved(arguments, "cpu"))
    got = call(ops.pixel_mask, arguments)
    assert_same(got, expected)
    for layout in (torch.channels_last, torch.contiguous_format):
        same = got.is_contiguous(memory_format=layout) == expected.is_contiguous(memory_format=layout)
        assert_true(same, f"result with strides {got.stride()}, expected {expected.stride()}")


@check("pixel_mask", cases=(*SMALL[:4], *EDGES[:1], Case(9, 7, channels=1), Case(12, 20, channels=3), *LARGE))
def check_pixel_mask_equals_the_reference(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare to the bit, ties and steps beyond 32 bits included, in poisoned memory."""
    _assert_equal(ops, _out_of_order(case, device))


@check("pixel_mask", cases=(Case(9, 8, channels=3),))
def check_pixel_mask_moves_any_value_of_any_dtype(ops: Primitives, device: torch.device, case: Case) -> None:
    """Move half, bfloat16 and double; infinities and NaN like other values."""
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        arguments = _out_of_order(case, device)
        arguments |= {name: arguments[name].to(dtype) for name in ("start", "finish")}
        arguments["start"][0, 0, 0, :2] = math.nan
        arguments["finish"][0, 0, 0] = math.inf
        _assert_equal(ops, arguments)


@check("pixel_mask", cases=(Case(9, 8, channels=3),))
def check_pixel_mask_keeps_the_memory_format(ops: Primitives, device: torch.device, case: Case) -> None:
    """Expect channels-last if an image is, contiguous otherwise; a colour for all pixels may be an expanded tensor."""
    arguments = _out_of_order(case, device)
    colour = random(1, 3, 1, 1, seed=3).to(device).expand(3, 3, *case.size)
    last = arguments["start"].contiguous(memory_format=torch.channels_last)
    for changes in ({"start": colour}, {"start": last}, {"start": last, "finish": colour}):
        _assert_equal(ops, {**arguments, **changes})


@check("pixel_mask", cases=(Case(9, 8), Case(12, 20), Case(224, 224, channels=3, gpu=True)))
def check_pixel_mask_of_a_row_stands_alone(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the bits in any order, batch, strides and run; no rows, no result."""
    arguments = _out_of_order(case, device)
    assert_rows_stand_alone(ops.pixel_mask, arguments, PER_IMAGE, PER_ROW)
    assert_any_strides(ops.pixel_mask, arguments)
    assert_repeatable(ops.pixel_mask, arguments, device)
    assert_no_rows(ops.pixel_mask, arguments, PER_ROW, (case.channels, *case.size))
