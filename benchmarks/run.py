"""Measure every Triton kernel on this machine's GPU, and FAMPE as a whole, in stages.

    python -m benchmarks.run [--stage tests kernels model sizes] [--quick] [--minutes 8] [--out benchmarks/results]
    python -m benchmarks.run --dry-run

Every stage writes its results and prints its report before the next begins, so that an interrupted call keeps its
results, and a later one can run the other stages:

tests: the GPU tests. A kernel with a failing test, and everything that uses it, is marked UNVERIFIED in all later
    results, as is everything on a build whose tests have not run.
kernels: each kernel at the most important size, beside the reference, eager and through torch.compile in real
    arithmetic.
model: FAMPE as a whole with the bare model's passes.
sizes: the kernels at the other sizes, in the order of their importance.

Results go into one JSON file, merged with what it holds of other machines and versions, and one plot per machine.

``--dry-run`` takes the same way on the CPU, at toy sizes, with Triton's interpreter: it proves the command complete and
says nothing of speed. Its results go to ``--out`` or a temporary folder and never into that of the measurements.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from .common.command import add_output, output_folder, stopwatch

PROVIDERS = ("kernel", "eager", "compiled")
STAGES = ("tests", "kernels", "model", "sizes")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the Triton kernels on this machine's GPU.")
    parser.add_argument(
        "--stage", nargs="+", choices=STAGES, default=STAGES, help="run only these stages, in the order of the default"
    )
    parser.add_argument("--quick", action="store_true", help="run only the most important size, in three minutes")
    parser.add_argument("--minutes", type=float, help="time after which nothing new is started (8, quick: 3)")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="measure only these kernels")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS, help="measure only these")
    parser.add_argument("--sizes", nargs="+", metavar="BxNxHxW", help="sizes to measure instead of the usual ones")
    add_output(parser, "results.json and plots")
    found = parser.parse_args(arguments)
    found.out = output_folder(parser, found)
    found.minutes = found.minutes or (3 if found.quick else 8)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    started, say = time.monotonic(), stopwatch()
    if chosen.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    import torch

    if not chosen.dry_run and not torch.cuda.is_available():
        say("no CUDA or ROCm GPU here, and only a GPU can be measured; --dry-run checks that the command works")
        return 2

    from . import stages

    session = stages.Session(chosen, say, started + 60 * chosen.minutes)
    this = session.build
    say(f"{this.device}, torch {this.torch}, triton {this.triton}, commit {this.commit}")
    for name, stage in stages.STAGES.items():
        if name in chosen.stage:
            say(f"stage {name} ...")
            stage(session)
    if chosen.dry_run:
        print("\nDRY RUN: the command works; no time above says anything about a GPU")
    print(f"\n{session.file}")
    for what in session.failed:
        print(f"FAILED: {what}")
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
