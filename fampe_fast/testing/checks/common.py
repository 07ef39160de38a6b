"""Share cases and assertions among the checks of several primitives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ...reference.radial_mask import SHAPES
from ..arguments import call
from ..error_rule import assert_as_accurate, assert_same, assert_true
from ..shapes import EDGE_SIZES, LARGE_SIZES, SIZES, Case, stride_variants

SMALL = tuple(Case(*size) for size in SIZES)
EDGES = tuple(Case(*size) for size in EDGE_SIZES)
LARGE = tuple(Case(*size, channels=3, gpu=True) for size in LARGE_SIZES)
OTHER_MASKS = SHAPES[1:]
"""The radial mask's shapes but the default."""


def tensors(result: Any) -> tuple[Tensor, ...]:
    """Return a primitive's result as a tuple, whether it is one tensor or several."""
    return (result,) if isinstance(result, Tensor) else tuple(result)


def assert_results(got: Any, expected: Any, what: str) -> None:
    """Assert that two results are the same, tensor for tensor."""
    for k, (one, other) in enumerate(zip(tensors(got), tensors(expected), strict=True)):
        assert_same(one, other, f"result {k} {what}")


def assert_fresh(got: Tensor, arguments: Mapping[str, Any], device: torch.device, contiguous: bool = True) -> None:
    """Assert that a result is on the device, in its own memory, and contiguous where required."""
    assert_true(got.device.type == device.type, f"result on {got.device}, expected {device}")
    assert_true(got.is_contiguous() or not contiguous, f"result with strides {got.stride()}, expected contiguous")
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.numel() and got.numel():
            shares = value.untyped_storage().data_ptr() == got.untyped_storage().data_ptr()
            assert_true(not shares, f"the result shares its memory with the argument {name}")


def assert_accurate_and_fresh(
    got: Tensor, single: Tensor, exact: Tensor, arguments: Mapping[str, Any], device: torch.device
) -> None:
    """Assert the error rule, the reference's dtype, and memory as in ``assert_fresh``."""
    assert_as_accurate(got, single, exact)
    assert_true(got.dtype == single.dtype, f"result is {got.dtype}, expected {single.dtype}")
    assert_fresh(got, arguments, device)


def stride_changes(arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Put the same arguments into other memory layouts: in the k-th of them every tensor has its k-th layout."""
    variants = {
        name: list(stride_variants(value).items())
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.ndim
    }
    changes = {}
    for layouts in zip_longest(*variants.values()):
        chosen = {name: layout for name, layout in zip(variants, layouts, strict=True) if layout is not None}
        described = ", ".join(f"{name} {layout}" for name, (layout, _) in chosen.items())
        changes[described] = {**arguments, **{name: tensor for name, (_, tensor) in chosen.items()}}
    return changes


def assert_any_strides(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Assert that the result is bitwise the same for every memory layout of the arguments."""
    whole = function(**arguments)
    for described, changed in stride_changes(arguments).items():
        assert_results(function(**changed), whole, f"with {described}")


def assert_repeatable(function: Callable[..., Any], arguments: Mapping[str, Any], device: torch.device) -> None:
    """Assert the same bits run after run: 3 runs on a CPU, 20 on a GPU, where races are."""
    first = function(**arguments)
    for run in range(2 if device.type == "cpu" else 19):
        assert_results(function(**arguments), first, f"of run {run + 2} against the first")


def assert_rows_stand_alone(
    function: Callable[..., Any], arguments: Mapping[str, Any], per_image: tuple[str, ...], per_row: tuple[str, ...]
) -> None:
    """Assert that a row's result depends only on its image and its own arguments, not on other rows or its position.

    Args:
        function: a primitive that takes rows.
        arguments: with ``image_index``, three images and seven rows at least.
        per_image: names of the arguments whose first dimension is the image.
        per_row: names of those whose first dimension is the row, ``image_index`` apart.
    """
    whole = function(**arguments)
    index = arguments["image_index"]
    order = torch.tensor([3, 3, 0, 6, 1], device=index.device)
    changed = {name: arguments[name][order] for name in ("image_index", *per_row)}
    assert_results(function(**{**arguments, **changed}), whole[order], "of reordered and repeated rows")
    rows = (index == 2).nonzero().flatten()
    changed = {name: arguments[name][2:3] for name in per_image}
    changed |= {name: arguments[name][rows] for name in per_row}
    changed["image_index"] = torch.zeros_like(rows)
    assert_results(function(**{**arguments, **changed}), whole[rows], "of one image's rows alone")


def assert_no_rows(
    function: Callable[..., Any], arguments: Mapping[str, Any], per_row: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    """Assert that no rows give an empty result of the right shape."""
    none = {name: arguments[name][:0] for name in ("image_index", *per_row)}
    got = call(function, {**arguments, **none})
    assert_true(tuple(got.shape) == (0, *shape), f"no rows give shape {tuple(got.shape)}, expected {(0, *shape)}")
