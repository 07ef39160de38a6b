"""The sum of the loss gradients over the samples, in chunks of one size however large N and B are."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..compilation import Compiled, resolve_compile
from ..model_care import Model, input_dtype, memory_format
from .config import Loss, PathConfig
from .placements import padded_size
from .precision import LOSS_SCALE, autocast, matrix_precision
from .samplers import Prepared, Sampler, Stream
from .schedule import Chunk, Schedule
from .targets import Targets


class Batch(NamedTuple):
    """What the samples of a step are made from, one entry per image."""

    spectrum: Tensor
    prepared: Prepared
    stream: Stream
    targets: Targets


class ModelInput(NamedTuple):
    """How the model wants its samples."""

    dtype: torch.dtype | None
    channels_last: bool
    height: int
    width: int


class Graphs(NamedTuple):
    """The loop's body for one chunk; arguments are total (of ``add``), model, batch, chunk, step number and form."""

    add: Compiled
    """Adds the chunk's gradients to the total."""
    gradients: Compiled
    """Gives the chunk's gradients."""


# Shared by all methods that explain a model, whatever their seeds and numbers of steps: compiling takes long.
_GRAPHS: WeakKeyDictionary[Any, dict[Hashable, Graphs]] = WeakKeyDictionary()


def _graphs_of(model: Model, sampler: Sampler, config: PathConfig) -> Graphs:
    try:
        known = _GRAPHS.setdefault(model, {})
    except TypeError:  # a callable that cannot be hashed or weakly referred to
        known = {}
    key = (sampler.kind, config.loss, config.precision)
    if key not in known:
        known[key] = _make_graphs(sampler, config, f"the gradients of {type(model).__name__}")
    return known[key]


def _make_graphs(sampler: Sampler, config: PathConfig, what: str) -> Graphs:
    # The model is an argument: a function that holds it would keep it alive in the table above.
    def gradients(model: Model, batch: Batch, chunk: Chunk, step: Tensor, form: ModelInput) -> Tensor:
        return _chunk_gradients(model, sampler, config, batch, chunk, step, form)

    def add(total: Tensor, model: Model, batch: Batch, chunk: Chunk, step: Tensor, form: ModelInput) -> None:
        ops.accumulate(total, gradients(model, batch, chunk, step, form), chunk.rows.image_index)

    # What a CUDA graph returns is overwritten by its next run, and it may not write to its inputs: there the sum is
    # added outside.
    return Graphs(Compiled(add, what), Compiled(gradients, what, mode="reduce-overhead"))


class GradientLoop:
    """Samples -> model -> loss gradients -> their sum per image, plain or through ``torch.compile``.

    One graph serves every number of steps and samples, every batch and chunk size and every seed: they enter as tensors
    with a dynamic first dimension. Samples with and without input diversity differ in size and have a graph each.
    """

    def __init__(self, model: Model, sampler: Sampler, config: PathConfig) -> None:
        """Nothing is compiled before the first call.

        Args:
            model: in evaluation mode.
            sampler: makes the samples.
            config: of the path.
        """
        self.model = model
        self.config = config
        self.sampler = sampler
        self._graphs = _graphs_of(model, sampler, config)

    def __call__(
        self,
        spectrum: Tensor,
        prepared: Prepared,
        targets: Targets,
        stream: Stream,
        schedule: Schedule,
        step: int,
        chunk_size: int,
    ) -> Tensor:
        """Sum over the samples n of ``dloss(f(s_n), y)/ds_n``, float32 (B, C, H, W).

        The gradients of an image are added in the order of their sample numbers (those without input diversity first),
        whatever the chunks: the sum depends on batch and chunk sizes only as far as the model's own gradients do.

        Args:
            spectrum: the sampler's transform of x_t.
            prepared: of x_0.
            targets: of the images.
            stream: names the images' random numbers.
            schedule: the order of the samples.
            step: t.
            chunk_size: samples per model pass.
        """
        form = ModelInput(input_dtype(self.model), memory_format(self.model) == torch.channels_last, *schedule.size)
        plain = self._graphs.add.plain
        run = self._choose(spectrum.device)
        count, number = len(spectrum), schedule.step_number(step)
        batch = Batch(spectrum, prepared, stream, targets)
        if run is not plain and count == 1:  # a compiler takes a size of one for a constant
            batch = _twice(batch)
        total = torch.zeros((len(batch.spectrum), spectrum.shape[1], *schedule.size), device=spectrum.device)
        with matrix_precision(self.config.precision, spectrum.device):
            for chunk in schedule.chunks(step, chunk_size):
                single = len(chunk.rows.samples) == 1 < chunk_size
                (plain if single else run)(total, self.model, batch, chunk, number, form)
        return total[:count]

    def _choose(self, device: torch.device) -> Callable[..., None]:
        wanted, graphs = resolve_compile(self.config.compile, device), self._graphs
        if wanted == "off":
            return graphs.add.plain
        if wanted == "graphs":
            return self._run_graphed if graphs.gradients.active else graphs.add.plain
        return self._run_compiled if graphs.add.active else graphs.add.plain

    def _run_compiled(
        self, total: Tensor, model: Model, batch: Batch, chunk: Chunk, step: Tensor, form: ModelInput
    ) -> None:
        torch._dynamo.maybe_mark_dynamic(total, 0)
        _mark_dynamic(batch, chunk)
        self._graphs.add(total, model, batch, chunk, step, form)

    def _run_graphed(
        self, total: Tensor, model: Model, batch: Batch, chunk: Chunk, step: Tensor, form: ModelInput
    ) -> None:
        _mark_dynamic(batch, chunk)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        ops.accumulate(total, self._graphs.gradients(model, batch, chunk, step, form), chunk.rows.image_index)


