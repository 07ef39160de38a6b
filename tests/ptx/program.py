"""PTX as text to a list of instructions with resolved jumps."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        opcode: its parts, e.g. ("add", "rn", "f32").
        operands: as written; the members of a vector in braces are operands of their own.
        guard: the register that decides whether a thread takes part, or None for all.
        negated: whether the threads take part where the guard is false.
        target: position of the instruction that a branch goes to.
        text: the line.
    """

    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    target: int | None
    text: str


@dataclass(frozen=True)
class Program:
    """A kernel.

    Attributes:
        name: the entry's.
        parameters: types of the parameters in order, e.g. "u64".
        threads: per program (block, CTA).
        instructions: in the order of the text.
        leaders: positions where a run of instructions without a jump begins, ascending.
    """

    name: str
    parameters: tuple[str, ...]
    threads: int
    instructions: tuple[Instruction, ...]
    leaders: tuple[int, ...]


_LINE = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)


def parse(text: str) -> Program:
    """Read the only entry of a module.

    Raises:
        ValueError: there is no entry, or a line is not understood.
    """
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"\btmp\b", "_", text)  # LLVM's name, up to Triton 3.3, of a half that is dropped
    entry = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{(.*?)^\}", text, re.DOTALL | re.MULTILINE)
    if entry is None:
        raise ValueError("no entry in this PTX")
    name, header, bounds, body = entry.groups()
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", bounds)
    if threads is None:
        raise ValueError(f"{name}: the number of threads is not in the PTX")
    labels: dict[str, int] = {}
    lines: list[re.Match[str]] = []
    for statement in re.split(r";|\n", body):
        rest = statement.strip()
        while label := re.match(r"(\$?\w+):(?!:)\s*", rest):
            labels[label[1]] = len(lines)
            rest = rest[label.end() :]
        if not rest or rest[0] in ".{}":
            continue
        found = _LINE.fullmatch(rest)
        if found is None:
            raise ValueError(f"{name}: not understood: {rest}")
        lines.append(found)
    instructions = tuple(_instruction(line, labels) for line in lines)
    jumps = [i for i, instruction in enumerate(instructions) if instruction.opcode[0] in ("bra", "ret")]
    targets = {instructions[i].target for i in jumps} - {None}
    leaders = sorted({0, *(i + 1 for i in jumps), *(t for t in targets if t is not None)} - {len(instructions)})
    return Program(name, tuple(re.findall(r"\.param\s+\.(\w+)", header)), int(threads[1]), instructions, tuple(leaders))


def _instruction(line: re.Match[str], labels: dict[str, int]) -> Instruction:
    negated, guard, opcode, rest = line.groups()
    parts = tuple(opcode.replace("::", ".").split("."))
    operands = tuple(filter(None, re.split(r"[\s,{}]+", re.sub(r"\[\s*([^\]]*?)\s*\]", _close, rest))))
    target = labels[operands[0]] if parts[0] == "bra" else None
    return Instruction(parts, operands, guard, negated == "!", target, line[0].strip())


def _close(address: re.Match[str]) -> str:
    return "[" + re.sub(r"\s+", "", address[1]) + "]"
