"""Find the source pixels and weights of a bilinearly resized image.

They are derived from integers, ``((2y + 1) H - h) / 2h`` for row y of h resized from H: a weight is rounded once.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import triton
import triton.language as tl

from .fused import fma


@triton.jit
def inverse(divisor):
    """Prepare a positive scalar divisor for ``divide``, once per program, as a division takes 20 instructions."""
    return 0xFFFFFFFF // divisor.to(tl.uint32)


@triton.jit
def divide(number, divisor, inverse):
    """Divide integers 0 <= number < 2^31 exactly, with remainder: the product's upper half is at most one too small."""
    quotient = tl.umulhi(number.to(tl.uint32), inverse).to(tl.int32)
    rest = number - quotient * divisor
    short = rest >= divisor
    return tl.where(short, quotient + 1, quotient), tl.where(short, rest - divisor, rest)


@triton.jit
def reciprocal(divisor):
    """Compute 1 / divisor, rounded to nearest."""
    return tl.div_rn(1.0, divisor.to(tl.float32))


@triton.jit
def source_pixels(target, size, resized, inverse, reciprocal):
    """Find the two source pixels, and the second's weight, of pixel ``target`` of a side resized from ``size``.

    The weight is rounded once, without a division: a quotient from the rounded ``reciprocal`` of ``2 resized``,
    corrected by what is left of the dividend, is the rounded quotient (P. Markstein, IBM J. Res. Dev. 34, 1990).
    """
    position = tl.maximum((2 * target + 1) * size - resized, 0)
    first, rest = divide(position, 2 * resized, inverse)
    dividend = rest.to(tl.float32)
    quotient = dividend * reciprocal
    left = fma(-quotient, (2 * resized).to(tl.float32), dividend)
    return tl.minimum(first, size - 1), tl.minimum(first + 1, size - 1), fma(left, reciprocal, quotient)
