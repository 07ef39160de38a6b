"""Check implementations of ``accumulate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...reference.accumulate import accumulate as reference
from ..arguments import makes_arguments, moved, normal, random, whole
from ..error_rule import assert_same, assert_true
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case, stride_variants
from .common import LARGE, SMALL


@makes_arguments("accumulate")
def _arguments(case: Case) -> dict[str, Any]:
    """Draw gradients of magnitudes from 1e-3 to 1e3, so that the order of addition shows; the image runs fastest."""
    magnitude = 10 ** (6 * random(case.rows, 1, 1, 1, seed=3) - 3)
    return {
        "total": normal(case.batch, case.channels, *case.size, seed=1),
        "gradient": magnitude * normal(case.rows, case.channels, *case.size, seed=2),
        "image_index": torch.arange(case.rows) % case.batch,
    }


def _in_any_order(case: Case, device: torch.device) -> dict[str, Any]:
    return _arguments(case, device, image_index=whole(0, case.batch, case.rows, seed=8))


def _added(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Tensor:
    """Return the total afterwards: it is written in place, nothing is returned, and no other argument changes."""
    arguments = {name: value.clone(memory_format=torch.preserve_format) for name, value in arguments.items()}
    before = {name: value.clone() for name, value in arguments.items()}
    result = function(**arguments)
    assert_true(result is None, f"accumulate returned {type(result).__name__}, expected nothing")
    for name in ("gradient", "image_index"):
        assert_same(arguments[name], before[name], f"argument {name} after the call")
    total: Tensor = arguments["total"]
    return total


@check("accumulate", cases=(*SMALL, Case(9, 12, batch=3, rows=17), *LARGE))
def check_accumulate_adds_rows_in_their_order(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the sums bit for bit with the reference, which adds in ascending order of the rows."""
    arguments = _in_any_order(case, device)
    expected = moved(arguments, "cpu")
    assert_same(_added(ops.accumulate, arguments), _added(reference, expected), "total")


@check("accumulate", cases=(Case(9, 12, batch=3, rows=6),))
def check_accumulate_leaves_images_without_rows_alone(ops: Primitives, device: torch.device, case: Case) -> None:
    """Check that only images with rows change, and nothing changes without rows."""
    arguments = _in_any_order(case, device)
    arguments["image_index"] = torch.tensor([0, 2, 0, 0, 2, 2], device=device)
    after = _added(ops.accumulate, arguments)
    assert_same(after[1], arguments["total"][1], "image without rows")
    assert_true(not torch.equal(after[0], arguments["total"][0]), "nothing was added to image 0")
    none = {"gradient": arguments["gradient"][:0], "image_index": arguments["image_index"][:0]}
    assert_same(_added(ops.accumulate, {**arguments, **none}), arguments["total"], "total without rows")


@check("accumulate", cases=(Case(9, 12, channels=3, rows=5), Case(224, 224, channels=3, rows=64, gpu=True)))
def check_accumulate_takes_any_strides_and_repeats(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare the bits from gradients in any memory layout, run after run."""
    arguments = _in_any_order(case, device)
    whole = _added(ops.accumulate, arguments)
    for layout, gradient in stride_variants(arguments["gradient"]).items():
        total = arguments["total"].clone()
        ops.accumulate(total, gradient, arguments["image_index"])
        assert_same(total, whole, f"total from gradients {layout}")
    for run in range(2 if device.type == "cpu" else 19):
        assert_same(_added(ops.accumulate, arguments), whole, f"total of run {run + 2}")
