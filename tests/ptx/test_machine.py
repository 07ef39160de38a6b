"""The machine computes what PTX says, on programs written by hand, and stops where a GPU would."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from .instructions import Approximation, UnknownInstructionError
from .machine import DivergenceError, run
from .memory import GlobalMemory, IllegalAccessError
from .program import parse


def execute(
    body: str,
    *tensors: Tensor,
    programs: int = 1,
    threads: int = 32,
    shared: int = 0,
    share: float = 0.0,
    lanes: int = 16384,
) -> None:
    """Run instructions with the tensors' addresses in %rd1, %rd2, ... and the thread's number in the launch in %r1."""
    parameters = ",\n".join(f"\t.param .u64 kernel_param_{k}" for k in range(len(tensors)))
    loads = "\n".join(f"\tld.param.b64 %rd{k + 1}, [kernel_param_{k}];" for k in range(len(tensors)))
    text = f"""
.version 8.0
.visible .entry kernel(
{parameters}
)
.reqntid {threads}
{{
{loads}
	mov.u32 %r2, %tid.x;
	mov.u32 %r3, %ctaid.x;
	mov.u32 %r4, %ntid.x;
	mad.lo.s32 %r1, %r3, %r4, %r2;
{body}
	ret;
}}
"""
    arguments = [tensor.data_ptr() for tensor in tensors]
    run(parse(text), programs, arguments, GlobalMemory(list(tensors)), shared, Approximation(share), lanes)


def words(*values: float, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def unary(operation: str, kind: str, values: Tensor, share: float = 0.0) -> Tensor:
    """One operation on up to 32 values; those missing are 0."""
    source = torch.zeros(32, dtype=values.dtype)
    source[: len(values)] = values
    result = torch.zeros_like(source)
    size, register = (8, "%rd") if kind.endswith("64") else (4, "%r")
    body = f"""
	mad.wide.u32 %rd10, %r1, {size}, %rd1;
	mad.wide.u32 %rd11, %r1, {size}, %rd2;
	ld.global.b{8 * size} {{ {register}20 }}, [ %rd10 + 0 ];
	{operation} {register}21, {register}20;
	st.global.b{8 * size} [ %rd11 + 0 ], {{ {register}21 }};
"""
    execute(body, source, result, share=share)
    return result[: len(values)]


# Arithmetic -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instructions", "values", "expected"),
    [
        ("add.s32 %r21, %r20, 1;", (2**31 - 1, -1), (-(2**31), 0)),
        ("div.s32 %r21, %r20, -3;", (7, -7, 6), (-2, 2, -2)),
        ("rem.s32 %r21, %r20, 3;", (7, -7, -6), (1, -1, 0)),
        ("mul.hi.u32 %r21, %r20, -845247145;", (-1, 2), (3449720150, 1)),
        ("mul.wide.s32 %rd20, %r20, -5; cvt.u32.u64 %r21, %rd20;", (3, -3), (-15, 15)),
        ("mul.wide.u32 %rd20, %r20, 4; shr.u64 %rd21, %rd20, 32; cvt.u32.u64 %r21, %rd21;", (-1, 1), (3, 0)),
        ("shr.s32 %r21, %r20, 40;", (-8, 8), (-1, 0)),
        ("shr.u32 %r21, %r20, 31;", (-8, 8), (1, 0)),
        ("shl.b32 %r21, %r20, 32;", (1, -1), (0, 0)),
        ("bfe.u32 %r21, %r20, 4, 8;", (0x12345678, -1), (0x67, 0xFF)),
        ("bfe.s32 %r21, %r20, 1, 1;", (2, 1, 3), (-1, 0, -1)),
        ("bfe.s32 %r21, %r20, 28, 8;", (-(2**31), 0x70000000), (-8, 7)),
        ("neg.s32 %r21, %r20;", (5, -5), (-5, 5)),
        ("min.u32 %r21, %r20, 7;", (-1, 3), (7, 3)),
        ("setp.lt.u32 %p1, %r20, 5; selp.b32 %r21, 1, 2, %p1;", (-1, 4), (2, 1)),
        ("setp.lt.s32 %p1, %r20, 5; selp.b32 %r21, 1, 2, %p1;", (-1, 7), (1, 2)),
        ("cvt.s64.s32 %rd20, %r20; shr.u64 %rd21, %rd20, 32; cvt.u32.u64 %r21, %rd21;", (-1, 1), (-1, 0)),
        ("mov.b64 %rd20, {%r20, 7}; mov.b64 {_, %r21}, %rd20;", (3, 4), (7, 7)),
        ("mov.b64 %rd20, {%r20, 7}; { .reg .b32 tmp; mov.b64 {tmp, %r21}, %rd20; }", (3, 4), (7, 7)),
        ("mov.b64 %rd20, {7, %r20}; mov.b64 {%r22, %r21}, %rd20;", (3, -4), (3, -4)),
        ("mov.b32 {%rs1, %rs2}, %r20; mov.b32 %r21, {%rs2, %rs1};", (0x00010002,), (0x00020001,)),
    ],
)
def test_integers(instructions: str, values: tuple[int, ...], expected: tuple[int, ...]) -> None:
    source, result = torch.zeros(32, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)
    source[: len(values)] = words(*values)
    body = f"""
	mad.wide.u32 %rd10, %r1, 4, %rd1;
	mad.wide.u32 %rd11, %r1, 4, %rd2;
	ld.global.b32 {{ %r20 }}, [ %rd10 + 0 ];
	{instructions}
	st.global.b32 [ %rd11 + 0 ], {{ %r21 }};
