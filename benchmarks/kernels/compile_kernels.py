"""Compile every Triton kernel ahead of time, without a GPU, and derive its costs from the machine code.

    python -m benchmarks.kernels.compile_kernels [--targets sm_90 gfx942] [--variants] [--json FILE] [--workers 1]

The launches are those the package would make for 32 images of 3 x 224 x 224 with 20 samples each, in chunks of 64 rows:
the host functions run on tensors without memory and their launches are recorded, so sizes, block shapes and alignments
are the real ones. With ``--variants`` also the less usual ones (odd sizes, other modes). For every kernel and target
the table shows registers, spills, shared memory, the widest global load and store, and how many instructions there are;
for sm_90 also how many are executed, the bytes that must move, and the floor that follows for an H200. Those floors are
PREDICTED from machine code and data sheets, not measured.

``--work`` is for ``run.py``: primitives and sizes come as JSON on standard input, the instructions that their launches
execute on sm_90 go as JSON to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before triton is imported: compiled, not interpreted

import torch
import triton

from fampe_fast.reference.radial_mask import SHAPES

from .floors import H200, LaunchWork
from .launches import TARGETS, Launch, compiling_for, obstacle, record
from .machine_code import Usage, executed, read_amdgcn, read_cubin
from .primitives import PRIMITIVES, Arguments, Primitive, primitive
from .sizes import USUAL, Size

WORK_TARGET = "sm_90"
"""The target whose instructions are counted: the only one whose pipes ``floors.LANES`` describes."""


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel on one target, as read from its machine code."""

    kernel: str
    variant: str
    target: str
    triton: str
    warps: int = 0
    programs: int = 0
    usage: Usage | None = None
    predicted: dict[str, float] | None = None
    uncounted: str | None = None
    skipped: str | None = None


