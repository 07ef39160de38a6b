"""Where the time of a map goes, for several models: the model's passes, sampling, sums, steps, copies, the host.

    python -m benchmarks.end_to_end.budget [--models mobilenetv2_100 resnet50 ...] [--batches 1 8] ...
    python -m benchmarks.end_to_end.budget --dry-run

The result is a JSON file and a Markdown table. Weights are random, which costs the same. On a GPU launches,
synchronisations and transfers are counted as well.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fampe_fast.cli.arguments import positive

COMMITTED = Path(__file__).resolve().parents[1] / "results"

if TYPE_CHECKING:
    from .profiling import Budget
    from .results import Machine

MODELS = ("mobilenetv2_100", "resnet50", "vit_small_patch16_224", "maxvit_tiny_tf_224")


@dataclass(frozen=True)
class Row:
    """One model, one way of running it, and what it took."""

    model: str
    batch: int
    precision: str
    compile: str
    passes: int
    budget: Budget


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="Where the time of a map goes.")
    found.add_argument("--models", nargs="+", default=list(MODELS), help="as load_classifier takes them, or 'embedded'")
    found.add_argument("--batches", nargs="+", type=positive, default=[1, 8], help="images per call (%(default)s)")
    found.add_argument("--precisions", nargs="+", default=["fp32"], choices=("fp32", "tf32", "bf16", "fp16"))
    found.add_argument("--compile", nargs="+", default=["off"], choices=("off", "on", "graphs"))
    found.add_argument("--method", default="fampe", choices=("fampe", "attexplore"))
    found.add_argument("--steps", type=positive, default=2, help="T (%(default)s)")
    found.add_argument("--samples", type=positive, default=20, help="N (%(default)s)")
    found.add_argument("--chunk", type=positive, help="samples per model pass (default: the package's)")
    found.add_argument("--device", help="default: a GPU if there is one")
    found.add_argument("--threads", type=positive, help="of torch on the CPU")
    found.add_argument("--repetitions", type=positive, default=3, help="of every call (%(default)s)")
    found.add_argument(
        "--out", type=Path, help=f"folder of the two files (default: {COMMITTED.name}/ in the benchmarks)"
    )
    found.add_argument("--dry-run", action="store_true", help="a tiny model at toy sizes, on the CPU")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser()
    found = command.parse_args(arguments)
    out: Path = found.out or (Path(tempfile.mkdtemp(prefix="fampe_fast_budget_")) if found.dry_run else COMMITTED)
    if found.dry_run:
        if out.resolve() == COMMITTED.resolve():
            command.error("a dry run is no measurement: give --out another folder than the committed results")
        found.models, found.batches, found.device = ["embedded"], [1, 2], "cpu"
        found.steps, found.samples, found.repetitions = 1, 2, 1

    import torch

    from .contestants import Case, Models, ModelSpec, Way, build
    from .profiling import Marked, budget
    from .results import Quiet, machine

    if found.threads:
        torch.set_num_threads(found.threads)
    device = torch.device(found.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    quiet = Quiet()
    rows = []
    for name in found.models:
        published = ModelSpec(name).load(device)
        side = published.input_size[0]
        model = Marked(Models.of(published, torch.rand(1, 3, side, side, device=device), plain=False).ours)
        for batch in found.batches:
            images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
            targets = torch.zeros(batch, dtype=torch.long, device=device)
            case = Case(batch, side, found.steps, found.samples, diversity=found.method == "attexplore")
            for precision in found.precisions:
                for compiled in found.compile:
                    way = Way(found.method, precision, compiled)
                    call = build(way, case, Models(model, model, model), found.chunk, images, targets, warm=True)
                    row = Row(name, batch, precision, compiled, case.passes, budget(call, device, found.repetitions))
                    rows.append(row)
                    print(line(row), flush=True)
                    # After every row: what was measured survives whatever comes.
                    this = machine(device, ", ".join(found.models), quiet, found.dry_run)
                    file = write(rows, this, f"T = {found.steps}, N = {found.samples}", out)
    print(f"\n{file.with_suffix('.md').read_text(encoding='utf-8')}\n{file}")
    return 0


def write(rows: Sequence[Row], of: Machine, budget_of: str, out: Path) -> Path:
    """JSON and a table beside it; the file's path."""
    words = re.findall(r"[a-z0-9]+", of.device.lower())
    file = out / f"budget_{'_'.join(words)}.json"
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"machine": asdict(of), "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    file.with_suffix(".md").write_text(markdown(rows, of, budget_of), encoding="utf-8")
    return file


def markdown(rows: Sequence[Row], of: Machine, budget_of: str) -> str:
    from .profiling import KINDS

    lines = [
        f"{of.device}, {of.threads} threads, torch {of.torch}, commit {of.commit}, {of.date}; {budget_of}. Shares of a "
        "call's time, from one profiled call.",
    ]
    if of.dry_run:
        lines += ["", "**Dry run at toy sizes: the figures mean nothing.**"]
    elif of.disturbed:
        lines += ["", f"**Not a measurement to be kept: {of.disturbed}.**"]
    gpu = any(row.budget.launches for row in rows)
    titles = ["model", "batch", "precision", "loop", "ms per pass and image", *KINDS]
    titles += ["launches", "synchronisations", "transfers"] if gpu else []
    lines += ["", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in rows:
        cells = [row.model, str(row.batch), row.precision, "compiled" if row.compile == "on" else row.compile]
        cells.append(f"{1e3 * row.budget.seconds / row.passes:.3g}")
        cells += [f"{row.budget.share.get(kind, 0.0):.1%}" for kind in KINDS]
        if gpu:
            cells += [str(row.budget.launches), str(row.budget.synchronisations), str(row.budget.transfers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def line(row: Row) -> str:
    kinds = sorted(row.budget.share.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{kind} {share:.1%}" for kind, share in kinds if share >= 0.001)
    each = 1e3 * row.budget.seconds / row.passes
    return f"{row.model}, batch {row.batch}, {row.precision}, compile {row.compile}: {each:.3g} ms a pass: {shares}"


if __name__ == "__main__":
    sys.exit(main())
