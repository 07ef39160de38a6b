"""Measure every Triton kernel on this machine's GPU, after its tests have passed there.

    python -m benchmarks.run [--quick] [--minutes 8] [--out benchmarks/results]
    python -m benchmarks.run --dry-run

First the GPU tests run; if one fails there is no figure, and the results file says so. Then each kernel is compared
with the reference, eager and through torch.compile in real arithmetic, over batches, samples and sizes in the order of
their importance until the time is up, and FAMPE as a whole with the bare model's passes. Results go into one JSON file,
merged with what it holds of other machines and versions, and one plot per machine.

``--dry-run`` takes the same way on the CPU, at toy sizes, with Triton's interpreter: it proves the command complete and
says nothing of speed. Its results go to ``--out`` or a temporary folder and never into that of the measurements.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .common.command import add_output, file_name, output_folder, stopwatch

if TYPE_CHECKING:
    import torch

    from .common.machine import Build
    from .end_to_end.measuring import Plan

PROVIDERS = ("kernel", "eager", "compiled")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the Triton kernels on this machine's GPU.")
    parser.add_argument("--quick", action="store_true", help="the most important size alone, in three minutes")
    parser.add_argument("--minutes", type=float, help="after which nothing new is begun (8, quick: 3)")
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=PROVIDERS, help="only these")
    parser.add_argument("--sizes", nargs="+", metavar="BxNxHxW", help="instead of the usual ones")
    parser.add_argument("--no-end-to-end", action="store_true", help="leave the whole model out")
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
        say("no CUDA or ROCm GPU here, and only a GPU gives figures; --dry-run shows that the command is complete")
        return 2

    from .common.machine import LoadMonitor, build_of
    from .common.results import Results, read, write
    from .kernels import gate

    device = torch.device("cpu" if chosen.dry_run else "cuda")
    monitor, this = LoadMonitor(), build_of(device, dry_run=chosen.dry_run)
    file = chosen.out / "results.json"
    read(file)  # that of another version is refused before the work
    say(f"{this.device}, torch {this.torch}, triton {this.triton}, commit {this.commit}")
    say("tests first ...")
    failed = gate.failure(gate.checks(chosen.dry_run), timeout=max(240.0, 45 * chosen.minutes))
    if failed is not None:
        say(f"the tests failed on this build: NO speed is reported\n{failed}")
        record = monitor.machine(this, tests=f"failed: {failed.splitlines()[0]}")
        write(read(file).merged(Results((record,))), file)
        return 1
    say("the tests passed")

    from .common.plot import plot_kernels
    from .common.timing import timer_for
    from .end_to_end.measuring import measure_calls
    from .end_to_end.report import markdown
    from .kernels.floors import ceilings, measure_bandwidth
    from .kernels.measuring import Bench, cases, counted_work, measure_kernels
    from .kernels.primitives import PRIMITIVES, primitive
    from .kernels.report import report
    from .kernels.sizes import SIZES, TOY_SIZES, USUAL, size_from_text

    deadline = started + 60 * chosen.minutes
    timer = timer_for(device)
    bandwidth = measure_bandwidth(timer, device)
    say(f"memory: copy {bandwidth.copy / 1e9:.0f} GB/s, write {bandwidth.write / 1e9:.0f} GB/s")
    if chosen.sizes:
        sizes = tuple(map(size_from_text, chosen.sizes))
    elif chosen.dry_run:
        sizes = TOY_SIZES
    else:
        sizes = (USUAL,) if chosen.quick else SIZES
    wanted = cases([primitive(name) for name in chosen.kernels] if chosen.kernels else PRIMITIVES, sizes)
    bench = Bench(device, timer, this, ceilings(bandwidth, device), seconds=0.3)
    speeds = {"copy_bytes_per_s": bandwidth.copy, "write_bytes_per_s": bandwidth.write}
    machine = monitor.machine(this, tests="passed", **speeds)
    results = Results((machine,))

    def kept(found: Results) -> Results:
        write(read(file).merged(found), file)  # after every part: what was measured survives whatever comes
        return found

    # The whole model comes right after the most important size.
    usual = [case for case in wanted if case[1] == case[0].fitted(sizes[0])]
    rest = [case for case in wanted if case not in usual]
    # Counting compiles; in a dry run one case shows the way: nothing there is as fast as a floor.
    work = counted_work(usual[:1] if chosen.dry_run else usual, device, say)
    for row in measure_kernels(usual, chosen.providers, work, bench, deadline, say):
        results = kept(replace(results, kernels=(*results.kernels, row)))
    if not chosen.no_end_to_end:
        plan = whole_model(device, this, quick=chosen.quick, dry_run=chosen.dry_run)
        calls = measure_calls(plan, deadline, say, lambda rows: kept(replace(results, calls=tuple(rows))))
        results = kept(replace(results, calls=tuple(calls)))
    work = {} if chosen.dry_run else counted_work(rest, device, say)
    for row in measure_kernels(rest, chosen.providers, work, bench, deadline, say):
        results = kept(replace(results, kernels=(*results.kernels, row)))

    picture = chosen.out / f"{file_name(this.device)}.png"
    plot_kernels(results.kernels, bandwidth.best, this, picture)
    print(f"\n{report(results.kernels)}")
    if results.calls:
        print(f"\n{markdown(results.calls, machine)}")
    if chosen.dry_run:
        print("\nDRY RUN: the command is complete; no time above says anything of a GPU")
    print(f"\n{file}\n{picture}")
    broken = [(row.status, row.key) for row in results.kernels if row.status.startswith("failed")]
    broken += [(row.status, row.key) for row in results.calls if row.status.startswith("failed")]
    for status, key in broken:
        print(f"FAILED: {status}: {key}")
    return 1 if broken else 0


def whole_model(device: torch.device, build: Build, *, quick: bool, dry_run: bool) -> Plan:
    """Plan FAMPE beside the bare passes of ResNet-50 with random weights, which cost the same."""
    from .end_to_end.cases import Case, ModelSpec
    from .end_to_end.measuring import Plan

    plan = Plan(
        ModelSpec("resnet50"),
        device,
        build,
        tuple(Case(batch, 224, 2, 20, diversity) for diversity in (False, True) for batch in (32, 1)),
        precisions=("fp32", "bf16"),
        peer_precisions=(),
        compile=("on",),
        methods=("fampe",),
        chunks=(64, 128, 320),
        memory=False,
        plain_bound=True,
    )
    if dry_run:
        toy, cases = ModelSpec("embedded"), (Case(1, 32, 1, 2, False),)
        return replace(plan, model=toy, cases=cases, precisions=("fp32",), compile=("off",), chunks=(2,), repetitions=1)
    return replace(plan, cases=plan.cases[:1], precisions=("fp32",)) if quick else plan


if __name__ == "__main__":
    sys.exit(main())
