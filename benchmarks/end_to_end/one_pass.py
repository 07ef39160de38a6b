"""Measure maps of one pass: FAMPE's beside Grad-CAM's of pytorch-grad-cam, called by hand, and the bare pass.

    python -m benchmarks.end_to_end.one_pass [--models mobilenetv2_100 resnet50 ...] [--batches 1 32] ...
    python -m benchmarks.end_to_end.one_pass --dry-run

All in one run, in turns, so that a drift of the machine meets all alike. FAMPE runs the model as ``load_classifier``
gives it, its batch normalisation folded; pytorch-grad-cam the model as published, channels-last, with its own target
layer, the last activation. The bare pass is forward and backward of the folded model without parameter gradients. Peak
memory is measured in a process of its own. The result is a JSON file and a Markdown table. Weights are random, which
costs the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fampe_fast.cli.arguments import positive

from .. import ROOT
from ..common.command import add_device, add_output, device_of, file_name, output_folder
from ..common.machine import LoadMonitor, Machine, build_of
from ..common.results import table, write
from ..common.timing import Call, Spread, in_turns, seconds_of
from .cases import ModelSpec
from .contestants import Models, grad_cam
from .memory import peak_of

MODELS = ("mobilenetv2_100", "resnet50", "vit_tiny_patch16_224")
FAMPE_1, FAMPE_2, GRAD_CAM, BARE = "FAMPE, 1 pass", "FAMPE, 2 passes", "Grad-CAM (pytorch-grad-cam)", "bare pass"
WAYS = (FAMPE_1, FAMPE_2, GRAD_CAM, BARE)


@dataclass(frozen=True)
class Row:
    """A way of making maps of one batch, and what it took.

    Attributes:
        model: name.
        batch: images per call.
        way: one of ``WAYS``.
        ms: per map.
        against: time of Grad-CAM over this one's, by rounds: above 1 this one is faster.
        peak_mb: growth of the process (GPU: of what is allocated) during a call; None where it was not measured.
    """

    model: str
    batch: int
    way: str
    ms: Spread
    against: Spread
    peak_mb: float | None


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="Maps of one pass, beside Grad-CAM's and the bare pass.")
    found.add_argument("--models", nargs="+", default=list(MODELS), help="names for load_classifier, or 'embedded'")
    found.add_argument("--batches", nargs="+", type=positive, default=[1, 32], help="images per call (%(default)s)")
    found.add_argument("--repetitions", type=positive, default=7, help="repetitions of every call (%(default)s)")
    found.add_argument(
        "--precision", default="fp32", choices=("auto", "fp32", "tf32", "bf16", "fp16"), help="FAMPE's precision"
    )
    found.add_argument(
        "--compile", default="auto", choices=("auto", "off", "on", "graphs"), help="FAMPE's compile option"
    )
    found.add_argument(
        "--no-memory", action="store_true", help="do not start a process per row to measure its peak memory"
    )
    found.add_argument("--peak-of", help=argparse.SUPPRESS)  # a request from this command to itself
    add_device(found)
    add_output(found, "the two files")
    return found


def calls_of(
    spec: ModelSpec, batch: int, device: torch.device, options: dict[str, Any], ways: Sequence[str] = WAYS
) -> dict[str, Call]:
    """Build the calls that make a batch's maps."""
    from fampe_fast import FAMPE

    published = spec.load(device)
    side = published.input_size[0]
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    targets = torch.zeros(batch, dtype=torch.long, device=device)
    models = Models.of(published, images[:1], plain=False)
    found: dict[str, Call] = {}
    for way, passes in ((FAMPE_1, 1), (FAMPE_2, 2)):
        if way in ways:
            method = FAMPE(models.ours, passes=passes, **options)
            found[way] = lambda method=method: method.attribute(images, targets, internal_batch_size=batch)  # type: ignore[misc]
    if GRAD_CAM in ways:
        found[GRAD_CAM] = grad_cam(models.best, "fp32", images, targets)
    if BARE in ways:
        found[BARE] = lambda: _bare(models.ours, images)
    return found


def _bare(model: nn.Module, images: Tensor) -> None:
    from fampe_fast.runtime.model import frozen_parameters

    leaf = images.contiguous(memory_format=torch.channels_last).requires_grad_(True)
    with frozen_parameters(model):
        torch.autograd.grad(model(leaf).logsumexp(1).sum(), leaf)


def _peak_here(request: dict[str, Any]) -> float | None:
    """Measure one way's peak memory in this process, in MB."""
    device = torch.device(request["device"])
    torch.set_num_threads(request["threads"])
    (call,) = calls_of(
        ModelSpec(request["model"]), request["batch"], device, request["options"], [request["way"]]
    ).values()
    peak = peak_of(call, device)["peak_bytes"]
    return None if peak is None else peak / 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    command = parser()
    found = command.parse_args(arguments)
    if found.peak_of:
        print(json.dumps(_peak_here(json.loads(found.peak_of))))
        return 0
    out = output_folder(command, found)
    if found.dry_run:
        found.models, found.batches, found.device, found.repetitions = ["embedded"], [1, 2], "cpu", 2
    device = device_of(found)
    monitor, this = LoadMonitor(), build_of(device, dry_run=found.dry_run)
    file = out / f"one_pass_{file_name(this.device)}.json"
    options = {"precision": found.precision, "compile": found.compile}
    rows: list[Row] = []
    for name in found.models:
        for batch in found.batches:
            calls = calls_of(ModelSpec(name), batch, device, options)
            for call in calls.values():  # warm up
                call()
            samples = in_turns(calls, lambda call: seconds_of(call, device), found.repetitions)
            for way, seconds in samples.items():
                ratios = [cam / own for cam, own in zip(samples[GRAD_CAM], seconds, strict=True)]
                ms = Spread.of([1e3 * one / batch for one in seconds])
                peak = None
                if not found.no_memory:
                    peak = _peak_elsewhere(name, batch, way, device, options)
                rows.append(Row(name, batch, way, ms, Spread.of(ratios), peak))
                print(f"{name}, batch {batch}, {way}: {ms} ms a map", flush=True)
                # After every row: what was measured survives whatever comes.
                machine = monitor.machine(this)
                text = markdown(rows, machine)
                write({"machine": machine, "rows": rows}, file, text)
    print(f"\n{text}\n{file}")
    return 0


def _peak_elsewhere(model: str, batch: int, way: str, device: torch.device, options: dict[str, Any]) -> float | None:
    request = {"model": model, "batch": batch, "way": way, "device": str(device), "options": options}
    request["threads"] = torch.get_num_threads()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.end_to_end.one_pass", "--peak-of", json.dumps(request)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    peak: float | None = json.loads(done.stdout.splitlines()[-1])
    return peak


def markdown(rows: Sequence[Row], of: Machine) -> str:
    lines = [f"{of}. Medians and quartiles; faster: Grad-CAM's time over this one's, round by round."]
    if of.warning:
        lines += ["", f"**{of.warning}**"]
    cells = [
        [
            row.model,
            str(row.batch),
            row.way,
            str(row.ms),
            str(row.against),
            "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
        ]
        for row in rows
    ]
    titles = ["model", "batch", "way", "ms per map", "times as fast", "peak MB"]
    return "\n".join([*lines, "", *table(titles, cells)]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
