"""Decide whether a kernel's result is right: by its error for rounded arithmetic, and bitwise otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps


def assert_as_accurate(got: Tensor, single: Tensor, exact: Tensor, ulps: float = 4, what: str = "result") -> None:
    """Assert that the error of ``got`` is at most twice the float32 reference's, or a few ulp where that is less.

    Errors are the largest of a plane, and an ulp is that of the plane's largest value: what follows (an inverse
    transform, a mean over pixels) adds up the whole plane, so that is the scale on which an error counts; and an
    element's own error in the reference is anything from zero to an ulp by chance.

    Args:
        got: the result under test, real or complex, of any shape; the last two dimensions are a plane.
        single: the reference's result in float32 (or complex64), same shape.
        exact: the reference's result in float64 (or complex128), same shape.
        ulps: the floor, in units of 2^-23 times the plane's largest magnitude.
        what: name of the result in the message.

    Raises:
        AssertionError: shapes differ, a value is not finite, or the error is too large.
    """
    if got.shape != exact.shape or single.shape != exact.shape:
        raise AssertionError(f"{what}: shape {tuple(got.shape)}, expected {tuple(exact.shape)}")
    if exact.is_complex():
        if not got.is_complex():
            raise AssertionError(f"{what}: {got.dtype}, expected complex numbers")
        got, single, exact = (torch.view_as_real(t.detach().resolve_conj()).flatten(-2) for t in (got, single, exact))
    got, single, exact = (t.detach().cpu().double() for t in (got, single, exact))
    if not got.isfinite().all():
        raise AssertionError(f"{what}: {int((~got.isfinite()).sum())} of {got.numel()} values are not finite")
    if not exact.numel():
        return
    dims = (-2, -1) if exact.ndim > 1 else (-1,)
    error, allowed = ((t - exact).abs().amax(dims) for t in (got, single))
    bound = torch.maximum(2 * allowed, ulps * EPSILON * exact.abs().amax(dims))
    if not (error <= bound).all():
        worst = int((error - bound).argmax())
        raise AssertionError(
            f"{what}: error {error.flatten()[worst]:.3g}, allowed {bound.flatten()[worst]:.3g} "
            f"(float32 reference {allowed.flatten()[worst]:.3g})"
        )


def assert_same(got: Tensor, expected: Tensor, what: str = "result") -> None:
    """Assert the same shape, dtype and values; NaN equals NaN, and -0 equals 0. The devices may differ.

    Raises:
        AssertionError: they are not; the message counts the differences and shows the first.
    """
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise AssertionError(
            f"{what}: {got.dtype} {tuple(got.shape)}, expected {expected.dtype} {tuple(expected.shape)}"
        )
    got, expected = got.detach().cpu().resolve_conj(), expected.detach().cpu().resolve_conj()
    differs = (got != expected) & ~((got != got) & (expected != expected))
    if differs.any():
        first = tuple(differs.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(differs.sum())} of {got.numel()} values differ, the first at {first}: "
            f"{got[first].item()!r}, expected {expected[first].item()!r}"
        )


def assert_true(condition: bool, message: str) -> None:
    """Raise ``AssertionError(message)`` unless ``condition`` holds; unlike the statement, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)
