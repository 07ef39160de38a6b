"""Measure every Triton kernel on this machine's GPU, after its tests have passed there.

    python -m benchmarks.run [--quick] [--minutes 8] [--out benchmarks/results]
    python -m benchmarks.run --dry-run

First the GPU tests run; if one fails there is no figure, and the results file says so. Then each kernel is compared
with the reference, eager and through torch.compile in real arithmetic, over batches, samples and sizes in the order of
their importance until the time is up, and FAMPE as a whole with the bare model's passes. Results go into one JSON file,
merged with what it holds of other machines and versions, and one plot per machine.

``--dry-run`` takes the same way on the CPU, at toy sizes, with Triton's interpreter: it proves the command complete and
says nothing of speed. Its results go to ``--out`` or a temporary folder and never into the committed file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

COMMITTED = Path(__file__).resolve().parent / "results"
PROVIDERS = ("kernel", "eager", "compiled")


@dataclass(frozen=True)
class Chosen:
    """The command line's choices."""

    dry_run: bool
    out: Path
    minutes: float
    kernels: tuple[str, ...] | None
    providers: tuple[str, ...]
    sizes: tuple[str, ...] | None
    quick: bool
    end_to_end: bool


def parse(arguments: Sequence[str] | None) -> Chosen:
    parser = argparse.ArgumentParser(description="Measure the Triton kernels on this machine's GPU.")
    parser.add_argument("--dry-run", action="store_true", help="the same on the CPU at toy sizes, by the interpreter")
    parser.add_argument("--quick", action="store_true", help="the most important size alone, in three minutes")
    parser.add_argument("--minutes", type=float, help="after which nothing new is begun (8, quick: 3)")
    parser.add_argument("--out", type=Path, help=f"folder of results.json and plots ({COMMITTED.name}/ beside this)")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS, help="only these")
    parser.add_argument("--sizes", nargs="+", metavar="BxNxHxW", help="instead of the usual ones")
    parser.add_argument("--no-end-to-end", action="store_true", help="leave the whole model out")
    found = parser.parse_args(arguments)
    out = found.out
    if out is None:
        out = Path(tempfile.mkdtemp(prefix="fampe_fast_dry_run_")) if found.dry_run else COMMITTED
    if found.dry_run and out.resolve() == COMMITTED.resolve():
        parser.error("a dry run is no measurement: give --out another folder than the committed results")
    return Chosen(
        found.dry_run,
        out,
        found.minutes or (3 if found.quick else 8),
        found.kernels and tuple(found.kernels),
        tuple(found.providers),
        found.sizes and tuple(found.sizes),
        found.quick,
        not found.no_end_to_end,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = parse(arguments)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {text}" if text else "", flush=True)

    if chosen.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    import torch

    if not chosen.dry_run and not torch.cuda.is_available():
        say("no CUDA or ROCm GPU here, and only a GPU gives figures; --dry-run shows that the command is complete")
        return 2

    from .common.machine import Bandwidth, build
    from .common.results import Machine, Results, read, write
    from .kernels import gate

    device = torch.device("cpu" if chosen.dry_run else "cuda")
    this = build(device)
    file = chosen.out / "results.json"
    say(f"{this.device}, torch {this.torch}, triton {this.triton}, commit {this.commit}")
    say("tests first ...")
    failed = gate.failure(gate.checks(chosen.dry_run), timeout=max(240.0, 45 * chosen.minutes))
    if failed is not None:
        say(f"the tests failed on this build: NO speed is reported\n{failed}")
        record = Machine(this, tests=f"failed: {failed.splitlines()[0]}")
        write(read(file).merged(Results(machines=(record,))), file)
        return 1
    say("the tests passed")

    from .common.machine import ceilings, measure_bandwidth, timer_for
    from .common.plot import plot
    from .end_to_end.throughput import DRY_PLAN, EndToEndPlan, measure_end_to_end
    from .kernels.measuring import Bench, cases, counted_work, measure
    from .kernels.primitives import PRIMITIVES, primitive
    from .kernels.report import report
    from .kernels.sizes import SIZES, TOY_SIZES, USUAL, size_from_text

    deadline = started + 60 * chosen.minutes
    timer = timer_for(device)
    bandwidth: Bandwidth = measure_bandwidth(timer, device)
    say(f"memory: copy {bandwidth.copy / 1e9:.0f} GB/s, write {bandwidth.write / 1e9:.0f} GB/s")
    if chosen.sizes:
        sizes = tuple(map(size_from_text, chosen.sizes))
    elif chosen.dry_run:
        sizes = TOY_SIZES
    else:
        sizes = (USUAL,) if chosen.quick else SIZES
    wanted = cases([primitive(name) for name in chosen.kernels] if chosen.kernels else PRIMITIVES, sizes)
    bench = Bench(device, timer, this, ceilings(bandwidth, device), seconds=0.3)

    results = Results(machines=(Machine(this, "passed", bandwidth.copy, bandwidth.write),))
    plan = DRY_PLAN if chosen.dry_run else EndToEndPlan()
    if chosen.quick and not chosen.dry_run:
        plan = replace(plan, batches=(32,), precisions=("fp32",), diversity=(False,))

    def kept(found: Results) -> Results:
        write(read(file).merged(found), file)  # after every part: what was measured survives whatever comes
        return found

    # The whole model comes right after the most important size.
    usual = [case for case in wanted if case[1] == case[0].fitted(sizes[0])]
    rest = [case for case in wanted if case not in usual]
    # Counting compiles; in a dry run one case shows the way: nothing there is as fast as a floor.
    work = counted_work(usual[:1] if chosen.dry_run else usual, device, say)
    for row in measure(usual, chosen.providers, work, bench, deadline, say):
        results = kept(replace(results, rows=(*results.rows, row)))
    if chosen.end_to_end:
        for whole in measure_end_to_end(plan, device, this, deadline, say):
            results = kept(replace(results, end_to_end=(*results.end_to_end, whole)))
    work = {} if chosen.dry_run else counted_work(rest, device, say)
    for row in measure(rest, chosen.providers, work, bench, deadline, say):
        results = kept(replace(results, rows=(*results.rows, row)))

    picture = chosen.out / (_slug(this.device) + ".png")
    plot(results.rows, bandwidth, this, picture)
    say("")
    print(report(results.rows, results.end_to_end))
    if chosen.dry_run:
        print("\nDRY RUN: the command is complete; no time above says anything of a GPU")
    print(f"\n{file}\n{picture}")
    broken = [row for row in (*results.rows, *results.end_to_end) if row.status.startswith("failed")]
    for row in broken:
        print(f"FAILED: {row.status}: {row.key}")
    return 1 if broken else 0


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text.lower())


if __name__ == "__main__":
    sys.exit(main())
