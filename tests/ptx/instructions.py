"""What each PTX instruction computes, on arrays of the values of many threads (PTX ISA, "Instruction Set").

Registers hold unsigned words; an operation's type says how they are read. Arrays may have size 1 along programs or
threads where a value is the same for all of them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[Any]
DTYPES: dict[str, Any] = {
    **{f"b{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"u{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    "f16": np.dtype("f2"),
    "f32": np.dtype("f4"),
    "f64": np.dtype("f8"),
    "pred": np.dtype(bool),
}


class UnknownInstructionError(NotImplementedError):
    """The machine does not know an instruction: teach it, the kernels' code has changed."""


@dataclass(frozen=True)
class Approximation:
    """What inexact instructions return, among the results that their documented error bounds permit.

    Attributes:
        share: of the bound, from -1 (all results as low as permitted) over 0 (rounded correctly) to 1.
    """

    share: float = 0.0

    def of(self, exact: Words, ulps: int) -> Words:
        """The float32 next to the exact float64 values, moved by ``share`` of ``ulps``, without subnormals."""
        result = exact.astype(np.float32)
        for _ in range(round(abs(self.share) * ulps)):
            result = np.nextafter(result, np.float32(math.copysign(math.inf, self.share)))
        return _flush(np.where(exact == 0, np.float32(0) * exact.astype(np.float32), result))


def typed(words: Words, kind: str) -> Words:
    """Registers' words as values of a type; of wider registers the low part."""
    dtype = DTYPES[kind]
    if words.dtype == dtype:
        return words
    if words.dtype.itemsize != dtype.itemsize:
        words = words.astype(f"u{dtype.itemsize}")
    return words.view(dtype)


def immediate(text: str, kind: str) -> Words:
    """A literal as a value of a type."""
    dtype = DTYPES[kind]
    if text[:2] in ("0f", "0d"):
        return np.full((1, 1), int(text[2:], 16), np.uint32 if text[1] == "f" else np.uint64)
    if dtype.kind == "f":
        return np.full((1, 1), float(text), dtype)
    value = int(text, 0)
    if dtype.kind == "b":
        return np.full((1, 1), bool(value))
    bits = 8 * dtype.itemsize
    return np.full((1, 1), value & (2**bits - 1), f"u{dtype.itemsize}").view(dtype)


def _flush(values: Words) -> Words:
    tiny = np.abs(values) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), values), values)


def half(words: Words, which: int) -> Words:
    """The lower (0) or upper (1) half of every word."""
    bits = 4 * words.dtype.itemsize
    return (words >> np.asarray(which * bits, words.dtype)).astype(f"u{bits // 8}")


def joined(low: Words, high: Words) -> Words:
    """Words from their halves."""
    size = low.dtype.itemsize
    low, high = (np.ascontiguousarray(part).view(f"u{size}").astype(f"u{2 * size}") for part in (low, high))
    return low | (high << np.asarray(8 * size, high.dtype))


# Integers -------------------------------------------------------------------------------------------------------------


def _wide(a: Words) -> Words:
    return a.astype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")


def _high(a: Words, b: Words) -> Words:
    if a.dtype.itemsize == 8:
        product = a.astype(object) * b.astype(object)
        return (product >> 64).astype(a.dtype)
    return ((_wide(a) * _wide(b)) >> (8 * a.dtype.itemsize)).astype(a.dtype)


def _quotient(a: Words, b: Words) -> Words:
    safe = np.where(b == 0, 1, b).astype(b.dtype)
    quotient = a // safe
    towards_zero = (a - quotient * safe != 0) & ((a < 0) != (safe < 0))
    return (quotient + towards_zero).astype(a.dtype)  # numpy rounds down, PTX towards zero


def _shift_left(a: Words, amount: Words) -> Words:
    bits = 8 * a.dtype.itemsize
    return np.where(amount < bits, a << np.minimum(amount, bits - 1).astype(a.dtype), 0).astype(a.dtype)


def _shift_right(a: Words, amount: Words) -> Words:
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(amount, bits - 1).astype(a.dtype)
    if a.dtype.kind == "i":
        return shifted.astype(a.dtype)
    return np.where(amount < bits, shifted, 0).astype(a.dtype)


