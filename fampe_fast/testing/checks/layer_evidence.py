"""Check implementations of ``layer_evidence``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...reference.layer_evidence import layer_evidence as reference
from ..arguments import call, makes_arguments, normal, single_and_exact, whole
from ..error_rule import assert_as_accurate, assert_same, assert_true
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case
from .common import (
    EDGES,
    LARGE,
    SMALL,
    assert_accurate_and_fresh,
    assert_any_strides,
    assert_fresh,
    assert_repeatable,
    assert_results,
)

# Few channels and many, a power of two and not, planes down to a pixel.
DEEP = (Case(7, 7, channels=70), Case(1, 1, channels=300), Case(3, 5, batch=1, channels=1100), Case(8, 8, channels=64))
LAYERS = tuple(
    Case(side, side, batch=8, channels=channels, gpu=True)
    for side, channels in ((112, 16), (56, 256), (28, 512), (14, 1024), (7, 2048), (7, 1280), (14, 192))
)
HALVES = (torch.float16, torch.bfloat16)


@makes_arguments("layer_evidence")
def _arguments(case: Case) -> dict[str, Any]:
    """Draw a gradient that opposes the activation, so that most pixels have evidence and some have none."""
    shape = (case.batch, case.channels, *case.size)
    activation = normal(*shape, seed=1)
    return {"activation": activation, "gradient": normal(*shape, seed=2) - activation / 2}


def as_tokens(values: Tensor) -> Tensor:
    """Lay a layer out as tokens (B, 1 + N, C) behind a class token: the same values, channels fastest, with a gap."""
    tokens = values.new_zeros((len(values), 1 + values[0, 0].numel(), values.shape[1]))
    tokens[:, 1:] = values.flatten(2).transpose(1, 2)
    return tokens[:, 1:].transpose(1, 2).view(values.shape)


def _as_part(values: Tensor, dim: int, memory_format: torch.memory_format) -> Tensor:
    """Lay a layer out as all but the last channel (1) or row (2) of a larger one, whose strides may be odd."""
    shape = list(values.shape)
    shape[dim] += 1
    whole = values.new_zeros(shape).contiguous(memory_format=memory_format)
    part = whole.narrow(dim, 0, values.shape[dim])
    return part.copy_(values)


@check("layer_evidence", cases=(*SMALL, *EDGES, Case(9, 7, channels=1), *DEEP, *LARGE, *LAYERS))
def check_layer_evidence_is_as_accurate_as_the_reference(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule; see dtype, shape and layout; in poisoned memory, channels-last too."""
    arguments = _arguments(case, device)
    expected = single_and_exact(reference, arguments)
    assert_accurate_and_fresh(call(ops.layer_evidence, arguments), *expected, arguments, device)
    last = {name: values.contiguous(memory_format=torch.channels_last) for name, values in arguments.items()}
    assert_accurate_and_fresh(call(ops.layer_evidence, last), *expected, last, device)


