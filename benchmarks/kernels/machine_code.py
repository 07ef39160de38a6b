"""Read machine code: registers, spills, access widths, and how often each instruction runs."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import triton


@dataclass(frozen=True)
class Usage:
    """One compiled kernel.

    Attributes:
        registers: per thread.
        spills: registers that are kept in memory (AMD), or instructions that move them there and back and bytes of such
            memory per thread (NVIDIA).
        shared_bytes: per program.
        load_bytes: widest global load of a thread.
        store_bytes: widest global store of a thread.
        instructions: in the code, not executed.
        integer: of them, integer arithmetic.
        special: of them, special functions.
        parked_scalars: AMD only: scalar registers in lanes of vector registers, which costs instructions but no memory.
    """

    registers: int
    spills: int
    shared_bytes: int
    load_bytes: int
    store_bytes: int
    instructions: int
    integer: int
    special: int
    parked_scalars: int = 0


# AMD ------------------------------------------------------------------------------------------------------------------


def read_amdgcn(compiled: Any) -> Usage:
    text: str = compiled.asm["amdgcn"]

    def metadata(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", text)
        if found is None:
            raise ValueError(f"no {key} in the assembly of {compiled.name}")
        return int(found[1])

    opcodes = re.findall(r"^\s+((?:v|s|ds|global|buffer|flat|scratch)_\w+)", text, re.MULTILINE)
    opcodes = [opcode for opcode in opcodes if opcode not in ("s_nop", "s_code_end")]
    width = {"ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2, "short": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12}
    width["dwordx4"] = 16

    def widest(kind: str) -> int:
        found = [re.match(rf"(?:global|buffer|flat)_{kind}_(\w+)", opcode) for opcode in opcodes]
        return max((width.get(match[1], 0) for match in found if match), default=0)

    return Usage(
        registers=metadata("vgpr_count"),
        spills=metadata("vgpr_spill_count") + len(re.findall(r"\bscratch_(?:load|store)_", text)),
        shared_bytes=metadata("group_segment_fixed_size"),
        load_bytes=widest("load"),
        store_bytes=widest("store"),
        instructions=len(opcodes),
        integer=sum(bool(re.match(r"v_\w*_[iub](16|32|64)(_\w+)?$", opcode)) for opcode in opcodes),
        special=sum(bool(re.match(r"v_(exp|log|rcp|rsq|sqrt|sin|cos)_f", opcode)) for opcode in opcodes),
        parked_scalars=metadata("sgpr_spill_count"),
    )


# NVIDIA ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One line of SASS."""

    predicate: str
    opcode: str
    text: str

    @property
    def base(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> str | None:
        """The label a branch or call goes to."""
        found = re.search(r"`\(([^)]+)\)", self.text)
        return found[1] if found else None


IMAD = {"IMAD", "IDP"}
ALU = {
    *("IADD3", "LOP3", "SHF", "LEA", "ISETP", "SEL", "IABS", "VIADD", "VIMNMX", "VIADDMNMX", "IMNMX", "PRMT", "PLOP3"),
    *("FMNMX", "FSEL", "FSETP", "MOV", "BMSK", "SGXT", "R2P", "P2R"),
}
INTEGER = {
    *IMAD,
    *("IADD3", "LOP3", "SHF", "LEA", "ISETP", "IABS", "VIADD", "VIMNMX", "VIADDMNMX", "IMNMX", "PRMT", "BMSK"),
}
FP64 = {"DADD", "DMUL", "DFMA", "DSETP"}


def tool(name: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise FileNotFoundError(f"{name} is not where triton {triton.__version__} should carry it: {path}")
    return str(path)


@lru_cache(maxsize=64)
def disassemble(cubin: bytes) -> tuple[list[Instruction], dict[str, int], dict[str, int]]:
    """Read the instructions, the labels' positions among them, and the resources the assembler reports."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        code = subprocess.run([tool("nvdisasm"), "-c", path], capture_output=True, text=True, check=True).stdout
        usage = subprocess.run(
            [tool("cuobjdump"), "-res-usage", path], capture_output=True, text=True, check=True
        ).stdout
    instructions: list[Instruction] = []
    labels = {}
    for line in code.splitlines():
        if label := re.match(r"(\.L_\w+|\$[\w$]+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+)?\s*([A-Z][\w.]*)(.*);", line):
            instructions.append(Instruction(found[1] or "", found[2], found[3]))
    resources = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage.strip().splitlines()[-1])}
    return instructions, labels, resources


def executions(
    instructions: list[Instruction], labels: dict[str, int], trips: tuple[float, ...], name: str, begun: float = 1
) -> list[float]:
    """Count how often a thread executes each instruction, given how often each loop runs, in the order of the code.

    Inside a loop, what a forward branch can skip counts ``begun`` times: such parts prepare for a new image, or they
    are slow paths for special values. Subroutines count 0, and so does what a warp takes whose threads diverged.
    """
    calls = [labels[i.target] for i in instructions if i.opcode.startswith(("CALL", "BRA.DIV")) and i.target in labels]
    halts = [i for i, j in enumerate(instructions) if j.base == "BRA" and labels.get(j.target or "") == i]
    end = min([*calls, *halts, len(instructions)])  # behind the code proper: such parts and a branch to itself
    jumps = [(i, labels[j.target]) for i, j in enumerate(instructions[:end]) if j.base == "BRA" and j.target in labels]
    loops = sorted((target, source) for source, target in jumps if target <= source)
    if len(loops) != len(trips):
        raise ValueError(
            f"{name}: {len(trips)} loops expected, {len(loops)} found in the machine code; count them anew"
        )
    times = [1.0] * end + [0.0] * (len(instructions) - end)
    for (first, last), count in zip(loops, trips, strict=True):
        skipped: set[int] = set()
        for source, target in jumps:
            if first <= source < target <= last:
                skipped.update(range(source + 1, target))
        for i in range(first, last + 1):
            times[i] *= begun if i in skipped else count
    return times


def read_cubin(compiled: Any) -> Usage:
    instructions, _, resources = disassemble(compiled.asm["cubin"])

    def widest(kind: str) -> int:
        found = [i.opcode for i in instructions if i.base == kind]
        return max((int(w[1]) // 8 if (w := re.search(r"\.[US]?(8|16|64|128)\b", o)) else 4 for o in found), default=0)

    bases = Counter(instruction.base for instruction in instructions)
    return Usage(
        registers=resources["REG"],
        spills=bases["LDL"] + bases["STL"] + resources["LOCAL"],
        shared_bytes=compiled.metadata.shared,
        load_bytes=widest("LDG"),
        store_bytes=widest("STG"),
        instructions=sum(bases.values()) - bases["NOP"],
        integer=sum(bases[base] for base in INTEGER),
        special=bases["MUFU"],
    )


def executed(cubin: bytes, trips: tuple[float, ...], name: str, begun: float = 1) -> dict[str, float]:
    """Count the instructions that one thread executes, per pipe (as in ``floors.LANES``) and of the kind "integer".

    Raises:
        ValueError: the machine code has another number of loops than ``trips``.
    """
    instructions, labels, _ = disassemble(cubin)
    counts = dict.fromkeys(("issue", "imad", "alu", "fp64", "mufu", "integer"), 0.0)
    for instruction, times in zip(instructions, executions(instructions, labels, trips, name, begun), strict=True):
        if instruction.base == "NOP":
            continue
        counts["issue"] += times
        counts["integer"] += times * (instruction.base in INTEGER)
        for pipe, members in (("imad", IMAD), ("alu", ALU), ("fp64", FP64), ("mufu", {"MUFU"})):
            if instruction.base in members and not instruction.opcode.startswith("IMAD.MOV"):
                counts[pipe] += times
    return counts