def _extract(a: Words, position: Words, length: Words) -> Words:
    """``bfe``: a field of bits; of a signed number with the field's highest bit, or the number's, in front."""
    bits = 8 * a.dtype.itemsize
    position, length = position & 0xFF, np.minimum(length & 0xFF, bits)
    if a.dtype.kind == "u":
        mask = _shift_left(np.full((1, 1), 1, a.dtype), length) - np.full((1, 1), 1, a.dtype)
        return (_shift_right(a, position) & mask).astype(a.dtype)
    # To the upper end and back down; a field that reaches beyond it is filled with the sign.
    spare = bits - np.minimum(position + length, bits)
    moved = _shift_right(_shift_left(a, spare), np.minimum(position + spare, bits - 1))
    return np.where(length == 0, 0, moved).astype(a.dtype)


# Floating point -------------------------------------------------------------------------------------------------------


def _fused(a: Words, b: Words, c: Words) -> Words:
    """``a * b + c`` rounded once: the sum of an exact product in float64, rounded to odd, then to float32."""
    product = a.astype(np.float64) * b.astype(np.float64)
    other = c.astype(np.float64)
    total = product + other
    part = total - product
    lost = (product - (total - part)) + (other - part)
    even = (np.ascontiguousarray(total).view(np.uint64) & np.uint64(1)) == 0
    odd = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    return np.where(even & (lost != 0) & np.isfinite(total), odd, total).astype(np.float32)


_TO_WHOLE: dict[str, Callable[[Words], Words]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def _to_integer(a: Words, dtype: Any, rounding: str) -> Words:
    whole = _TO_WHOLE[rounding](a.astype(np.float64))
    limits = np.iinfo(dtype)
    inside = np.where(np.isnan(whole), 0, np.clip(whole, float(limits.min), float(limits.max)))
    top = inside >= float(limits.max)  # which float64 rounds up
    return np.where(top, limits.max, np.where(top, 0, inside).astype(dtype)).astype(dtype)


def _widened(words: Words) -> Words:
    """A bfloat16 as a float32, whose upper half it is."""
    return joined(np.zeros((1, 1), np.uint16), typed(words, "b16")).view(np.float32)


def convert(opcode: tuple[str, ...], sources: list[Words]) -> Words:
    """``cvt``: between the last two types named."""
    to, source = opcode[-2:]
    modifiers = set(opcode[1:-2])
    rounding = next((m for m in modifiers if m in _TO_WHOLE), None)
    value = _widened(sources[0]) if source == "bf16" else typed(sources[0], source)
    if "ftz" in modifiers and source == "f32":
        value = _flush(value)
    target = DTYPES[to]
    if value.dtype.kind == "f" and target.kind in "iu":
        return _to_integer(value, target, rounding or "rzi")
    if rounding is not None:
        value = _TO_WHOLE[rounding](value)
    return value.astype(target)


# The table ------------------------------------------------------------------------------------------------------------

Operation = Callable[..., Words]
_SAME: dict[str, Operation] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "div": lambda a, b: a / b if a.dtype.kind == "f" else _quotient(a, b),
    "rem": lambda a, b: (a - _quotient(a, b) * b).astype(a.dtype),
    "min": lambda a, b: np.fmin(a, b),
    "max": lambda a, b: np.fmax(a, b),
    "abs": np.abs,
    "neg": lambda a: (~a + np.ones_like(a)).astype(a.dtype) if a.dtype.kind in "iu" else -a,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "mov": lambda a: a,
}
_COMPARE: dict[str, Operation] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: (a != b) & (a == a) & (b == b),
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "lo": lambda a, b: a < b,
    "ls": lambda a, b: a <= b,
    "hi": lambda a, b: a > b,
    "hs": lambda a, b: a >= b,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": lambda a, b: ~(a == b),
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}

# CUDA C++ Programming Guide, "Mathematical Functions": maximum errors in ulp of exp2f, and of sqrtf and x / y without
# -prec-sqrt and -prec-div, which are these instructions.
_EX2_ULPS, _SQRT_ULPS, _QUOTIENT_ULPS = 2, 1, 2


