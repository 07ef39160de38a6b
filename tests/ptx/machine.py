"""Threads that run a program side by side, and meet again after every branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .instructions import (
    DTYPES,
    Approximation,
    UnknownInstructionError,
    bits_of,
    convert,
    evaluate,
    half,
    immediate,
    joined,
    typed,
)
from .memory import NEXT_EPOCH, GlobalMemory, IllegalAccessError, SharedMemory, VirtualMemory, stamps_of
from .program import Instruction, Program

Words = NDArray[Any]
WARP = 32
_ACCESSES = ("ld", "st", "ldmatrix", "stmatrix")
_ZERO = ("%tid.y", "%tid.z", "%ctaid.y", "%ctaid.z")
_REGISTERS = {"%p": "pred", "%rs": "b16", "%rd": "b64", "%r": "b32", "%f": "b32", "%fd": "b64"}


class DivergenceError(AssertionError):
    """Threads wait for others that are elsewhere, which on a GPU hangs or is undefined."""


def run(
    program: Program,
    programs: int,
    arguments: Sequence[float | int | bool],
    memory: GlobalMemory | VirtualMemory,
    shared_bytes: int,
    approximation: Approximation,
    lanes: int = 16384,
    only: Sequence[int] | None = None,
) -> None:
    """Execute a launch.

    Args:
        program: what every thread executes.
        programs: of the launch (blocks, CTAs), along x.
        arguments: of the kernel, pointers as integers; those missing at the end (Triton's scratch) are null.
        memory: what the pointers point to.
        shared_bytes: per program.
        approximation: of the inexact instructions.
        lanes: threads that go side by side, whole programs.
        only: numbers of the programs to execute, all by default.

    Raises:
        IllegalAccessError: see ``memory``.
        DivergenceError: a warp's or program's common instruction does not find all threads.
        UnknownInstructionError: the code has an instruction that is not known here.
    """
    together = max(1, lanes // program.threads)
    given = [*arguments, *([0] * (len(program.parameters) - len(arguments)))]
    parameters = [bits_of(value, kind) for value, kind in zip(given, program.parameters, strict=True)]
    with np.errstate(all="ignore"):
        chosen = range(programs) if only is None else only
        for first in range(0, len(chosen), together):
            some = np.array(chosen[first : first + together], dtype=np.uint32)[:, None]
            _Threads(program, some, programs, parameters, memory, shared_bytes, approximation).run()


class _Threads:
    """Some programs of a launch: a register is an array (programs or 1, threads or 1)."""

    def __init__(
        self,
        program: Program,
        ids: NDArray[np.uint32],
        count: int,
        parameters: list[Words],
        memory: GlobalMemory | VirtualMemory,
        shared_bytes: int,
        approximation: Approximation,
    ) -> None:
        self.program, self.parameters, self.memory, self.approximation = program, parameters, memory, approximation
        self.shape = (len(ids), program.threads)
        opcodes = [instruction.opcode for instruction in program.instructions]
        widths = [_width(opcode) for opcode in opcodes if opcode[0] in _ACCESSES and "shared" in opcode]
        self.shared = SharedMemory(len(ids), shared_bytes, min(widths, default=1))
        thread = np.arange(program.threads, dtype=np.uint32)[None, :]
        self.registers: dict[str, Words] = {
            "%tid.x": thread,
            "%laneid": thread % np.uint32(WARP),
            "%ctaid.x": ids,
            "%nctaid.x": np.full((1, 1), count, np.uint32),
            "%ntid.x": np.full((1, 1), program.threads, np.uint32),
            **{name: np.zeros((1, 1), np.uint32) for name in _ZERO},
        }
        # Who accesses memory: threads, and warps, in which order is left to ``bar.warp.sync`` and shuffles.
        self.stamps = {
            "global": stamps_of(ids, thread),
            "shared": stamps_of(np.arange(len(ids))[:, None], thread // np.uint32(WARP)),
        }

    def run(self) -> None:
        """Always the threads furthest behind: whoever left a loop or took a short way waits for the others."""
        done = len(self.program.instructions)
        leaders = [*self.program.leaders, done]
        place = np.zeros(self.shape, np.int64)
        while (current := int(place.min())) < done:
            here = place == current
            active = None if here.all() else here
            end = next(leader for leader in leaders if leader > current)
            following = np.full((1, 1), end)
            for instruction in self.program.instructions[current:end]:
                if instruction.opcode[0] == "bra":
                    following = np.where(self._taking_part(instruction), instruction.target, end)
                elif instruction.opcode[0] == "ret":
                    following = np.where(self._taking_part(instruction), done, end)
                else:
                    try:
                        self._execute(instruction, active)
                    except (KeyError, TypeError, ValueError, UnknownInstructionError) as error:
                        raise UnknownInstructionError(f"{self.program.name}: {instruction.text}: {error}") from error
            place = np.where(here, following, place)

    # Operands ---------------------------------------------------------------------------------------------------------

    def _taking_part(self, instruction: Instruction) -> NDArray[np.bool_]:
        if instruction.guard is None:
            return np.ones((1, 1), bool)
        guard = self.registers[instruction.guard]
        return ~guard if instruction.negated else guard

    def _read(self, operand: str, kind: str) -> Words:
        if operand.startswith("%"):
            return self.registers[operand] if operand in self.registers else self._unwritten(operand)
        if operand == "global_smem":
            return np.zeros((1, 1), np.uint32 if kind.endswith("32") else np.uint64)
        return immediate(operand, kind)

    def _write(self, register: str, value: Words, active: NDArray[np.bool_] | None) -> None:
        if register == "_":
            return
        kind = _REGISTERS[register.rstrip("0123456789")]
        if value.dtype.kind != "b":
            value = np.ascontiguousarray(value).view(f"u{value.dtype.itemsize}")
            value = typed(value, kind)
        if active is not None:
            before = self.registers.get(register)
            value = np.where(active, value, np.zeros((1, 1), value.dtype) if before is None else before)
        self.registers[register] = value

    # Instructions -----------------------------------------------------------------------------------------------------

    def _execute(self, instruction: Instruction, active: NDArray[np.bool_] | None) -> None:
        base, kind = instruction.opcode[0], instruction.opcode[-1]
        if instruction.guard is not None:
            taking_part = self._taking_part(instruction)
            active = taking_part if active is None else active & taking_part
        if base in _ACCESSES:
            self._access(instruction, active)
        elif base in ("bar", "barrier"):
            if "warp" in instruction.opcode:
                self._meet(instruction, active, WARP)
            else:
                self._meet(instruction, active, self.shape[1])
                for stamps in self.stamps.values():
                    stamps += NEXT_EPOCH * self._everyone(active)
        elif base in ("shfl", "redux"):
            self._exchange(instruction, active)
        elif base == "mov" and len(instruction.operands) != 2:
            self._pack(instruction, active)
        elif base == "cvt":
            result, *sources = instruction.operands
            values = [self._read(source, kind) for source in sources]
            self._write(result, convert(instruction.opcode, values), active)
        else:
            result, *sources = instruction.operands
            kinds = [kind] * len(sources)
            if base in ("shl", "shr"):
                kinds[1] = "u32"
            elif base == "bfe":
                kinds[1:] = ["u32", "u32"]
            elif base in ("mad", "fma") and "wide" in instruction.opcode:
                kinds[2] = kind[0] + "64"
            elif base == "selp":
                kinds[2] = "pred"
            kinds = ["b64" if one == "f32x2" else one for one in kinds]
            values = [self._read(source, one) for source, one in zip(sources, kinds, strict=True)]
            self._write(result, evaluate(instruction.opcode, values, kind, self.approximation), active)

    def _pack(self, instruction: Instruction, active: NDArray[np.bool_] | None) -> None:
        """``mov`` between a register and the two halves of it."""
        kind = instruction.opcode[-1]
        bits = int(kind[1:])
        first, second, third = instruction.operands
        if first != "_" and self._bits(first) == bits:
            low, high = (typed(self._read(part, f"b{bits // 2}"), f"b{bits // 2}") for part in (second, third))
            self._write(first, joined(low, high), active)
        else:
            word = typed(self._read(third, kind), kind)
            for k, part in enumerate((first, second)):
                self._write(part, half(word, k), active)

    def _unwritten(self, register: str) -> Words:
        """Compilers read registers without a value where nothing hangs on it; NaN shows where something does."""
        kind = _REGISTERS[register.rstrip("0123456789")]
        if kind == "pred":
            raise UnknownInstructionError(f"{register} is read before it is written")
        value = {"b16": 0x7FC1, "b32": 0x7FC0DEAD, "b64": 0x7FF8DEAD7FC0DEAD}[kind]
        return np.full((1, 1), value, DTYPES[kind])

    @staticmethod
    def _bits(register: str) -> int:
        return int(_REGISTERS[register.rstrip("0123456789")][1:])

    def _everyone(self, active: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        return np.broadcast_to(np.ones((1, 1), bool) if active is None else active, self.shape)

    def _meet(self, instruction: Instruction, active: NDArray[np.bool_] | None, size: int) -> None:
        if active is None:
            return
        groups = self._everyone(active).reshape(self.shape[0], -1, size)
        if (groups.any(-1) != groups.all(-1)).any():
            raise DivergenceError(f"not all threads come to: {instruction.text}")

    def _exchange(self, instruction: Instruction, active: NDArray[np.bool_] | None) -> None:
        """``shfl.sync`` and ``redux.sync`` among all lanes of a warp."""
        operands, opcode = instruction.operands, instruction.opcode
        if operands[-1] != "-1" and not (self._read(operands[-1], "b32") == 0xFFFFFFFF).all():
            raise UnknownInstructionError(f"only whole warps exchange values here: {instruction.text}")
        self._meet(instruction, active, WARP)
        value = np.broadcast_to(self._read(operands[1], "b32"), self.shape).reshape(self.shape[0], -1, WARP)
        if opcode[0] == "redux":
            reduce = {"min": np.min, "max": np.max, "add": np.sum}[opcode[2]]
            result = np.broadcast_to(reduce(typed(value, opcode[-1]), axis=-1, keepdims=True), value.shape)
            result = result.astype(typed(value, opcode[-1]).dtype)
        else:
            lane = np.arange(WARP)
            by = np.broadcast_to(self._read(operands[2], "b32"), self.shape).reshape(value.shape).astype(np.int64)
            if (self._read(operands[3], "b32") != (0 if opcode[2] == "up" else WARP - 1)).any():
                raise UnknownInstructionError(f"only whole warps are shuffled here: {instruction.text}")
            source = {"bfly": lane ^ by, "up": lane - by, "down": lane + by, "idx": by & (WARP - 1)}[opcode[2]]
            source = np.where((source >= 0) & (source < WARP), source, lane)
            result = np.take_along_axis(value, source, axis=-1)
        self._write(operands[0], result.reshape(self.shape), active)

    # Memory -----------------------------------------------------------------------------------------------------------

    def _address(self, operand: str) -> NDArray[np.int64]:
        text = operand[1:-1]
        base, _, offset = text.partition("+")
        register = np.zeros((1, 1), np.uint32) if base == "global_smem" else self.registers[base]
        address = register.astype(np.int64) + int(offset or "0", 0)
        # Of shared memory addresses have 32 bits: what is left of 2 to the 32nd is lost, as in a register.
        return np.broadcast_to(address & 0xFFFFFFFF if register.itemsize == 4 else address, self.shape)

    def _access(self, instruction: Instruction, active: NDArray[np.bool_] | None) -> None:
        opcode, operands, text = instruction.opcode, instruction.operands, instruction.text
        if "param" in opcode:
            index = int(operands[1].strip("[]").rpartition("_")[2])
            self._write(operands[0], self.parameters[index], active)
            return
        space = next((part for part in opcode if part in ("global", "shared")), None)
        if space is None:
            raise UnknownInstructionError(text)
        mask = self._everyone(active)
        if opcode[0] in ("ldmatrix", "stmatrix"):
            self._move_matrices(instruction, active, mask)
            return
        if not mask.any():
            return
        width = _width(opcode)
        stamps = self.stamps[space][mask]
        memory: Any = self.memory if space == "global" else self.shared
        if opcode[0] == "ld":
            *names, where = operands
            found = memory.load(self._address(where)[mask], stamps, width, len(names), text)
            for name, values in zip(names, found, strict=True):
                whole = np.zeros(self.shape, values.dtype)
                whole[mask] = values
                self._write(name, whole, None if active is None else mask)
        else:
            where, *names = operands
            values = [
                np.broadcast_to(self._read(name, opcode[-1]).astype(f"u{width}"), self.shape)[mask] for name in names
            ]
            memory.store(self._address(where)[mask], stamps, values, width, text)

    def _move_matrices(
        self, instruction: Instruction, active: NDArray[np.bool_] | None, mask: NDArray[np.bool_]
    ) -> None:
        """A lane holds two neighbouring elements of every 8 x 8 matrix; lane 8 * m + i names row i of matrix m."""
        if instruction.opcode[-1] != "b16" or "trans" in instruction.opcode:
            raise UnknownInstructionError("only matrices as they lie")
        self._meet(instruction, active, WARP)
        stores = instruction.opcode[0] == "stmatrix"
        where, *names = instruction.operands if stores else (instruction.operands[-1], *instruction.operands[:-1])
        lanes = (self.shape[0], -1, WARP)
        rows = self._address(where).reshape(lanes)
        if (rows[mask.reshape(lanes)] % 16).any():
            raise IllegalAccessError(f"rows must begin at multiples of 16 bytes: {instruction.text}")
        lane = np.arange(WARP)
        for m, name in enumerate(names):
            places = (rows[..., 8 * m + lane // 4] + 4 * (lane % 4)).reshape(self.shape)[mask]
            if stores:
                value = np.broadcast_to(self._read(name, "b32"), self.shape)
                self.shared.store(places, self.stamps["shared"][mask], [value[mask]], 4, instruction.text)
            else:
                whole = np.zeros(self.shape, np.uint32)
                (whole[mask],) = self.shared.load(places, self.stamps["shared"][mask], 4, 1, instruction.text)
                self._write(name, whole, active)


def _width(opcode: tuple[str, ...]) -> int:
    return int(opcode[-1][1:]) // 8