"""
    execute(body, source, result)
    wrapped = [(value + 2**31) % 2**32 - 2**31 for value in expected]
    assert result[: len(values)].tolist() == wrapped


def test_a_fused_multiplication_and_addition_is_rounded_once() -> None:
    """Against rational numbers, on products that lie next to the middle between two floats."""
    generator = np.random.default_rng(0)
    a = generator.integers(2**23, 2**24, 32).astype(np.float32) / np.float32(2**23)
    b = generator.integers(2**23, 2**24, 32).astype(np.float32) / np.float32(2**23)
    # What is left of the product behind float32, so that the exact sum is a tie but for the last bits of float64.
    c = np.float32(2.0**30) * generator.choice([-1, 1], 32).astype(np.float32)
    c[:8] = -(a[:8] * b[:8])
    c[8:12] = np.float32(2.0**-60)
    sources = [torch.from_numpy(x.astype(np.float32)) for x in (a, b, c)]
    result = torch.zeros(32)
    body = "\n".join(
        f"mad.wide.u32 %rd1{k}, %r1, 4, %rd{k + 1};" + f"ld.global.b32 {{ %r2{k} }}, [ %rd1{k} + 0 ];" * (k < 3)
        for k in range(4)
    )
    execute(body + "\nfma.rn.f32 %r23, %r20, %r21, %r22; st.global.b32 [ %rd13 + 0 ], { %r23 };", *sources, result)
    for x, y, z, got in zip(*(s.tolist() for s in sources), result.tolist(), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        distance = abs(Fraction(got) - exact)
        for direction in (-np.inf, np.inf):
            other = float(np.nextafter(np.float32(got), np.float32(direction)))
            assert distance <= abs(Fraction(other) - exact)


@pytest.mark.parametrize("share", [-1.0, 0.0, 1.0])
def test_inexact_instructions_return_what_was_asked_for_within_their_bounds(share: float) -> None:
    values = torch.tensor([-0.3, -2.7, -20.5, -1e-8])
    exact = torch.exp2(values.double())
    got = unary("ex2.approx.ftz.f32", "f32", values, share)
    moved = (got.double() - exact) / exact * 2**23
    assert (moved * share >= (0.5 if share else 0)).all()
    assert (moved.abs() <= (2.5 if share else 0.5)).all()
    assert unary("ex2.approx.ftz.f32", "f32", torch.tensor([0.0, -0.0, 1e-42]), share).tolist() == [1, 1, 1]
    assert unary("sqrt.approx.ftz.f32", "f32", torch.tensor([0.0]), share).item() == 0
    root = unary("sqrt.approx.ftz.f32", "f32", torch.tensor([4.0]), share).item()
    assert (
        root == float(np.nextafter(np.float32(2), np.float32(math.copysign(math.inf, share)))) if share else root == 2
    )


def test_pairs_are_computed_half_by_half() -> None:
    source, result = torch.arange(64, dtype=torch.float32), torch.zeros(64)
    body = """
	mad.wide.u32 %rd10, %r1, 8, %rd1;
	mad.wide.u32 %rd11, %r1, 8, %rd2;
	ld.global.b64 { %rd20 }, [ %rd10 + 0 ];
	mov.b32 %r20, 0f40000000;
	mov.b32 %r21, 0fBF800000;
	mov.b64 %rd21, {%r20, %r21};
	fma.rn.f32x2 %rd22, %rd20, %rd21, %rd20;
	st.global.b64 [ %rd11 + 0 ], { %rd22 };
