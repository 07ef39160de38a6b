"""Time insertion and deletion beside their bound: as many bare forward passes of the same model, in equal chunks.

The bare passes are forward alone, channels-last, in inference mode, on pixels that are there; they and the metric are
called in turn, every other round in reverse order, so that a drift of the machine meets both, and a share divides times
of the same round. "Compiled" metrics have compiled bare passes for a bound, and the plain ones beside it. The result is
a JSON file and a Markdown table.

No metric is faster than its own passes: where the median share is above 1, or the quartiles lie far apart, something
else ran on the machine, the row is marked as disturbed and its share means nothing. On a loaded machine short calls
(``--steps 16``) in many rounds meet the same load, and long ones do not.

    python -m benchmarks.end_to_end.metric_speed --model mobilenetv2_100 [--batches 8 1] [--passes 33] ... --out results
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fampe_fast.cli.arguments import positive
from fampe_fast.metrics import PROTOCOLS, insertion_deletion
from fampe_fast.runtime.cpu_memory import kept_memory
from fampe_fast.runtime.model import chunk_size
from fampe_fast.runtime.model_probe import probe

from ..common.command import add_model, device_of
from ..common.machine import LoadMonitor, build_of
from ..common.results import table, write
from ..common.timing import Call, Spread, in_turns, seconds_of
from .cases import ModelSpec
from .contestants import load_images

APART = 0.1
"""Quartiles of the share that are further apart than this are no measurement."""


@dataclass(frozen=True)
class MetricRow:
    """One way, measured.

    Attributes:
        batch: images per call.
        passes: of each curve at most, None for every step.
        compile: off, on or graphs.
        images: that the model sees in a call.
        seconds: of a call of the metric, round by round.
        bare_seconds: of as many bare passes, compiled the same way.
        plain_seconds: of as many, uncompiled.
    """

    batch: int
    passes: int | None
    compile: str
    images: int
    seconds: tuple[float, ...]
    bare_seconds: tuple[float, ...]
    plain_seconds: tuple[float, ...]

    @property
    def shares(self) -> list[float]:
        """The bound over the time, round by round."""
        return [a / b for a, b in zip(self.bare_seconds, self.seconds, strict=True)]

    @property
    def share(self) -> float:
        """The median of the rounds."""
        return Spread.of(self.shares).median

    @property
    def quartiles(self) -> tuple[float, float]:
        """Of the shares; the share itself where there is one round."""
        spread = Spread.of(self.shares)
        return spread.lower, spread.upper

    @property
    def disturbed(self) -> bool:
        """Whether the rounds contradict the bound or each other."""
        low, high = self.quartiles
        return self.share > 1 or high - low > APART

    @property
    def share_of_plain(self) -> float:
        """The same with uncompiled bare passes."""
        return statistics.median(a / b for a, b in zip(self.plain_seconds, self.seconds, strict=True))


def shown_images(model: nn.Module, call: Call) -> int:
    """Count the images that pass through the model in a call."""
    counted = 0

    def count(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal counted
        counted += len(given[0])

    handle = model.register_forward_pre_hook(count)
    try:
        call()
    finally:
        handle.remove()
    return counted


def bare_passes(model: Callable[[Tensor], Tensor], pixels: Tensor, images: int) -> Call:
    """Build a call that passes so many images, ``len(pixels)`` at once; freed memory is kept, as the metric does."""

    def call() -> None:
        with torch.inference_mode(), kept_memory(pixels.device):
            for begin in range(0, images, len(pixels)):
                model(pixels[: images - begin])

    return call


def compiled(model: nn.Module, way: str) -> Callable[[Tensor], Tensor]:
    if way == "off":
        return model
    found: Callable[[Tensor], Tensor] = torch.compile(model, mode="reduce-overhead" if way == "graphs" else None)
    return found


def measure_metric(
    model: nn.Module,
    images: Tensor,
    passes: int | None,
    way: str,
    chunk: int,
    protocol: str,
    rounds: int,
    steps: int | None = None,
) -> MetricRow:
    """Warm up, count, and take the rounds."""
    device = images.device
    maps = torch.rand(images.shape[0], 1, *images.shape[2:], generator=torch.Generator().manual_seed(1)).to(device)
    mean = getattr(model, "mean", 0.5)

    def metric(compile: str) -> Call:
        return lambda: insertion_deletion(
            model,
            images,
            maps,
            0,
            protocol=protocol,
            steps=steps,
            passes=passes,
            mean=mean,
            internal_batch_size=chunk,
            compile=compile,  # type: ignore[arg-type]
        )

    probe(model, images)  # a model that is new is asked what its output is like first
    shown = shown_images(model, metric("off"))
    pixels = torch.rand(chunk, *images.shape[1:], generator=torch.Generator().manual_seed(2)).to(device)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    calls = {
        "metric": metric(way),
        "bare": bare_passes(compiled(model, way), pixels, shown),
        "plain": bare_passes(model, pixels, shown),
    }
    if way == "off":
        del calls["plain"]
    for call in calls.values():
        call()
    seconds = in_turns(calls, lambda call: seconds_of(call, device), rounds)
    bare = tuple(seconds["bare"])
    return MetricRow(len(images), passes, way, shown, tuple(seconds["metric"]), bare, tuple(seconds.get("plain", bare)))


def markdown(rows: Sequence[MetricRow]) -> str:
    titles = ["images", "passes per curve", "compile", "images shown", "ms per image shown", "bare"]
    titles += ["share of the bound", "quartiles", "of plain bare passes"]
    cells = []
    for row in rows:
        mine, bare = (1e3 * statistics.median(values) / row.images for values in (row.seconds, row.bare_seconds))
        low, high = row.quartiles
        mark = " (disturbed)" if row.disturbed else ""
        cells.append([str(row.batch), str(row.passes or "all"), row.compile, str(row.images), f"{mine:.2f}"])
        cells[-1] += [f"{bare:.2f}", f"{row.share:.1%}{mark}", f"{low:.1%} to {high:.1%}", f"{row.share_of_plain:.1%}"]
    return "\n".join(table(titles, cells, left=3)) + "\n"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="Insertion and deletion beside as many bare forward passes.")
    add_model(found)
    found.add_argument("--side", type=positive, default=224, help="pixels (%(default)s)")
    found.add_argument("--batches", nargs="+", type=positive, default=[8, 1], help="images per call (%(default)s)")
    found.add_argument(
        "--passes", nargs="+", type=int, default=[0, 33], help="passes per curve, 0 for all (%(default)s)"
    )
    found.add_argument("--steps", type=positive, help="at most this many of the protocol's steps, for short calls")
    found.add_argument("--compile", nargs="+", choices=("off", "on", "graphs"), default=["off"])
    found.add_argument("--protocol", choices=list(PROTOCOLS), default="rise")
    found.add_argument("--chunk", type=positive, help="images per model pass (default: the package's)")
    found.add_argument("--rounds", type=positive, default=5, help="repetitions of every call (%(default)s)")
    found.add_argument("--out", type=Path, required=True, help="folder of metrics.json and metrics.md")
    return found


def main(given: Sequence[str] | None = None) -> None:
    found = parser().parse_args(given)
    device = device_of(found)
    monitor = LoadMonitor()
    model = ModelSpec(found.model, found.weights, found.mean, found.std, dict(found.model_arg)).load(device)
    rows = []
    for batch in found.batches:
        images = load_images(found.images, batch, found.side, model).to(device)
        for way in found.compile:
            for passes in found.passes:
                chunk = chunk_size(found.chunk, device)
                sizes = chunk, found.protocol, found.rounds, found.steps
                rows.append(measure_metric(model, images, passes or None, way, *sizes))
                print(markdown(rows[-1:]).splitlines()[-1], flush=True)
    machine = monitor.machine(build_of(device))
    warning = f"**{machine.warning}**\n\n" if machine.warning else ""
    text = f"{found.model} on {machine}.\n\n{warning}{markdown(rows)}"
    record = {
        "machine": machine,
        "model": found.model,
        "protocol": found.protocol,
        "steps": found.steps,
        "rows": [{**asdict(row), "disturbed": row.disturbed} for row in rows],
    }
    write(record, found.out / "metrics.json", text)
    print(text)


if __name__ == "__main__":
    main()