@check("layer_evidence", cases=(Case(5, 6, channels=3), Case(3, 4, channels=70), Case(56, 56, channels=256, gpu=True)))
def check_layer_evidence_adds_products_and_keeps_what_lowers_the_loss(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """Compare to the bit with a contraction, on small whole numbers: their sums are exact in any order."""
    shape = (case.batch, case.channels, *case.size)
    for dtype in (torch.float32, *HALVES):
        arguments = {
            name: whole(-8, 9, *shape, seed=seed).to(device, dtype)
            for seed, name in enumerate(("activation", "gradient"))
        }
        products = torch.einsum("bchw,bchw->bhw", *(values.cpu().double() for values in arguments.values()))
        expected = torch.where(products < 0, -products, 0.0).float()
        assert_true(bool((expected > 0).any() and (expected == 0).any()), "the example has no sums of both signs")
        assert_same(call(ops.layer_evidence, arguments), expected, f"result from {dtype}")


@check("layer_evidence", cases=(Case(9, 8, channels=3), Case(4, 4, channels=70), Case(14, 14, channels=768, gpu=True)))
def check_layer_evidence_adds_halves_in_float32(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare halves, mixed dtypes and float64 with exact sums of the same numbers; a product may leave float16."""
    both = ((dtype, dtype) for dtype in HALVES)
    for dtypes in (
        *both,
        HALVES,
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float64,) * 2,
    ):
        arguments = _arguments(case, device)
        arguments["activation"] = (300 * arguments["activation"]).to(dtypes[0])
        arguments["gradient"] = (300 * arguments["gradient"]).to(dtypes[1])
        got, (single, exact) = call(ops.layer_evidence, arguments), single_and_exact(reference, arguments)
        assert_accurate_and_fresh(got, single, exact, arguments, device)
        if single.dtype == torch.float64:
            assert_as_accurate(got, single, exact, ulps=2**-20)


@check("layer_evidence", cases=(Case(5, 6, channels=3), Case(3, 4, channels=70)))
def check_layer_evidence_hides_no_nan(ops: Primitives, device: torch.device, case: Case) -> None:
    """Expect NaN where a product is NaN, infinity where evidence is infinite, and the other pixels untouched."""
    arguments = _arguments(case, device)
    clean = call(ops.layer_evidence, arguments)
    arguments["gradient"][0, -1, 0, 0] = math.nan
    arguments["activation"][1, 0, 2, 3] = math.inf
    arguments["gradient"][1, 0, 2, 3] = -1.0
    expected = clean.clone()
    expected[0, 0, 0], expected[1, 2, 3] = math.nan, math.inf
    assert_same(call(ops.layer_evidence, arguments), expected)


@check(
    "layer_evidence",
    cases=(
        Case(9, 12),
        Case(8, 9, channels=8),
        Case(7, 7, channels=40),
        Case(4, 4, channels=300),
        Case(28, 28, channels=512, gpu=True),
    ),
)
def check_layer_evidence_depends_on_neither_strides_nor_batch_nor_run(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """Compare the bits from every layout, both tensors in one and in two; of an image alone; run after run."""
    arguments = _arguments(case, device)
    whole_batch = ops.layer_evidence(**arguments)
    assert_any_strides(ops.layer_evidence, arguments)
    layouts: dict[str, Callable[[Tensor], Tensor]] = {
        "tokens": as_tokens,
        "some channels of a channels-last layer": partial(_as_part, dim=1, memory_format=torch.channels_last),
        "some rows of a layer": partial(_as_part, dim=2, memory_format=torch.contiguous_format),
    }
    for layout, lay_out in layouts.items():
        laid_out = {name: lay_out(values) for name, values in arguments.items()}
        assert_results(ops.layer_evidence(**laid_out), whole_batch, f"of {layout}")
        for name, values in laid_out.items():
            mixed = {**arguments, name: values}
            assert_results(ops.layer_evidence(**mixed), whole_batch, f"with {name} {layout}, the other contiguous")
        alone = {name: values[1:2] for name, values in laid_out.items()}
        assert_results(ops.layer_evidence(**alone), whole_batch[1:2], f"of an image of {layout}")
    alone = {name: values[1:2] for name, values in arguments.items()}
    assert_results(ops.layer_evidence(**alone), whole_batch[1:2], "of an image alone")
    pooled = arguments["gradient"][:, :, :1, :1].expand_as(arguments["gradient"])
    spread = ops.layer_evidence(**{**arguments, "gradient": pooled.contiguous()})
    assert_results(ops.layer_evidence(**{**arguments, "gradient": pooled}), spread, "of an expanded gradient")
    assert_repeatable(ops.layer_evidence, arguments, device)


@check("layer_evidence", cases=(Case(9, 8, channels=3),))
def check_layer_evidence_of_no_images_is_empty(ops: Primitives, device: torch.device, case: Case) -> None:
    """Expect a result without images, in the dtype of others."""
    arguments = {name: values[:0] for name, values in _arguments(case, device).items()}
    got = call(ops.layer_evidence, arguments)
    assert_same(got, torch.empty((0, *case.size)))
    assert_fresh(got, arguments, device)
