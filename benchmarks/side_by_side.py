"""Compare the package with other packages in one command: one run, the same machine, model and images.

    python -m benchmarks.side_by_side --model resnet50 [--batches 32 1] [--samples 20] [--precisions fp32 bf16] ...
    python -m benchmarks.side_by_side --dry-run

FAMPE and AttEXplore of this package; AttEXplore the way its public code runs it (``end_to_end/public_attexplore.py``);
Captum's integrated gradients and SmoothGrad with as many passes, T * N; FAMPE's map of one pass and Grad-CAM of
pytorch-grad-cam, T * N times; and the bare model's forward and backward passes, channels-last, without parameter
gradients, with the number of images per pass that is fastest on this machine. As many of those as a method makes are
its bound. The package's methods run the model as ``load_classifier`` gives it, its batch normalisation folded, and on a
CPU keep freed memory; the others run it as published, and the bare passes both ways.
Everything is called once to warm up; then come the repetitions, each of all methods in turn, so that a drift of the
machine meets all alike; then every method's peak memory, in a process of its own.

The first value of --batches, --samples, --sides and --steps makes the base case; the others vary one of them at a time
(``--product``: all combinations). The result is a JSON file, a Markdown table and a picture.

``--dry-run`` runs everything with a tiny model at toy sizes: it shows that the command works, and nothing about speed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fampe_fast.cli.arguments import positive

from .common.command import add_model, add_output, device_of, file_name, output_folder, stopwatch
from .common.machine import LoadMonitor, Machine, build_of
from .common.plot import plot_calls
from .common.results import CallRow, Results, write
from .end_to_end.cases import OURS, PEERS, Case, ModelSpec
from .end_to_end.measuring import Plan, measure_calls
from .end_to_end.report import markdown

PRECISIONS = ("auto", "fp32", "tf32", "bf16", "fp16")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="Compare this package with other packages.")
    add_model(found)
    sizes = found.add_argument_group("sizes; the first of each makes the base case")
    sizes.add_argument("--batches", nargs="+", type=positive, default=[8, 1], help="images per call (%(default)s)")
    sizes.add_argument("--samples", nargs="+", type=positive, default=[20], help="N (%(default)s)")
    sizes.add_argument("--sides", nargs="+", type=positive, default=[224], help="pixels (%(default)s)")
    sizes.add_argument("--steps", nargs="+", type=positive, default=[10], help="T (%(default)s)")
    sizes.add_argument("--product", action="store_true", help="all combinations, not one varied at a time")
    ways = found.add_argument_group("ways")
    ways.add_argument("--methods", nargs="+", choices=(*OURS, *PEERS), default=[*OURS, *PEERS])
    ways.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["fp32"], help="this package's precisions")
    ways.add_argument(
        "--peer-precisions", nargs="+", choices=PRECISIONS, default=["fp32"], help="the others' precisions"
    )
    ways.add_argument(
        "--compile", nargs="+", choices=("off", "on", "graphs"), default=["off"], help="this package's compile options"
    )
    ways.add_argument(
        "--no-input-diversity",
        action="store_true",
        help="switch input diversity off, for models that take only one image size",
    )
    ways.add_argument(
        "--chunks", nargs="+", type=positive, help="images per bare pass to choose from (8 to 256; CPU: 1 to 32)"
    )
    ways.add_argument(
        "--own-chunks",
        action="store_true",
        help="run this package's methods in its default chunks, not in those of the fastest bare passes",
    )
    run = found.add_argument_group("run")
    run.add_argument("--repetitions", type=positive, default=5, help="repetitions of every call (%(default)s)")
    run.add_argument(
        "--no-memory",
        action="store_true",
        help="do not start a process per row for its peak memory; a GPU's is then measured in this one",
    )
    run.add_argument("--minutes", type=float, default=60, help="time after which nothing new is started (%(default)s)")
    add_output(run, "the three files")
    return found


def cases(found: argparse.Namespace) -> tuple[Case, ...]:
    """List the base case, then each size varied alone, or all combinations."""
    diversity = False if found.no_input_diversity else None
    lists = (found.batches, found.sides, found.steps, found.samples)
    if found.product:
        chosen = list(itertools.product(*lists))
    else:
        base = tuple(values[0] for values in lists)
        chosen = [base]
        for place, values in enumerate(lists):
            chosen += [(*base[:place], value, *base[place + 1 :]) for value in values[1:]]
    return tuple(dict.fromkeys(Case(*sizes, diversity) for sizes in chosen))


def plan(found: argparse.Namespace) -> Plan:
    device = device_of(found)
    chunks = found.chunks or ([1, 4, 8, 16, 32] if device.type == "cpu" else [8, 16, 32, 64, 128, 256])
    return Plan(
        ModelSpec(found.model, found.weights, found.mean, found.std, dict(found.model_arg)),
        device,
        build_of(device, dry_run=found.dry_run),
        cases(found),
        tuple(found.precisions),
        tuple(found.peer_precisions),
        tuple(found.compile),
        tuple(found.methods),
        tuple(chunks),
        found.repetitions,
        not found.no_memory,
        found.images,
        own_chunks=found.own_chunks,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser()
    found = command.parse_args(arguments)
    out = output_folder(command, found)
    if found.dry_run:
        found.model, found.weights, found.images, found.device = "embedded", None, None, "cpu"
        found.model_arg, found.mean, found.std = [], None, None
        found.batches, found.sides, found.steps, found.samples = [2, 1], [32], [1], [2]
        found.chunks, found.repetitions = [1, 2], 2
    monitor, started, chosen = LoadMonitor(), time.monotonic(), plan(found)

    def keep(rows: Sequence[CallRow]) -> tuple[Machine, Path]:
        this = monitor.machine(chosen.build)
        file = out / f"side_by_side_{file_name(found.model, this.build.device)}.json"
        return this, write(Results((this,), calls=tuple(rows)), file, markdown(rows, this))

    rows = measure_calls(chosen, started + 60 * found.minutes, stopwatch(), keep)
    this, file = keep(rows)
    plot_calls(rows, this, file.with_suffix(".png"))
    print(f"\n{markdown(rows, this)}\n{file}")
    broken = [row for row in rows if row.status.startswith("failed")]
    for row in broken:
        print(f"FAILED: {row.case}: {row.way}: {row.status}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