def evaluate(opcode: tuple[str, ...], sources: list[Words], kind: str, approximation: Approximation) -> Words:
    """The result of an arithmetic instruction.

    Args:
        opcode: its parts.
        sources: registers' words, or immediates' values.
        kind: the type of the operands, the opcode's last part.
        approximation: of the inexact instructions.

    Raises:
        UnknownInstructionError: there is no such instruction here.
    """
    base, modifiers = opcode[0], opcode[1:]
    if kind == "f32x2":
        low, high = (
            evaluate((*opcode[:-1], "f32"), [half(source, k) for source in sources], "f32", approximation)
            for k in (0, 1)
        )
        return joined(low, high)
    inexact = "approx" in modifiers or "full" in modifiers
    if base in ("ex2", "sqrt", "div") and inexact and kind == "f32":
        return _inexact(base, modifiers, [typed(source, kind) for source in sources], approximation)
    if "sat" in modifiers or inexact or {"rm", "rp", "rz"} & set(modifiers):
        raise UnknownInstructionError(".".join(opcode))
    if base in ("shl", "shr"):
        amount = sources[1].astype(np.int64)
        return (_shift_left if base == "shl" else _shift_right)(typed(sources[0], kind), amount)
    if base == "bfe":
        return _extract(typed(sources[0], kind), sources[1].astype(np.int64), sources[2].astype(np.int64))
    if base == "selp":
        chosen, first, second = sources[2], typed(sources[0], kind), typed(sources[1], kind)
        return np.where(chosen, first, second)
    if base in ("mul", "mad", "fma"):
        return _multiply(base, modifiers, sources, kind)
    values = [typed(source, kind) for source in sources]
    if "ftz" in modifiers:
        values = [_flush(value) for value in values]
    if base == "sqrt":
        return np.sqrt(values[0])
    if base == "setp":
        if len(values) != 2 or modifiers[0] not in _COMPARE:
            raise UnknownInstructionError(".".join(opcode))
        return _COMPARE[modifiers[0]](*values)
    if base in ("min", "max") and "NaN" in modifiers:
        return (np.minimum if base == "min" else np.maximum)(*values)
    if base not in _SAME:
        raise UnknownInstructionError(".".join(opcode))
    result = _SAME[base](*values)
    return _flush(result) if "ftz" in modifiers else result


def _multiply(base: str, modifiers: tuple[str, ...], sources: list[Words], kind: str) -> Words:
    a, b = typed(sources[0], kind), typed(sources[1], kind)
    wide = "wide" in modifiers
    if a.dtype.kind == "f":
        if base == "mul":
            product = a * b
            return _flush(product) if "ftz" in modifiers else product
        if kind != "f32":
            raise UnknownInstructionError(f"fma of {kind}")
        return _fused(a, b, typed(sources[2], kind))
    product = _wide(a) * _wide(b) if wide else _high(a, b) if "hi" in modifiers else a * b
    if base == "mul":
        return product
    wider = {"32": "64", "16": "32"}
    return product + typed(sources[2], kind[0] + wider[kind[1:]] if wide else kind)


def _inexact(base: str, modifiers: tuple[str, ...], values: list[Words], approximation: Approximation) -> Words:
    if "ftz" in modifiers:
        values = [_flush(value) for value in values]
    exact = [value.astype(np.float64) for value in values]
    if base == "ex2":
        # Of 0, and of what flushes to it, PTX promises 1.
        return np.where(values[0] == 0, np.float32(1), approximation.of(np.exp2(exact[0]), _EX2_ULPS))
    if base == "sqrt":
        return approximation.of(np.sqrt(exact[0]), _SQRT_ULPS)
    result = approximation.of(exact[0] / exact[1], _QUOTIENT_ULPS)
    # PTX: for divisors of 2^126 and more the quotient is 0.
    return np.where(np.abs(values[1]) > 2.0**126, np.float32(0) * result, result)


def bits_of(value: float | int | bool, kind: str) -> Words:
    """A parameter of a launch as words."""
    if kind == "f32":
        return np.full((1, 1), struct.unpack("<I", struct.pack("<f", value))[0], np.uint32)
    if kind == "f64":
        return np.full((1, 1), struct.unpack("<Q", struct.pack("<d", value))[0], np.uint64)
    size = DTYPES[kind].itemsize
    return np.full((1, 1), int(value) & (2 ** (8 * size) - 1), f"u{size}")