def _chunk_gradients(
    model: Model,
    sampler: Sampler,
    config: PathConfig,
    batch: Batch,
    chunk: Chunk,
    step: Tensor,
    form: ModelInput,
) -> Tensor:
    """Gradients of the chunk's samples, float32 (P, C, H, W)."""
    samples = sampler.draw(batch.spectrum, batch.prepared, chunk.rows, batch.stream, step, form.width)
    classes = batch.targets.classes[chunk.rows.image_index]

    def loss(inputs: Tensor) -> Tensor:
        with autocast(config.precision, inputs.device):
            output = model(inputs.to(form.dtype))
        logits = batch.targets.logits(output).float()
        value, scale = objective(logits, classes, config.loss), LOSS_SCALE.get(config.precision)
        return value if scale is None else value * scale  # a factor of 1 would cost two launches per chunk

    if chunk.placements is None:
        layout = torch.channels_last if form.channels_last else torch.contiguous_format
        return _gradient(loss, samples.contiguous(memory_format=layout))
    frame = padded_size(form.height), padded_size(form.width)
    shown = ops.diversify(samples, chunk.placements, *frame, form.channels_last)
    return ops.diversify_adjoint(_gradient(loss, shown), chunk.placements, form.height, form.width)


def _gradient(loss: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    if torch.compiler.is_compiling():  # which traces this one and not the other
        traced: Tensor = torch.func.grad(loss)(inputs)
        return traced
    leaf = inputs.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return gradient


def objective(logits: Tensor, classes: Tensor, loss: Loss) -> Tensor:
    """The loss summed over the rows, so that a sample's gradient does not depend on how many share its chunk."""
    if loss == "softmax_twice":
        logits = logits.softmax(1).softmax(1)
    return F.cross_entropy(logits, classes, reduction="sum")


def _twice(batch: Batch) -> Batch:
    def two(values: Tensor) -> Tensor:
        return torch.cat([values, values])

    cutoff = batch.prepared.cutoff
    return Batch(
        two(batch.spectrum),
        batch.prepared._replace(weights=two(batch.prepared.weights), cutoff=None if cutoff is None else two(cutoff)),
        batch.stream._replace(image_ids=two(batch.stream.image_ids)),
        batch.targets._replace(classes=two(batch.targets.classes)),
    )


def _mark_dynamic(batch: Batch, chunk: Chunk) -> None:
    """Tell the compiler that the numbers of images and of rows change from call to call."""
    per_image = (batch.spectrum, batch.prepared.weights, batch.prepared.cutoff, batch.stream.image_ids)
    per_row = (chunk.rows.image_index, chunk.rows.samples, chunk.placements)
    for tensor in (*per_image, batch.targets.classes, *per_row):
        if tensor is not None and len(tensor) > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