"""
    execute(body, source, result)
    assert torch.equal(result.view(32, 2), source.view(32, 2) * torch.tensor([3.0, 0.0]))


def test_conversions_round_as_they_say() -> None:
    assert unary("cvt.rzi.s32.f32", "f32", torch.tensor([2.7, -2.7, 3e9, math.nan])).view(torch.int32).tolist() == [
        *(2, -2, 2**31 - 1, 0)
    ]
    assert unary("cvt.rpi.ftz.f32.f32", "f32", torch.tensor([2.1, -2.1, 1e-42])).tolist() == [3, -2, 0]
    assert unary("cvt.rn.f32.s32", "s32", words(2**24 + 1, -7)).view(torch.float32).tolist() == [2.0**24, -7]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_is_widened_exactly(dtype: torch.dtype) -> None:
    halves, wide = torch.arange(-(2**15), 2**15, dtype=torch.int16), torch.zeros(2**16)
    body = f"""
	mad.wide.u32 %rd10, %r1, 2, %rd1;
	mad.wide.u32 %rd11, %r1, 4, %rd2;
	ld.global.b16 {{ %rs1 }}, [ %rd10 + 0 ];
	cvt.f32.{"bf16" if dtype == torch.bfloat16 else "f16"} %r20, %rs1;
	st.global.b32 [ %rd11 + 0 ], {{ %r20 }};
"""
    execute(body, halves, wide, programs=2**16 // 256, threads=256)
    torch.testing.assert_close(wide, halves.view(dtype).float(), rtol=0, atol=0, equal_nan=True)


def test_nan_is_passed_on_only_where_it_is_asked_for() -> None:
    values = torch.tensor([math.nan, 0.5, 2.0])
    source, result = torch.zeros(32), torch.zeros(64)
    source[:3] = values
    body = """
	mad.wide.u32 %rd10, %r1, 4, %rd1;
	mad.wide.u32 %rd11, %r1, 8, %rd2;
	ld.global.b32 { %r20 }, [ %rd10 + 0 ];
	min.f32 %r21, %r20, 0f3F800000;
	min.NaN.f32 %r22, %r20, 0f3F800000;
	st.global.v2.b32 [ %rd11 + 0 ], { %r21, %r22 };
"""
    execute(body, source, result)
    plain, strict = result.view(32, 2).unbind(1)
    assert plain[:3].tolist() == [1, 0.5, 1]
    assert strict[0].isnan()
    assert strict[1:3].tolist() == [0.5, 1]


# Control flow ---------------------------------------------------------------------------------------------------------


def test_threads_leave_a_loop_one_by_one_and_meet_behind_it() -> None:
    """Thread k sums 1 to k; then all of a warp exchange their sums, which needs them all there."""
    result = torch.zeros(64, dtype=torch.int32)
    body = """
	mov.b32 %r10, 0;
	mov.b32 %r11, 0;
$L_loop:
	setp.ge.s32 %p1, %r10, %r2;
	@%p1 bra $L_done;
	add.s32 %r10, %r10, 1;
	add.s32 %r11, %r11, %r10;
	bra.uni $L_loop;
$L_done:
	shfl.sync.bfly.b32 %r12, %r11, 1, 31, -1;
	mad.wide.u32 %rd10, %r1, 4, %rd1;
	st.global.b32 [ %rd10 + 0 ], { %r12 };
