"""Check implementations of ``gradient_step``."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...reference.gradient_step import gradient_step as reference
from ..arguments import call, makes_arguments, normal, random, single_and_exact
from ..error_rule import EPSILON, assert_as_accurate, assert_same, assert_true
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case
from .common import assert_fresh, assert_repeatable, stride_changes

FIELDS = ("images", "momentum", "attribution", "scale")
IMAGES = ("images", "origin", "gradient_sum", "momentum", "attribution")

SMALL_STEPS = (
    Case(8, 8),
    Case(9, 11, batch=1, channels=3),
    Case(1, 1, batch=1, channels=1),
    Case(9, 11, batch=1, taps=3),
    Case(8, 36, batch=1, channels=1, taps=3),
    Case(8, 9, batch=1, channels=1, taps=7),
    Case(20, 5, batch=1, channels=1, taps=1),
    Case(3, 2, batch=1, channels=1, taps=5),
)
LARGE_STEPS = (
    Case(65, 130, 3, 3, taps=7, gpu=True),
    Case(224, 224, 2, 3, taps=7, gpu=True),
    Case(299, 224, 2, 3, taps=7, gpu=True),
    Case(512, 512, 1, 3, taps=0, gpu=True),
    Case(100, 33, 2, 1, taps=15, gpu=True),
)


@makes_arguments("gradient_step")
def _arguments(case: Case) -> dict[str, Any]:
    """Put images off their origin, so that projection and clamp both act; smooth by a pixel."""
    shape = (case.batch, case.channels, *case.size)
    origin = random(*shape, seed=1)
    kernel = torch.exp(-((torch.arange(case.taps) - case.taps // 2) ** 2) / 2.0)
    return {
        "images": (origin + 0.1 * normal(*shape, seed=2)).clamp(0, 1),
        "origin": origin,
        "gradient_sum": normal(*shape, seed=3),
        "momentum": normal(*shape, seed=4),
        "attribution": normal(*shape, seed=5),
        "kernel": kernel / kernel.sum() if case.taps else kernel,
        "samples": 20,
        "decay": 0.9,
        "step_size": 0.01,
        "eps": 16 / 255,
        "lower": 0.0,
        "upper": 1.0,
    }


def assert_step(ops: Primitives, device: torch.device, arguments: dict[str, Any]) -> None:
    """Assert the error rule for every field, in poisoned memory; dtype, layout.

    Where g_t is within 1e-5 of zero, rounding may decide its sign: there a step either way is right.
    """
    got = call(ops.gradient_step, arguments)
    plain = all(arguments[name].is_contiguous() for name in IMAGES)
    single, exact = single_and_exact(reference, arguments)
    g = exact.momentum
    undecided = (g.abs() <= 1e-5 * g.abs().amax((1, 2, 3), keepdim=True)) & (g != 0)
    assert_true(float(undecided.double().mean()) < 0.01, "too many gradients near zero for a meaningful check")
    for name in FIELDS:
        value, one, other = (getattr(result, name).cpu() for result in (got, single, exact))
        assert_true(value.dtype == one.dtype, f"{name} is {value.dtype}, expected {one.dtype}")
        if name == "images":
            turned = arguments["step_size"] * g.sign()
            below, above = other - 2 * turned.abs(), other + 2 * turned.abs()
            inside = (value >= below - 1e-6) & (value <= above + 1e-6)
            assert_true(bool(inside[undecided].all()), "images: further than a step from where they were")
            value, one = value.where(~undecided, other.to(value.dtype)), one.where(~undecided, other.to(one.dtype))
        assert_as_accurate(value, one, other, what=name)
        assert_fresh(getattr(got, name), arguments, device, contiguous=plain)


@check("gradient_step", cases=(*SMALL_STEPS, *LARGE_STEPS))
def check_gradient_step_is_as_accurate_as_the_reference(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule to all four results, with and without smoothing."""
    assert_step(ops, device, _arguments(case, device))


@check("gradient_step", cases=(Case(9, 12, 1, 1),))
def check_gradient_step_ascends_within_its_bounds(ops: Primitives, device: torch.device, case: Case) -> None:
    """Ascend with other bounds, no momentum and a kernel without symmetry (correlation is no convolution)."""
    changes = {"step_size": -0.02, "lower": 0.3, "upper": 0.6, "samples": 1, "decay": 0.0}
    assert_step(ops, device, _arguments(case, device, kernel=torch.tensor([0.5, 0.3, 0.2]), **changes))


