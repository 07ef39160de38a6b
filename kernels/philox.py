"""Draw Philox4x32 numbers on the device, bitwise equal to those of ``fampe_fast.reference.philox``."""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import triton
import triton.language as tl

from ..reference.philox import ROUNDS as _ROUNDS

ROUNDS: tl.constexpr = tl.constexpr(_ROUNDS)

# 2^-31: the factor still missing after `to_integer`. A power of two, so other factors can absorb it without rounding.
UNIT: tl.constexpr = tl.constexpr(2.0**-31)


@triton.jit
def split_seed(seed):
    """Split a 64-bit seed into the key: its low and its high 32 bits, uint32."""
    bits = seed.to(tl.uint64, bitcast=True)
    return bits.to(tl.uint32), (bits >> 32).to(tl.uint32)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1, rounds: tl.constexpr = ROUNDS):
    """Draw four uint32 words for every counter; counters and keys uint32, scalars or blocks that broadcast.

    The product is taken in 64 bits: one wide multiplication gives both halves. A scalar counter stays scalar through
    the first rounds, and what does not depend on a loop's variable is moved out of the loop by the compiler: in
    ``band_mix`` the first two rounds cost four instructions instead of eight.
    """
    for i in tl.static_range(rounds):
        if i > 0:
            # In 64 bits and cut off: a wrap that Triton's overflow check (debug mode) accepts; the machine adds 32.
            k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
            k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
    return c0, c1, c2, c3


# The mask of `to_integer`, as a signed number for a kernel's argument list. Handed over at run time because a logic
# instruction holds one literal: of two, the second costs a move for every word (6% of all instructions of `band_mix`).
LOW_BYTE = -0x100


@triton.jit
def to_integer(words, mask=0xFFFFFF00):
    """Compute ``to_uniform`` times 2^31, exactly: the odd 24-bit integer of the reference, 128-fold, in float32.

    ``2 * (w >> 8) - (2^24 - 1)``, 128-fold and in two's complement, is w with its top bit flipped and its low byte
    set to 0x80: one logic instruction and one conversion.
    """
    return ((words & mask) ^ 0x80000080).to(tl.int32, bitcast=True).to(tl.float32)


@triton.jit
def to_uniform(words):
    """Convert words to float32 in (-1, 1): an odd integer times 2^-24, bitwise equal to the reference."""
    return to_integer(words) * UNIT