"""
    for lanes in (32, 1024):
        execute(body, result, programs=2, lanes=lanes)
        assert result.tolist() == 2 * [(k ^ 1) * ((k ^ 1) + 1) // 2 for k in range(32)]


def test_lanes_exchange_values() -> None:
    result = torch.zeros(4 * 64, dtype=torch.int32)
    body = """
	shfl.sync.up.b32 %r10, %r2, 4, 0, -1;
	shfl.sync.bfly.b32 %r11, %r2, 16, 31, -1;
	redux.sync.max.s32 %r12, %r2, -1;
	neg.s32 %r13, %r2;
	redux.sync.min.s32 %r14, %r13, -1;
	mad.wide.u32 %rd10, %r1, 16, %rd1;
	st.global.v4.b32 [ %rd10 + 0 ], { %r10, %r11, %r12, %r14 };
"""
    execute(body, result, threads=64)
    lane = np.arange(64)
    up = np.where(lane % 32 >= 4, lane - 4, lane)
    expected = np.stack([up, lane ^ 16, lane // 32 * 32 + 31, -(lane // 32 * 32 + 31)], 1)
    assert result.view(64, 4).tolist() == expected.tolist()


def test_matrices_are_dealt_to_lanes_as_the_tables_of_ptx_say() -> None:
    """What one lane stores as its part of a matrix lies in row lane/4, columns 2 (lane % 4) and the next."""
    result = torch.zeros(64, dtype=torch.int32)
    body = """
	shl.b32 %r10, %r2, 4;
	stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r10], {%r2, 101, 102, 103};
	bar.sync 0;
	shl.b32 %r11, %r2, 2;
	ld.shared.b32 %r12, [%r11];
	ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r13, %r14, %r15, %r16}, [%r10];
	add.s32 %r17, %r13, %r16;
	mad.wide.u32 %rd10, %r1, 8, %rd1;
	st.global.v2.b32 [ %rd10 + 0 ], { %r12, %r17 };
"""
    execute(body, result, shared=512)
    stored, loaded = result.view(32, 2).unbind(1)
    assert stored.tolist() == list(range(32))  # matrix 0, row by row of 4 words
    assert loaded.tolist() == [lane + 103 for lane in range(32)]


def test_a_shared_address_wraps_as_a_register_does() -> None:
    """``base - x + offset``, as compilers write ``base + (x ^ offset)``, begins below the base."""
    result = torch.zeros(32, dtype=torch.int32)
    body = """
	shl.b32 %r10, %r2, 2;
	mov.b32 %r11, global_smem;
	add.s32 %r12, %r11, %r10;
	st.shared.b32 [%r12], %r2;
	bar.sync 0;
	sub.s32 %r13, %r11, %r10;
	ld.shared.b32 %r14, [%r13+124];
	mad.wide.u32 %rd10, %r1, 4, %rd1;
	st.global.b32 [ %rd10 + 0 ], { %r14 };