@check("gradient_step", cases=(Case(8, 8, 1, 2),))
def check_gradient_step_known_answers(ops: Primitives, device: torch.device, case: Case) -> None:
    """Move by step_size against the sign and attribute step_size * |g| in a free step; at the edge move nothing.

    The gradients are +-1 and +-3 in equal numbers: their mean magnitude is exactly 2.
    """
    shape = (1, case.channels, *case.size)
    signs = normal(*shape, seed=7).sign()
    gradient = signs * torch.tensor([1.0, 3.0]).repeat(shape[-1] // 2)
    grey, still = torch.full(shape, 0.5), torch.zeros(shape)
    free: dict[str, Any] = {
        "images": grey,
        "origin": grey,
        "momentum": still,
        "attribution": still,
        "gradient_sum": 4 * gradient,
    }
    free |= {"samples": 4, "step_size": 2.0**-7, "eps": 2.0**-4, "decay": 0.5}
    got = ops.gradient_step(**_arguments(case, device, **free))
    assert_same(got.scale, torch.full((1,), 2.0), "scale")
    assert_same(got.images, 0.5 - 2.0**-7 * signs, "images after a free step")
    assert_same(got.momentum, gradient / 2, "momentum")
    assert_same(got.attribution, 2.0**-7 * gradient.abs() / 2, "attribution")

    again = ops.gradient_step(**_arguments(case, device, **{**free, "momentum": gradient / 2}))
    assert_same(again.momentum, 0.75 * gradient, "momentum of a second step with decay 0.5")

    at_edge = grey - 2.0**-4 * signs
    got = ops.gradient_step(**_arguments(case, device, **{**free, "images": at_edge}))
    assert_same(got.images, at_edge, "images at the edge of the projection")
    assert_same(got.attribution, still, "attribution of what cannot move")

    rest = {**free, "gradient_sum": still, "attribution": grey}
    got = ops.gradient_step(**_arguments(case, device, **rest))
    assert_same(got.images, grey, "images at rest")
    assert_same(got.attribution, grey, "attribution at rest")
    assert_same(got.scale, torch.zeros(1), "scale at rest")


@check("gradient_step", cases=(Case(64, 96, 1, 1), Case(512, 512, 1, 3, gpu=True)))
def check_gradient_step_adds_large_sums_in_float32(ops: Primitives, device: torch.device, case: Case) -> None:
    """Average many magnitudes 1: 1 to four ulp, where a sum in a shorter format stands still long before."""
    signs = normal(1, case.channels, *case.size, seed=8).sign()
    got = ops.gradient_step(**_arguments(case, device, gradient_sum=signs, samples=1)).scale.item()
    assert_true(abs(got - 1) <= 4 * EPSILON, f"mean magnitude {got!r}, expected 1")


@check("gradient_step", cases=(Case(8, 8, 1, 1),))
def check_gradient_step_normalises_tiny_and_huge_gradients(ops: Primitives, device: torch.device, case: Case) -> None:
    """Normalise gradients around 1e-41 (subnormal), 1e-30 and 1e30 to mean magnitude 1."""
    still = torch.zeros(1, 1, *case.size)
    gradient = normal(1, 1, *case.size, seed=3)
    for magnitude in (1e-41, 1e-30, 1e30):
        changes = {"momentum": still, "samples": 1, "gradient_sum": gradient * magnitude}
        arguments = _arguments(case, device, **changes)
        got, expected = ops.gradient_step(**arguments), single_and_exact(reference, arguments)[1]
        worst = (got.momentum.cpu() - expected.momentum).abs().max().item()
        # A subnormal's own spacing, 2^-149, is all the accuracy that the scale can have.
        allowed = (1e-5 + 2.0**-149 / expected.scale.item()) * expected.momentum.abs().max().item()
        assert_true(worst <= allowed, f"gradients around {magnitude}: momentum off by {worst:.3g}")
        assert_as_accurate(got.images, expected.images.float(), expected.images, what="images")


@check("gradient_step", cases=(Case(8, 8, 5, 1, taps=1),))
def check_gradient_step_spares_others_an_unusable_gradient(ops: Primitives, device: torch.device, case: Case) -> None:
    """See that images whose gradient is zero, NaN or infinite decay their momentum only, and change no others."""
    arguments = _arguments(case, device)
    clean = ops.gradient_step(**arguments)
    spoiled = arguments["gradient_sum"].clone()
    spoiled[1] = 0
    spoiled[2, 0, 3, 4], spoiled[3, 0, 0, 0] = math.nan, math.inf
    got = ops.gradient_step(**{**arguments, "gradient_sum": spoiled})
    expected = single_and_exact(reference, {**arguments, "gradient_sum": spoiled})
    for image in (1, 2, 3):
        for name in FIELDS[:3]:
            value, single, exact = (getattr(result, name)[image] for result in (got, *expected))
            assert_as_accurate(value, single, exact, what=f"{name} of an image without a usable gradient")
        scale = got.scale[image].item()
        assert_true(not (scale > 0 and math.isfinite(scale)), f"scale {scale} of an unusable gradient")
    for image in (0, 4):
        for name in FIELDS:
            what = f"{name} of image {image} beside unusable ones"
            assert_same(getattr(got, name)[image], getattr(clean, name)[image], what)


@check("gradient_step", cases=(Case(5, 34, 2, 1, taps=3), Case(224, 224, 4, 3, taps=7, gpu=True)))
def check_gradient_step_depends_on_neither_batch_nor_run(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare an image's step alone and in every run; no image gives none."""
    arguments = _arguments(case, device)
    whole = ops.gradient_step(**arguments)
    last = {name: arguments[name][-1:] for name in IMAGES}
    alone = ops.gradient_step(**{**arguments, **last})
    for name in FIELDS:
        assert_same(getattr(alone, name), getattr(whole, name)[-1:], f"{name} of one image alone")
    assert_repeatable(ops.gradient_step, arguments, device)
    none = ops.gradient_step(**{**arguments, **{name: arguments[name][:0] for name in IMAGES}})
    for name in FIELDS:
        expected = (0, *getattr(whole, name).shape[1:])
        got = tuple(getattr(none, name).shape)
        assert_true(got == expected, f"{name} of no images has shape {got}, expected {expected}")


@check("gradient_step", cases=(Case(8, 9), Case(65, 130, 2, 3, taps=7, gpu=True)))
def check_gradient_step_takes_any_strides(ops: Primitives, device: torch.device, case: Case) -> None:
    """Apply the error rule to every argument in every layout, as a sum's order may follow the layout."""
    for arguments in stride_changes(_arguments(case, device)).values():
        assert_step(ops, device, arguments)
