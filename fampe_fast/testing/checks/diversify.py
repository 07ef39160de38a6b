"""Check implementations of ``diversify`` and ``diversify_adjoint``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...reference import diversify as reference
from ..arguments import call, makes_arguments, normal, random, single_and_exact
from ..error_rule import assert_same, assert_true
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case
from .common import assert_accurate_and_fresh, assert_any_strides, assert_fresh, assert_repeatable

FRAMES = (
    Case(8, 8),
    Case(9, 30, batch=1, channels=1),
    Case(30, 9, rows=1),
    Case(21, 20, batch=1, channels=3),
    Case(224, 224, channels=3, rows=8, gpu=True),
    Case(299, 224, batch=1, channels=3, rows=8, gpu=True),
)


def frame_of(height: int, width: int) -> tuple[int, int]:
    """Return the sides of the frame for samples of a size, as the package chooses them."""
    return int(1.15 * height), int(1.15 * width)


def _placements(case: Case) -> Tensor:
    """Draw a size and a place in the frame for each sample number; the image runs fastest."""
    frame, sides = torch.tensor(frame_of(*case.size)), torch.tensor(case.size)
    numbers = random(2, -(-case.rows // case.batch), 2, seed=7)
    resized = sides + (numbers[0] * (frame - sides + 1)).long()
    corner = (numbers[1] * (frame - resized + 1)).long()
    return torch.cat([resized, corner], 1).repeat_interleave(case.batch, 0)[: case.rows]


@makes_arguments("diversify")
def _arguments(case: Case) -> dict[str, Any]:
    height, width = frame_of(*case.size)
    return {
        "samples": random(case.rows, case.channels, *case.size, seed=1),
        "placements": _placements(case),
        "frame_height": height,
        "frame_width": width,
        "channels_last": False,
    }


@makes_arguments("diversify_adjoint")
def _adjoint_arguments(case: Case) -> dict[str, Any]:
    gradient = normal(case.rows, case.channels, *frame_of(*case.size), seed=2)
    return {"gradient": gradient, "placements": _placements(case), "height": case.height, "width": case.width}


@check("diversify", cases=FRAMES)
def check_diversify_is_as_accurate_as_the_reference(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule in poisoned memory, in both memory formats, which hold the same values."""
    arguments = _arguments(case, device)
    got = call(ops.diversify, arguments)
    assert_accurate_and_fresh(got, *single_and_exact(reference.diversify, arguments), arguments, device)
    last = call(ops.diversify, {**arguments, "channels_last": True})
    assert_same(last, got, "channels-last result")
    assert_true(last.is_contiguous(memory_format=torch.channels_last), f"channels-last strides {last.stride()}")


@check("diversify", cases=(Case(12, 20),))
def check_diversify_places_a_sample_of_its_own_size_untouched(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """See that a sample resized to its own size is copied to the bit; all around it is exactly zero."""
    arguments = _arguments(case, device)
    height, width = case.size
    arguments["placements"] = torch.tensor([[height, width, row % 2, 2 - row % 3] for row in range(case.rows)]).to(
        device
    )
    shown = call(ops.diversify, arguments)
    for row in range(case.rows):
        top, left = row % 2, 2 - row % 3
        expected = torch.zeros_like(shown[row])
        expected[:, top : top + height, left : left + width] = arguments["samples"][row]
        assert_same(shown[row], expected, f"frame {row}")


@check("diversify_adjoint", cases=FRAMES)
def check_diversify_adjoint_is_as_accurate_as_the_reference(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule in poisoned memory."""
    arguments = _adjoint_arguments(case, device)
    got = call(ops.diversify_adjoint, arguments)
    assert_accurate_and_fresh(got, *single_and_exact(reference.diversify_adjoint, arguments), arguments, device)


@check("diversify", "diversify_adjoint", cases=FRAMES)
def check_diversify_adjoint_is_the_transpose(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare ``<diversify(x), y>`` and ``<x, diversify_adjoint(y)>`` for every row, to the rounding of such a sum."""
    forward, backward = _arguments(case, device), _adjoint_arguments(case, device)
    shown, back = ops.diversify(**forward).cpu().double(), ops.diversify_adjoint(**backward).cpu().double()
    gradient, samples = backward["gradient"].cpu().double(), forward["samples"].cpu().double()
    one, other = (shown * gradient).sum((1, 2, 3)), (samples * back).sum((1, 2, 3))
    scale = (shown * gradient).abs().sum((1, 2, 3))
    assert_true(bool(((one - other).abs() <= 1e-6 * scale).all()), f"{one.tolist()} and {other.tolist()} differ")


@check("diversify", "diversify_adjoint", cases=(Case(9, 12, 1, rows=4), Case(224, 224, 1, 3, 8, gpu=True)))
def check_diversify_depends_on_neither_neighbours_nor_strides_nor_run(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """Compare the bits in any order of rows, any layout, run after run; no rows, no result."""
    for function, arguments, values in (
        (ops.diversify, _arguments(case, device), "samples"),
        (ops.diversify_adjoint, _adjoint_arguments(case, device), "gradient"),
    ):
        whole = function(**arguments)
        order = torch.tensor([3, 0, 0], device=device)
        moved = {name: arguments[name][order] for name in (values, "placements")}
        assert_same(function(**{**arguments, **moved}), whole[order], "result of reordered rows")
        none = {name: arguments[name][:0] for name in (values, "placements")}
        empty = call(function, {**arguments, **none})
        assert_true(tuple(empty.shape) == (0, *whole.shape[1:]), f"no rows give shape {tuple(empty.shape)}")
        assert_any_strides(function, arguments)
        assert_repeatable(function, arguments, device)


@check("diversify_adjoint", cases=(Case(9, 30), Case(224, 224, channels=3, rows=8, gpu=True)))
def check_diversify_adjoint_of_a_constant_gradient_keeps_its_sum(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """Add up gradients of 1: as an output pixel's weights sum to 1, a sample gets as much as it has resized pixels."""
    arguments = _adjoint_arguments(case, device)
    arguments["gradient"] = torch.ones_like(arguments["gradient"])
    back: Tensor = call(ops.diversify_adjoint, arguments)
    assert_fresh(back, arguments, device)
    pixels = arguments["placements"][:, :2].prod(1).cpu().double()
    got = back.cpu().double().sum((2, 3))
    assert_true(bool(((got - pixels[:, None]).abs() <= 1e-5 * pixels[:, None]).all()), f"sums {got.tolist()}")
