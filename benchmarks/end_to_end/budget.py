"""Find where the time of a map goes, for several models: their passes, sampling, sums, steps, copies, the host.

    python -m benchmarks.end_to_end.budget [--models mobilenetv2_100 resnet50 ...] [--batches 1 8] ...
    python -m benchmarks.end_to_end.budget --dry-run

The result is a JSON file and a Markdown table. Weights are random, which costs the same. On a GPU launches,
synchronisations and transfers are counted as well.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fampe_fast.cli.arguments import positive

from ..common.command import add_device, add_output, device_of, file_name, output_folder
from ..common.machine import LoadMonitor, Machine, build_of
from ..common.results import table, write
from .cases import Case, ModelSpec, Way
from .contestants import Models, build
from .profiling import KINDS, Budget, Marked, profile_call

MODELS = ("mobilenetv2_100", "resnet50", "vit_small_patch16_224", "maxvit_tiny_tf_224")


@dataclass(frozen=True)
class BudgetRow:
    """One model, one way of running it, and what it took."""

    model: str
    batch: int
    precision: str
    compile: str
    passes: int
    budget: Budget

    @property
    def pass_ms(self) -> float:
        """Milliseconds per pass and image."""
        return 1e3 * self.budget.seconds / self.passes

    def __str__(self) -> str:
        kinds = sorted(self.budget.share.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in kinds if share >= 0.001)
        way = f"{self.model}, batch {self.batch}, {self.precision}, compile {self.compile}"
        return f"{way}: {self.pass_ms:.3g} ms a pass: {shares}"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="Where the time of a map goes.")
    found.add_argument("--models", nargs="+", default=list(MODELS), help="names for load_classifier, or 'embedded'")
    found.add_argument("--batches", nargs="+", type=positive, default=[1, 8], help="images per call (%(default)s)")
    found.add_argument("--precisions", nargs="+", default=["fp32"], choices=("fp32", "tf32", "bf16", "fp16"))
    found.add_argument("--compile", nargs="+", default=["off"], choices=("off", "on", "graphs"))
    found.add_argument("--method", default="fampe", choices=("fampe", "attexplore"))
    found.add_argument("--steps", type=positive, default=2, help="T (%(default)s)")
    found.add_argument("--samples", type=positive, default=20, help="N (%(default)s)")
    found.add_argument("--chunk", type=positive, help="samples per model pass (default: the package's)")
    found.add_argument("--repetitions", type=positive, default=3, help="repetitions of every call (%(default)s)")
    add_device(found)
    add_output(found, "the two files")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser()
    found = command.parse_args(arguments)
    out = output_folder(command, found)
    if found.dry_run:
        found.models, found.batches, found.device = ["embedded"], [1, 2], "cpu"
        found.steps, found.samples, found.repetitions = 1, 2, 1
    device = device_of(found)
    monitor, this = LoadMonitor(), build_of(device, dry_run=found.dry_run)
    file = out / f"budget_{file_name(this.device)}.json"
    rows = []
    for name in found.models:
        published = ModelSpec(name).load(device)
        side = published.input_size[0]
        model = Marked(Models.of(published, torch.rand(1, 3, side, side, device=device), plain=False).ours)
        for batch in found.batches:
            images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
            targets = torch.zeros(batch, dtype=torch.long, device=device)
            case = Case(batch, side, found.steps, found.samples)
            for precision in found.precisions:
                for compiled in found.compile:
                    way = Way(found.method, precision, compiled)
                    call = build(way, case, Models(model, model, model), found.chunk, images, targets, warm=True)
                    budget = profile_call(call, device, found.repetitions)
                    rows.append(BudgetRow(name, batch, precision, compiled, case.passes, budget))
                    print(rows[-1], flush=True)
                    # After every row: what was measured survives whatever comes.
                    machine = monitor.machine(this)
                    text = markdown(rows, machine, f"T = {found.steps}, N = {found.samples}")
                    write({"machine": machine, "rows": rows}, file, text)
    print(f"\n{text}\n{file}")
    return 0


def markdown(rows: Sequence[BudgetRow], of: Machine, sizes: str) -> str:
    lines = [f"{of}; {sizes}. Shares of a call's time, from one profiled call."]
    if of.warning:
        lines += ["", f"**{of.warning}**"]
    gpu = any(row.budget.launches for row in rows)
    titles = ["model", "batch", "precision", "loop", "ms per pass and image", *KINDS]
    titles += ["launches", "synchronisations", "transfers"] if gpu else []
    cells = []
    for row in rows:
        cells.append([row.model, str(row.batch), row.precision, "compiled" if row.compile == "on" else row.compile])
        cells[-1] += [f"{row.pass_ms:.3g}", *(f"{row.budget.share.get(kind, 0.0):.1%}" for kind in KINDS)]
        if gpu:
            cells[-1] += map(str, (row.budget.launches, row.budget.synchronisations, row.budget.transfers))
    return "\n".join([*lines, "", *table(titles, cells)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
