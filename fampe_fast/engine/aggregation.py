"""The sum of the loss gradients over the samples, in chunks of one size however large N and B are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model_care import Model, input_dtype, memory_format
from .config import Loss, PathConfig
from .diversity import Placement, diversify, draw_placements
from .precision import LOSS_SCALE, model_precision
from .samplers import Rows, Sampler, Stream
from .targets import Targets


@dataclass(frozen=True)
class Chunk:
    """Consecutive (image, sample) pairs, sample by sample; all diversified, or none.

    Attributes:
        image_index: (P,) on the CPU.
        samples: (P,) on the CPU.
        runs: (sample number, first row, last row + 1), one per sample number in the chunk.
    """

    image_index: Tensor
    samples: Tensor
    runs: list[tuple[int, int, int]]


def chunks_of(numbers: list[int], batch: int, size: int) -> Iterator[Chunk]:
    """All pairs of ``numbers`` and images, flattened with the image running fastest, cut every ``size`` rows."""
    total = len(numbers) * batch
    table = torch.tensor(numbers, dtype=torch.long)
    for first in range(0, total, size):
        last = min(first + size, total)
        flat = torch.arange(first, last)
        runs = []
        for position in range(first // batch, (last - 1) // batch + 1):
            start, stop = max(first, position * batch), min(last, (position + 1) * batch)
            runs.append((numbers[position], start - first, stop - first))
        yield Chunk(flat % batch, table[flat // batch], runs)


def sum_gradients(
    model: Model,
    sampler: Sampler,
    images: Tensor,
    prepared: Tensor | None,
    targets: Targets,
    stream: Stream,
    step: int,
    config: PathConfig,
    chunk_size: int,
) -> Tensor:
    """Sum over the samples n of ``dloss(f(s_n), y)/ds_n``, float32 (B, C, H, W).

    The gradients of an image are added in the order of their sample numbers (those without input diversity first),
    whatever the chunks: the sum depends on batch and chunk sizes only as far as the model's own gradients do.
    """
    batch, height, width = len(images), *images.shape[-2:]
    spectrum = sampler.transform(images)
    placements: list[Placement | None] = [None] * config.samples
    if config.input_diversity:
        placements = draw_placements(config.seed, step, config.samples, height, width)
    step_tensor = torch.tensor(step, device=images.device)
    total = torch.zeros_like(images)
    plain = [number for number, placement in enumerate(placements) if placement is None]
    diverse = [number for number, placement in enumerate(placements) if placement is not None]
    for numbers in (plain, diverse):
        for chunk in chunks_of(numbers, batch, chunk_size):
            rows = Rows(chunk.image_index.to(images.device), chunk.samples.to(images.device))
            samples = sampler.draw(spectrum, prepared, rows, stream, step_tensor, width)
            gradient = _loss_gradient(model, samples, chunk, placements, targets, rows, config)
            for _, start, stop in chunk.runs:
                first = int(chunk.image_index[start])
                total[first : first + stop - start] += gradient[start:stop]
    return total


def _loss_gradient(
    model: Model,
    samples: Tensor,
    chunk: Chunk,
    placements: list[Placement | None],
    targets: Targets,
    rows: Rows,
    config: PathConfig,
) -> Tensor:
    samples = samples.detach().contiguous(memory_format=memory_format(model)).requires_grad_(True)
    with torch.enable_grad():
        inputs = _diversified(samples, chunk, placements)
        with model_precision(config.precision, samples.device):
            output = model(inputs.to(input_dtype(model)))
            logits = targets.logits(output).float()
            loss = objective(logits, targets.classes[rows.image_index], config.loss)
            (gradient,) = torch.autograd.grad(loss * LOSS_SCALE.get(config.precision, 1.0), samples)
    return gradient


def _diversified(samples: Tensor, chunk: Chunk, placements: list[Placement | None]) -> Tensor:
    shown = []
    for number, start, stop in chunk.runs:
        placement = placements[number]
        if placement is None:  # then no run of the chunk has one: feed the samples as they are and spare the copy
            return samples
        shown.append(diversify(samples[start:stop], placement))
    return torch.cat(shown)


def objective(logits: Tensor, classes: Tensor, loss: Loss) -> Tensor:
    """The loss summed over the rows, so that a sample's gradient does not depend on how many share its chunk."""
    if loss == "softmax_twice":
        logits = logits.softmax(1).softmax(1)
    return F.cross_entropy(logits, classes, reduction="sum")
