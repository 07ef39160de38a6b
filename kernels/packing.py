"""Pack a complex64 number into one 64-bit integer, so that it is loaded and stored in one piece."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import triton
import triton.language as tl


@triton.jit
def pack(real, imaginary):
    """Join two float32 to the int64 that lies in memory as (real, imaginary), least significant byte first."""
    low = real.to(tl.uint32, bitcast=True).to(tl.uint64)
    high = imaginary.to(tl.uint32, bitcast=True).to(tl.uint64)
    return ((high << 32) | low).to(tl.int64, bitcast=True)


@triton.jit
def unpack(pair):
    """Split a number that was loaded as int64 into real and imaginary part, float32."""
    bits = pair.to(tl.uint64, bitcast=True)
    real = bits.to(tl.uint32).to(tl.float32, bitcast=True)
    return real, (bits >> 32).to(tl.uint32).to(tl.float32, bitcast=True)