# What is compiled -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A call of the package.

    Attributes:
        primitive: of the table.
        size: of the batch.
        label: what is special about it, or empty.
        change: of the arguments.
    """

    primitive: Primitive
    size: Size
    label: str = ""
    change: Callable[[Arguments], Arguments] = lambda arguments: arguments

    def launches(self) -> list[Launch]:
        """Record what the package would launch."""
        size = self.primitive.fitted(self.size)
        arguments = self.change(self.primitive.arguments(size, torch.device("meta")))
        return record(lambda: self.primitive.kernel()(**arguments))

    def work(self, launch: Launch, compiled: Any) -> LaunchWork | None:
        """Count what a launch of sm_90 code executes and moves; None if nothing is known of it beforehand."""
        model = self.primitive.launches.get(launch.name)
        if model is None:
            return None
        size = self.primitive.fitted(self.size)
        counts = executed(
            compiled.asm["cubin"], model.trips(launch.named, size), launch.name, model.begun(launch.named, size)
        )
        threads = launch.programs * launch.warps * 32
        return model.work(launch.name, size, {pipe: count * threads for pipe, count in counts.items()})


def _without_smoothing(arguments: Arguments) -> Arguments:
    return {**arguments, "kernel": arguments["kernel"][:0]}


def _in_shape(shape: str, arguments: Arguments) -> Arguments:
    return {**arguments, "shape": shape}


def _three_taps(arguments: Arguments) -> Arguments:
    return {**arguments, "kernel": arguments["kernel"][:3]}


def _channels_last_bfloat16(arguments: Arguments) -> Arguments:
    images = {
        name: arguments[name].bfloat16().to(memory_format=torch.channels_last)
        for name in ("start", "finish", "activation", "gradient")
        if name in arguments
    }
    return {**arguments, **images}


def usual() -> list[Problem]:
    """List every kernel of the table once."""
    return [Problem(entry, USUAL) for entry in PRIMITIVES]


def variants() -> list[Problem]:
    """List the less usual launches."""
    odd = Size(32, 20, 225, 224)
    return [
        Problem(primitive("band_mix"), odd, "225 x 224, 8-byte accesses"),
        Problem(primitive("band_samples"), Size(32, 20, 225, 226), "225 x 226"),
        Problem(primitive("band_mix"), USUAL, "shared multiplier", lambda a: {**a, "shared_multiplier": True}),
        *(Problem(primitive("band_mix"), USUAL, shape, partial(_in_shape, shape)) for shape in SHAPES[1:]),
        *(Problem(primitive("band_samples"), USUAL, shape, partial(_in_shape, shape)) for shape in SHAPES[1:]),
        Problem(primitive("combine_layers"), Size(32, 20, 299, 299), "299 x 299"),
        Problem(primitive("energy_cutoff"), USUAL, "without DC", lambda a: {**a, "include_dc": False}),
        Problem(primitive("energy_cutoff"), Size(32, 20, 2048, 2048), "2048 x 2048"),
        Problem(primitive("gradient_step"), USUAL, "no smoothing", _without_smoothing),
        Problem(primitive("gradient_step"), Size(32, 20, 299, 299), "299 x 299, 3 taps", _three_taps),
        Problem(primitive("layer_evidence"), USUAL, "channels last, bfloat16", _channels_last_bfloat16),
        Problem(primitive("layer_evidence"), Size(32, 0, 7, 7, 2048), "7 x 7, 2048 channels"),
        Problem(primitive("pixel_mask"), USUAL, "channels last, bfloat16", _channels_last_bfloat16),
        Problem(primitive("radial_mask"), odd, "225 x 224"),
        *(Problem(primitive("radial_mask"), USUAL, shape, partial(_in_shape, shape)) for shape in SHAPES[1:]),
    ]


# Compilation ----------------------------------------------------------------------------------------------------------


def compile_for(target: str, with_variants: bool) -> list[CompiledKernel]:
    """Compile all kernels for one target."""
    if reason := obstacle(target):
        return [CompiledKernel("", "", target, triton.__version__, skipped=reason)]
    rows = []
    read = read_amdgcn if target.startswith("gfx") else read_cubin
    with compiling_for(target):
        for problem in [*usual(), *(variants() if with_variants else ())]:
            for launch in problem.launches():
                compiled = launch.compile()
                work, uncounted = None, None
                if target == WORK_TARGET and not problem.label:
                    try:
                        work = problem.work(launch, compiled)
                    except ValueError as error:  # another compiler's loops
                        uncounted = str(error)
                rows.append(
                    CompiledKernel(
                        launch.name,
                        problem.label,
                        target,
                        triton.__version__,
                        launch.warps,
                        launch.programs,
                        read(compiled),
                        work and prediction(work),
                        uncounted,
                    )
                )
    return rows


def prediction(work: LaunchWork) -> dict[str, float]:
    """Predict what one launch executes and moves per element, and its least time on an H200 in microseconds."""
    times = work.times(H200)
    return {
        **{f"{pipe}_us": us for pipe, us in times.items()},
        "floor_us": max(times.values()),
        "instructions_per_element": work.executed["issue"] / work.elements,
        "integer_per_element": work.executed["integer"] / work.elements,
        "bytes_per_element": work.bytes / work.elements,
    }


def count_work(requests: list[tuple[str, Size]]) -> list[dict[str, Any]]:
    """Count for each primitive and size the work of its launches on sm_90, or say why it is not known."""
    answers: list[dict[str, Any]] = []
    with compiling_for(WORK_TARGET):
        for name, size in requests:
            problem = Problem(primitive(name), size)
            try:
                found = [problem.work(launch, launch.compile()) for launch in problem.launches()]
                answers.append({"work": [asdict(work) for work in found if work is not None], "reason": None})
            except (ValueError, FileNotFoundError) as error:
                answers.append({"work": [], "reason": str(error)})
    return answers


# Output ---------------------------------------------------------------------------------------------------------------


def show(rows: list[CompiledKernel]) -> None:
    print(f"triton {triton.__version__}: {USUAL}, {USUAL.channels} channels")
    print(
        f"{'kernel':<18}{'target':<8}{'warps':>6}{'regs':>6}{'spills':>7}{'shared':>7}{'load':>6}{'store':>6}"
        f"{'instr':>7}{'integer':>8}{'MUFU':>6}  variant"
    )
    for row in rows:
        if row.usage is None:
            print(f"{'-':<18}{row.target:<8}skipped: {row.skipped}")
            continue
        use = row.usage
        print(
            f"{row.kernel:<18}{row.target:<8}{row.warps:>6}{use.registers:>6}{use.spills:>7}{use.shared_bytes:>7}"
            f"{use.load_bytes:>6}{use.store_bytes:>6}{use.instructions:>7}{use.integer:>8}{use.special:>6}"
            f"  {row.variant}" + f"  ({use.parked_scalars} scalars in vector lanes)" * bool(use.parked_scalars)
        )
    for row in rows:
        if row.uncounted:
            print(f"no instruction count on {row.target}: {row.uncounted}")
    predictions = [row for row in rows if row.predicted]
    if not predictions:
        return
    print(
        f"\nPredicted from sm_90 machine code, not measured: H200, {H200.sms} SMs at {H200.clock / 1e9:.2f} GHz, "
        f"{H200.memory / 1e12} TB/s. Per coefficient or pixel and channel; times of one launch in microseconds."
    )
    print(
        f"{'kernel':<18}{'bytes':>7}{'instr':>7}{'integer':>8} |{'memory':>8}{'issue':>7}{'ALU':>7}{'IMAD':>7}"
        f"{'FP64':>7}{'MUFU':>7} |{'floor':>8}"
    )
    for row in predictions:
        p = row.predicted or {}
        print(
            f"{row.kernel:<18}{p['bytes_per_element']:>7.1f}{p['instructions_per_element']:>7.1f}"
            f"{p['integer_per_element']:>8.1f} |{p['memory_us']:>8.1f}{p['issue_us']:>7.1f}{p['alu_us']:>7.1f}"
            f"{p['imad_us']:>7.1f}{p['fp64_us']:>7.1f}{p['mufu_us']:>7.1f} |{p['floor_us']:>8.1f}"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile every Triton kernel ahead of time and show its costs.")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--variants", action="store_true", help="also compile the less usual launches")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table as JSON")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes, one target each")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.work:
        requests = [(request["primitive"], Size(**request["size"])) for request in json.load(sys.stdin)]
        json.dump(count_work(requests), sys.stdout)
        return 0
    workers = max(1, min(len(chosen.targets), chosen.workers))
    asked = chosen.targets, [chosen.variants] * len(chosen.targets)
    if workers == 1:
        rows = list(chain.from_iterable(map(compile_for, *asked)))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            rows = list(chain.from_iterable(pool.map(compile_for, *asked)))
    order: dict[tuple[str, str], int] = {}
    for row in rows:
        order.setdefault((row.kernel, row.variant), len(order))
    rows.sort(key=lambda row: (order[row.kernel, row.variant], chosen.targets.index(row.target)))
    show(rows)
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