"""
    execute(body, result, shared=128)
    assert result.tolist() == list(range(31, -1, -1))


# Refusals -------------------------------------------------------------------------------------------------------------

_STORE = "mad.wide.u32 %rd10, {index}, 4, %rd1; st.global.b32 [ %rd10 + {offset} ], {{ {value} }};"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (_STORE.format(index="%r1", offset=4, value="%r1"), "illegal address"),
        (_STORE.format(index="%r1", offset=-4, value="%r1"), "illegal address"),
        (_STORE.format(index="%r1", offset=2, value="%r1"), "multiple of 4 bytes"),
        (_STORE.format(index="0", offset=0, value="%r1"), "different values"),
        ("mad.wide.u32 %rd10, %r1, 4, %rd1; ld.global.v2.b32 { %r10, %r11 }, [ %rd10 + 0 ];", "multiple of 8 bytes"),
        (
            "mad.wide.u32 %rd10, %r1, 4, %rd1; st.global.b32 [ %rd10 + 0 ], { %r1 }; xor.b32 %r9, %r1, 1;"
            "mad.wide.u32 %rd11, %r9, 4, %rd1; ld.global.b32 { %r10 }, [ %rd11 + 0 ];",
            "reads what another one wrote",
        ),
        (
            "mad.wide.u32 %rd10, %r1, 4, %rd1; xor.b32 %r9, %r1, 1; mad.wide.u32 %rd11, %r9, 4, %rd1;"
            "ld.global.b32 { %r10 }, [ %rd11 + 0 ]; st.global.b32 [ %rd10 + 0 ], { 5 };",
            "changes what another one read",
        ),
        ("mov.b32 %r9, 8; st.shared.b32 [%r9], %r1;", "outside of the 8 bytes"),
        ("mov.b32 %r9, 0; st.shared.b32 [%r9], %r1;", "different values to one shared place"),
    ],
)
def test_what_a_gpu_would_stop_or_leave_to_chance_is_refused(body: str, message: str) -> None:
    with pytest.raises(IllegalAccessError, match=message):
        execute(body, torch.zeros(32, dtype=torch.int32), shared=8)


def test_what_only_some_threads_may_do_is_not_refused_for_the_others() -> None:
    memory = torch.zeros(8, dtype=torch.int32)
    execute(
        "setp.lt.s32 %p1, %r1, 8; mad.wide.u32 %rd10, %r1, 4, %rd1; @%p1 st.global.b32 [ %rd10 + 0 ], { 7 };", memory
    )
    assert memory.tolist() == [7] * 8


def test_two_programs_must_not_write_to_one_place() -> None:
    body = _STORE.format(index="%r2", offset=0, value="%r3")
    memory = torch.zeros(32, dtype=torch.int32)
    for lanes in (32, 1024):  # one after the other, and side by side
        with pytest.raises(IllegalAccessError):
            execute(body, memory, programs=3, lanes=lanes)
    execute(_STORE.format(index="%r2", offset=0, value="9"), memory, programs=3)  # the same value: harmless
    assert memory.tolist() == [9] * 32


_OWN = "mad.wide.u32 %rd10, %r1, 4, %rd1;"
_OTHERS = "xor.b32 %r9, %r1, {}; mad.wide.u32 %rd11, %r9, 4, %rd1;"  # of the thread that differs in these bits
_BARRIER = "bar.sync 0;"


@pytest.mark.parametrize(
    "body",
    [
        "ld.global.b32 {{ %r10 }}, [ %rd10 + 0 ]; {between} st.global.b32 [ %rd11 + 0 ], {{ %r1 }};",
        "st.global.b32 [ %rd10 + 0 ], {{ %r9 }}; {between} ld.global.b32 {{ %r10 }}, [ %rd11 + 0 ];",
        "st.global.b32 [ %rd10 + 0 ], {{ 5 }}; {between} st.global.b32 [ %rd11 + 0 ], {{ %r1 }};",
    ],
    ids=["read, written", "written, read", "written, written"],
)
def test_threads_of_a_program_follow_each_other_behind_a_barrier(body: str) -> None:
    for bits in (1, 32):  # another thread of the same warp, and of another one
        memory = torch.zeros(128, dtype=torch.int32)
        start = _OWN + _OTHERS.format(bits)
        execute(start + body.format(between=_BARRIER), memory, programs=2, threads=64)
        assert memory.tolist() == [k ^ bits for k in range(128)]
        for between in ("", "bar.warp.sync -1;", "setp.eq.s32 %p1, %r3, 1; @%p1 bra $L_on; bar.sync 0;\n$L_on:"):
            with pytest.raises(IllegalAccessError, match="without a barrier between"):
                execute(start + body.format(between=between), memory.zero_(), programs=2, threads=64)


_READ = "ld.global.b32 { %r10 }, [ %rd1 + 0 ];"
_WRITE = "@%p1 st.global.b32 [ %rd1 + 0 ], { 7 };"


@pytest.mark.parametrize(
    ("body", "programs", "allowed"),
    [
        (_READ + _BARRIER + _WRITE, 1, True),
        (_READ + _BARRIER + _READ + _BARRIER + _WRITE, 1, True),
        (_READ + _WRITE, 1, False),
        (_READ + "@%p1 " + _READ + _WRITE, 1, False),
        (_READ + _BARRIER + _READ + _WRITE, 1, False),
        (_READ + _BARRIER + _WRITE, 2, False),
        (_READ + _BARRIER + _READ + _BARRIER + _WRITE, 2, False),
        (_WRITE + _BARRIER + _READ, 1, True),
        (_WRITE + _BARRIER + _READ, 2, False),
    ],
)
def test_a_barrier_ends_what_all_readers_of_its_program_do(body: str, programs: int, allowed: bool) -> None:
    """One thread, the first or the last, writes what all threads of all programs read."""
    for lanes, writer in product((96, 1024), (0, 96 * programs - 1)):  # one program after the other, and side by side
        memory, start = torch.zeros(1, dtype=torch.int32), f"setp.eq.s32 %p1, %r1, {writer};"
        if allowed:
            execute(start + body, memory, programs=programs, threads=96, lanes=lanes)
            assert memory.item() == 7
        else:
            with pytest.raises(IllegalAccessError, match="without a barrier between"):
                execute(start + body, memory, programs=programs, threads=96, lanes=lanes)


@pytest.mark.parametrize(
    "body",
    [
        "st.shared.b32 [%r10], %r2; {between} ld.shared.b32 %r12, [%r11];",
        "ld.shared.b32 %r12, [%r10]; {between} st.shared.b32 [%r11], %r2;",
        "st.shared.b32 [%r10], 5; {between} st.shared.b32 [%r11], %r2;",
        "st.shared.b8 [%r10+3], %r2; {between} ld.shared.b32 %r12, [%r11];",
    ],
    ids=["written, read", "read, written", "written, written", "written, read with its neighbours"],
)
def test_warps_follow_each_other_in_shared_memory_behind_a_barrier(body: str) -> None:
    def execute_with(between: str, bits: int) -> None:
        start = f"shl.b32 %r10, %r2, 2; xor.b32 %r11, %r10, {4 * bits};"
        execute(start + body.format(between=between), torch.zeros(1), programs=2, threads=64, shared=256)

    for bits in (1, 32):
        execute_with(_BARRIER, bits)
    execute_with("", 1)  # threads of one warp
    for between in ("", "bar.warp.sync -1;", "setp.eq.s32 %p1, %r3, 1; @%p1 bra $L_on; bar.sync 0;\n$L_on:"):
        with pytest.raises(IllegalAccessError, match="without a barrier between"):
            execute_with(between, 32)


def test_warps_may_write_the_same_or_side_by_side_without_a_barrier() -> None:
    result = torch.zeros(64, dtype=torch.int32)
    body = """
	and.b32 %r10, %r2, 31;
	shl.b32 %r11, %r10, 1;
	shr.u32 %r12, %r2, 5;
	add.s32 %r13, %r11, %r12;
	st.shared.b8 [%r13], %r2;
	ld.shared.b8 %rs1, [%r13];
	mov.b32 %r9, 64;
	st.shared.b32 [%r9], 7;
	st.shared.b32 [%r9], 7;
	cvt.u32.u16 %r14, %rs1;
	mad.wide.u32 %rd10, %r1, 4, %rd1;
	st.global.b32 [ %rd10 + 0 ], { %r14 };
