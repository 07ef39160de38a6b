"""FAMPE on a whole model, against what the bare model's passes allow."""

from __future__ import annotations

import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..common.machine import Build
from ..common.results import EndToEnd
from ..kernels.measuring import NOT_RUN


@dataclass(frozen=True)
class EndToEndPlan:
    """What is run.

    Attributes:
        model: a name of timm; its weights are random, which costs the same.
        side: pixels.
        batches: images per call.
        steps: T.
        samples: N.
        chunks: internal batch sizes, of which the bare model's best counts.
        precisions: of the model.
        diversity: also with the default input diversity, which shows half the samples enlarged.
        repetitions: of each call.
    """

    model: str = "resnet50"
    side: int = 224
    batches: tuple[int, ...] = (32, 1)
    steps: int = 2
    samples: int = 20
    chunks: tuple[int, ...] = (64, 128, 320)
    precisions: tuple[str, ...] = ("fp32", "bf16")
    diversity: tuple[bool, ...] = (False, True)
    repetitions: int = 5


DRY_PLAN = EndToEndPlan(
    "resnet10t", 32, (1,), steps=1, samples=2, chunks=(2,), precisions=("fp32",), diversity=(False,), repetitions=1
)


def measure_end_to_end(
    plan: EndToEndPlan, device: torch.device, build: Build, deadline: float, say: Callable[[str], None]
) -> Iterator[EndToEnd]:
    """One row per precision, diversity and batch."""
    rows = [
        EndToEnd(plan.model, images, plan.side, plan.steps, plan.samples, precision, diversity, build)
        for precision in plan.precisions
        for diversity in plan.diversity
        for images in plan.batches
    ]
    if importlib.util.find_spec("timm") is None:
        yield from (replace(row, status="not run: timm is not installed") for row in rows)
        return
    from fampe_fast import load_classifier

    torch.manual_seed(0)
    model = load_classifier(plan.model, pretrained=False, device=device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    bounds: dict[tuple[str, int], tuple[float, int]] = {}
    for row in rows:
        if time.monotonic() > deadline:
            yield replace(row, status=NOT_RUN)
            continue
        say(f"FAMPE on {row.model}: {row.images} images, {row.precision}, input diversity {row.input_diversity}")
        # A batch of one offers steps * samples rows in all: no larger chunk is open to it.
        chunks = tuple(sorted({min(chunk, row.images * plan.samples) for chunk in plan.chunks}))
        try:
            if (row.precision, row.images) not in bounds:
                bounds[row.precision, row.images] = best_throughput(model, plan, chunks, row.precision, device)
            yield _run(model, plan, row, bounds[row.precision, row.images], device)
        except torch.OutOfMemoryError:
            yield replace(row, status="out of memory")
        except Exception as error:
            yield replace(row, status=f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")


def best_throughput(
    model: Any, plan: EndToEndPlan, chunks: Sequence[int], precision: str, device: torch.device
) -> tuple[float, int]:
    """Forward and backward passes per second of the bare, uncompiled model, gradients for its input alone, and the best
    chunk; tf32 as FAMPE has it in that precision, which is not torch's default.
    """
    from fampe_fast.engine.precision import matrix_precision

    best = (0.0, chunks[0])
    for chunk in chunks:
        pixels = torch.rand(chunk, 3, plan.side, plan.side, device=device)
        pixels = pixels.contiguous(memory_format=torch.channels_last).requires_grad_(True)

        def passes(pixels: torch.Tensor = pixels) -> None:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float16
            with torch.autocast(device.type, dtype, enabled=precision in ("bf16", "fp16")):
                loss = model(pixels).float().logsumexp(1).sum()
            torch.autograd.grad(loss, pixels)

        with matrix_precision(precision, device):  # type: ignore[arg-type]
            seconds = _median_seconds(passes, plan.repetitions, device)[1]
        best = max(best, (chunk / seconds, chunk))
    return best


def _run(model: Any, plan: EndToEndPlan, row: EndToEnd, bound: tuple[float, int], device: torch.device) -> EndToEnd:
    from fampe_fast import FAMPE

    passes_per_s, chunk = bound
    method = FAMPE(
        model,
        steps=plan.steps,
        samples=plan.samples,
        precision=row.precision,
        input_diversity=row.input_diversity,
    )
    images = torch.rand(row.images, 3, plan.side, plan.side, device=device)
    targets = torch.zeros(row.images, dtype=torch.long, device=device)

    def maps() -> None:
        method.attribute(images, targets, internal_batch_size=chunk)

    maps()  # compiles, captures, allocates
    gc.collect()
    peak = None
    if device.type != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    lower, median, upper = _median_seconds(maps, plan.repetitions, device)
    if device.type != "cpu":
        peak = int(torch.cuda.max_memory_allocated(device) - before)
    allowed = passes_per_s / (plan.steps * plan.samples)
    return replace(
        row,
        images_per_s=row.images / median,
        lower=row.images / upper,
        upper=row.images / lower,
        bound_images_per_s=allowed,
        bound_chunk=chunk,
        share=row.images / median / allowed,
        peak_bytes=peak,
    )


def _median_seconds(call: Callable[[], None], repetitions: int, device: torch.device) -> tuple[float, float, float]:
    """First quartile, median, third quartile of wall-clock seconds, after two warm-up calls."""
    times = []
    for repetition in range(repetitions + 2):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        if repetition >= 2:
            times.append(time.perf_counter() - start)
    if len(times) < 2:
        return times[0], times[0], times[0]
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return lower, median, upper


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.cuda.synchronize(device)
