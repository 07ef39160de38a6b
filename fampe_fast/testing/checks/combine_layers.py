"""Check implementations of ``combine_layers``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...reference.combine_layers import combine_layers as reference
from ..arguments import call, makes_arguments, normal, random, single_and_exact
from ..error_rule import assert_as_accurate, assert_same, assert_true
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case, stride_variants
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

Layers = Sequence[tuple[int, int]]
WEIGHTS, GATES = (0.5, 1.0, 2.0, 0.25, 0.75), (0.25, 0.0, 0.5, 0.125, 1.0)
# Several tiles, and more pixels than are summed at once.
TILES = (Case(33, 70), Case(70, 66, batch=1))


@makes_arguments("combine_layers")
def _arguments(case: Case) -> dict[str, Any]:
    """Make evidence of the pixels, large at few of them, and of layers at strides 4, 8, 16 and 32, partly zero."""
    layers = layers_of(*case.size)
    return {
        "pixels": random(case.batch, *case.size, seed=1) ** 3,
        "evidence": _evidence(case.batch, layers),
        "sizes": [side for layer in layers for side in layer],
        "weights": list(WEIGHTS),
        "gates": list(GATES),
        "floor": 0.3,
    }


def layers_of(height: int, width: int) -> list[tuple[int, int]]:
    """List the sizes of the example's layers for images of one size."""
    return [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]


def _evidence(batch: int, layers: Layers) -> Tensor:
    return torch.relu(normal(batch, sum(height * width for height, width in layers), seed=2) + 1)


def with_layers(arguments: dict[str, Any], layers: Layers) -> dict[str, Any]:
    """Replace the layers of the arguments, with weights and gates that differ between levels."""
    return {
        **arguments,
        "evidence": _evidence(len(arguments["pixels"]), layers).to(arguments["pixels"].device),
        "sizes": [side for layer in layers for side in layer],
        "weights": [1 / (2 + level) for level in range(1 + len(layers))],
        "gates": [level / 7 for level in range(1 + len(layers))],
    }


def _levels(arguments: dict[str, Any]) -> list[Tensor]:
    """View the pixels and each layer as (B, cells): what is written to one changes the arguments."""
    sizes = arguments["sizes"]
    cells = [height * width for height, width in zip(sizes[::2], sizes[1::2], strict=True)]
    return [arguments["pixels"].flatten(1), *arguments["evidence"].split(cells, 1)]


@check("combine_layers", cases=(*SMALL, *EDGES, *TILES, *LARGE))
def check_combine_layers_is_as_accurate_as_the_reference(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule; see dtype, shape and layout; in poisoned memory."""
    arguments = _arguments(case, device)
    got = call(ops.combine_layers, arguments)
    assert_accurate_and_fresh(got, *single_and_exact(reference, arguments), arguments, device)


@check("combine_layers", cases=(Case(9, 12), Case(1, 7), Case(224, 224, gpu=True)))
def check_combine_layers_resizes_any_layers(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule to no layers, the most, the image's own size, larger ones, single rows, columns, cells."""
    height, width = case.size
    for layers in (
        [],
        [(height, width)],
        [(2 * height + 1, 3 * width + 2)],
        [(2 * height, 1), (1, 2 * width), (1, 1)],
        [(1 + k, 9 - k) for k in range(8)],
    ):
        arguments = with_layers(_arguments(case, device), layers)
        got = call(ops.combine_layers, arguments)
        assert_accurate_and_fresh(got, *single_and_exact(reference, arguments), arguments, device)


@check("combine_layers", cases=(Case(9, 12), Case(8, 8), Case(224, 224, gpu=True)))
def check_combine_layers_takes_a_level_without_structure_for_one(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """Expect products of the sums of weights and of gates where every level is constant, whatever the constants."""
    arguments = _arguments(case, device)
    for level, constant in zip(_levels(arguments), (0.7, 3e-5, 1e5, 0.7, 11.0), strict=True):
        level.fill_(constant)
    one = torch.full_like(arguments["pixels"], sum(WEIGHTS) * (0.3 + sum(GATES)))
    assert_as_accurate(call(ops.combine_layers, arguments), one, one.double())


@check("combine_layers", cases=(Case(9, 12), Case(8, 8, batch=3), Case(224, 224, gpu=True)))
def check_combine_layers_takes_evidence_of_any_scale(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule to levels of 1e-42 to 3e38 in all mixtures; their scale does not show in the result."""
    scales = (1e-42, 1e-30, 1e30, 3e38)
    plain = ops.combine_layers(**_arguments(case, device))
    for shift in range(len(scales)):
        arguments = _arguments(case, device)
        for k, level in enumerate(_levels(arguments)):
            level /= level.amax(1, keepdim=True).clamp(min=1e-3)
            level *= scales[(k + shift) % len(scales)]
        got = call(ops.combine_layers, arguments)
        assert_as_accurate(got, *single_and_exact(reference, arguments))
        # At 1e-42 a level has steps of a thousandth.
        assert_true(
            bool(((got - plain).abs() <= 0.01 * plain.amax((1, 2), keepdim=True)).all()), "the scale shows in the map"
        )


@check("combine_layers", cases=(Case(9, 12, batch=6),))
def check_combine_layers_leaves_empty_levels_empty_and_hides_no_nan(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """Expect a level of zeros to count as if it had no weight, NaN in images with NaN or infinity, no change in others.

    In image 1 the pixels are empty, in 2 a layer, in 3 all; in 4 a cell of a layer is NaN, in 5 a pixel infinite.
    """
    arguments = _arguments(case, device)
    expected = call(ops.combine_layers, arguments)
    for image, empty in ((1, 0), (2, 1)):
        weights, gates = ([0.0 if k == empty else x for k, x in enumerate(numbers)] for numbers in (WEIGHTS, GATES))
        expected[image] = ops.combine_layers(**{**arguments, "weights": weights, "gates": gates})[image]
        _levels(arguments)[empty][image] = 0
    for level in _levels(arguments):
        level[3] = 0
    expected[3] = 0
    _levels(arguments)[1][4, 2], _levels(arguments)[0][5, 7] = math.nan, math.inf
    expected[4:] = math.nan
    assert_same(call(ops.combine_layers, arguments), expected)


@check("combine_layers", cases=(Case(9, 12), Case(20, 40), Case(224, 224, batch=5, gpu=True)))
def check_combine_layers_depends_on_neither_strides_nor_batch_nor_run(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """Compare the bits from every layout of pixels and evidence, of an image alone, and run after run."""
    arguments = _arguments(case, device)
    assert_any_strides(ops.combine_layers, arguments)
    exchanged = {**arguments, "pixels": stride_variants(arguments["pixels"])["last two exchanged"]}
    assert_fresh(call(ops.combine_layers, exchanged), exchanged, device)
    alone = {**arguments, **{name: arguments[name][1:2] for name in ("pixels", "evidence")}}
    assert_results(ops.combine_layers(**alone), ops.combine_layers(**arguments)[1:2], "of an image alone")
    assert_repeatable(ops.combine_layers, arguments, device)


@check("combine_layers", cases=(Case(9, 8),))
def check_combine_layers_of_no_images_is_empty(ops: Primitives, device: torch.device, case: Case) -> None:
    """Expect a result without images."""
    arguments = _arguments(case, device)
    none = {**arguments, **{name: arguments[name][:0] for name in ("pixels", "evidence")}}
    got = call(ops.combine_layers, none)
    assert_same(got, torch.empty((0, *case.size)))
    assert_fresh(got, none, device)