"""
    execute(body, result, threads=64, shared=68)
    assert result.tolist() == list(range(64))


def test_a_barrier_that_not_all_threads_reach_is_refused() -> None:
    body = "setp.lt.s32 %p1, %r2, 40; @%p1 bra $L_out; bar.sync 0;\n$L_out:"
    with pytest.raises(DivergenceError, match="bar.sync 0"):
        execute(body, torch.zeros(1), threads=64)
    warps = "setp.lt.s32 %p1, %r2, 32; @%p1 bra $L_out; bar.warp.sync -1;\n$L_out:"
    execute(warps, torch.zeros(1), threads=64)  # a whole warp stays away


def test_unknown_instructions_are_named() -> None:
    with pytest.raises(UnknownInstructionError, match=r"kernel: lg2.approx.f32 %r10, %r1"):
        execute("lg2.approx.f32 %r10, %r1;", torch.zeros(1))
    with pytest.raises(UnknownInstructionError, match="%p9 is read before it is written"):
        execute("selp.b32 %r10, 1, 2, %p9;", torch.zeros(1))


def test_a_register_without_a_value_shows_as_nan() -> None:
    assert unary("add.rn.f32 %r22, %r99, %r20; mov.b32 %r21, %r22; mov.b32 %r23,", "f32", torch.ones(2)).isnan().all()
