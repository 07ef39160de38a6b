"""Multiply and add with one rounding, for algorithms that need it to be correct."""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

_FACTOR = 1 + 2.0**-12


@triton.jit
def _square_less(rest_ptr, factor, subtrahend):
    tl.store(rest_ptr, tl.fma(factor, factor, -subtrahend))


def _rounds_twice() -> bool:
    """Measure whether ``tl.fma`` loses the last bit of a product: interpreters up to Triton 3.8 multiply, then add."""
    if isinstance(_square_less, JITFunction):
        return False  # compiled
    rest = torch.zeros(1, dtype=torch.float32, device="cpu")
    _square_less[(1,)](rest, _FACTOR, 1 + 2.0**-11)
    return float(rest) != 2.0**-24


_TWICE: tl.constexpr = tl.constexpr(_rounds_twice())


@triton.jit
def fma(x, y, z):
    """Compute ``x * y + z`` in float32, rounded once; in an interpreter that rounds twice, the sum in float64.

    There the product is exact, and the sum is rounded to 53 bits before it is to 24: another result than one rounding
    only where the exact one lies within 2^-53 of the middle between two float32.
    """
    if _TWICE:
        return (x.to(tl.float64) * y.to(tl.float64) + z.to(tl.float64)).to(tl.float32)
    return tl.fma(x, y, z)
