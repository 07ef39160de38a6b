"""Sum the loss gradients over the samples, in chunks of one size however large N and B are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..runtime.auto_compile import AutoCompile, Mode, auto_compile, work_of
from ..runtime.cast_weights import cast_weights
from ..runtime.chunking import ChunkSize
from ..runtime.compilation import Compiled
from ..runtime.cuda_graphs import release_captures
from ..runtime.layout import takes_channels_last
from ..runtime.model import Model, input_dtype, memory_format
from ..runtime.model_probe import ModelInfo, forward
from ..runtime.outputs import Reading, cross_entropy, log_odds, softmax_twice
from ..runtime.per_model import cache_of
from .config import PathConfig, Precision
from .graphed_chunks import GraphedChunks
from .placements import padded_size, resize_matrix
from .precision import LOSS_SCALE, autocast, cast_dtype, matrix_precision, settled_precision
from .samplers import Batch, Chunk, Sampler
from .schedule import Schedule
from .targets import Targets


class ModelForm(NamedTuple):
    """The form in which a model takes samples, and the meaning of its output."""

    dtype: torch.dtype | None
    channels_last: bool
    reading: Reading
    writes_input: bool
    resize_back: tuple[Tensor, ...]
    """Matrices (H, frame height) and (W, frame width) for a model that does not take input diversity's larger frames;
    empty for others."""


def form_of(model: Model, probed: ModelInfo, config: PathConfig, frames: Schedule | None = None) -> ModelForm:
    """Find the form in which a model takes samples.

    Args:
        model: the model, in evaluation mode.
        probed: the model's ``ModelInfo``.
        config: configuration of the path.
        frames: the schedule, where samples come in input diversity's larger frames and the model does not take them.

    Raises:
        ValueError: the loss needs mutually exclusive classes, and the model's are independent.
    """
    if config.loss == "softmax_twice" and probed.reading in ("sigmoid", "independent"):
        raise ValueError(
            "loss='softmax_twice' needs mutually exclusive classes, but the model's are independent "
            "(output='sigmoid', or probabilities that do not sum to 1): use loss='cross_entropy'"
        )
    back: tuple[Tensor, ...] = ()
    if frames is not None:
        back = tuple(resize_matrix(padded_size(size), size, frames.device) for size in frames.size)
    channels_last = memory_format(model) == torch.channels_last
    return ModelForm(input_dtype(model), channels_last, probed.reading, probed.writes_input, back)


def turns_channels_last(model: Model, images: Tensor, probed: ModelInfo, config: PathConfig) -> bool:
    """Tell whether a model's passes are given channels-last images and weights that it does not have itself.

    Not in strict float32, which no tensor core computes.
    """
    arithmetic = settled_precision(config.precision, images.device)
    return arithmetic != "fp32" and takes_channels_last(model, images, probed)


def turned(form: ModelForm, channels_last: bool) -> ModelForm:
    """Change the memory format of samples to channels-last, where it is not."""
    return form._replace(channels_last=form.channels_last or channels_last)


def shown_to(model: Model, inputs: Tensor, form: ModelForm, precision: Precision) -> Tensor:
    """Compute the model's output for samples (P, C, H, W), and leave the samples unchanged."""
    shown = inputs.to(form.dtype)
    if form.writes_input:  # a leaf must not be written to
        shown = shown.clone()
    with autocast(precision, inputs.device):
        return forward(model, shown)


def _compiled_of(model: Model, sampler: Sampler, config: PathConfig, graphed: bool) -> Compiled:
    """Look up the loop's compiled body: a function of model, batch, chunk and form that returns the gradients.

    Without CUDA graphs it takes a total before these, and adds the gradients to it. Shared by all methods that explain
    a model, whatever their seeds and numbers of steps, as compiling takes long.
    """
    known: dict[Hashable, Compiled] = cache_of(model, "gradients")
    key = (sampler.kind, config.loss, config.precision, graphed)
    if key not in known:
        # The model is an argument: a function that holds it would keep it alive in the cache.
        def gradients(model: Model, batch: Batch, chunk: Chunk, form: ModelForm) -> Tensor:
            return _chunk_gradients(model, sampler, config, batch, chunk, form)

        def add(total: Tensor, model: Model, batch: Batch, chunk: Chunk, form: ModelForm) -> None:
            ops.accumulate(total, gradients(model, batch, chunk, form), chunk.image_index)

        what = f"the gradients of {type(model).__name__}"
        known[key] = Compiled(gradients, what, mode="reduce-overhead") if graphed else Compiled(add, what)
    return known[key]


class GradientLoop:
    """Samples -> model -> loss gradients -> their sum per image, with or without ``torch.compile``.

    One graph serves every number of steps and samples, every batch and chunk size and every seed: they enter as tensors
    with a dynamic first dimension. Samples with and without input diversity differ in size and have a graph each.
    """

    def __init__(
        self,
        model: Model,
        probed: ModelInfo,
        takes_frames: bool,
        *,
        sampler: Sampler,
        config: PathConfig,
        schedule: Schedule,
        chunks: ChunkSize,
        images: Tensor,
    ) -> None:
        """Store the loop's parts; nothing is compiled before the first call.

        Args:
            model: the model, in evaluation mode.
            probed: the model's ``ModelInfo``.
            takes_frames: whether it takes input diversity's larger frames.
            sampler: makes the samples.
            config: configuration of the path.
            schedule: the order of the samples.
            chunks: samples per model pass.
            images: (B, C, H, W), x_0.

        Raises:
            ValueError: the loss needs mutually exclusive classes, and the model's are independent; or CUDA graphs are
                asked for on a device without them.
        """
        self._model, self._probed, self._sampler, self._config = model, probed, sampler, config
        self._schedule, self._chunks = schedule, chunks
        self._form = self._own_form = form_of(model, probed, config, None if takes_frames else schedule)
        self._turned = turns_channels_last(model, images, probed, config)
        self._function = "gradients", sampler.kind, config.loss, config.precision
        choice = auto_compile(model, self._function, "the gradients", config.compile, schedule.device)
        self._auto: AutoCompile | None = None
        self._graphed: GraphedChunks | None = None
        if not isinstance(choice, str):
            self._auto = choice
            work = work_of(schedule.rows, chunks.size, probed.saved_bytes)
            before, choice = choice.compiled, choice.mode(work, schedule.row_counts(chunks.size))
            if self._auto.compiled and not before:
                release_captures(model, self._function)
        self._take(choice)

    def _take(self, mode: Mode) -> None:
        # A CUDA graph holds the casts, and is recorded again for weights that lie elsewhere in every call.
        self._compile, self._twin, self._form = mode, self._model, self._own_form
        self._body = _compiled_of(self._model, self._sampler, self._config, mode == "graphs")

    @contextmanager
    def weights_at_hand(self) -> Iterator[None]:
        """Make the passes with weights that are cast and turned once, before the first one, and not in each."""
        if self._compile == "graphs":
            yield
            return
        with cast_weights(self._model, cast_dtype(self._config.precision), self._turned) as twin:
            self._twin = twin
            self._form = turned(self._own_form, self._turned)
            self._graphed = self._by_graphs()
            yield

    def _by_graphs(self) -> GraphedChunks | None:
        """Let ``auto`` capture uncompiled chunks; those with input diversity have too many sizes for that."""
        sampler, config, form = self._sampler, self._config, self._form
        if self._auto is None or self._compile != "off" or config.input_diversity:
            return None

        def gradients(model: Model, batch: Batch, chunk: Chunk) -> Tensor:
            return _chunk_gradients(model, sampler, config, batch, chunk, form)

        kind = form._replace(resize_back=())
        cast = cast_dtype(config.precision) if self._turned else None
        return GraphedChunks(self._model, self._probed, self._function, kind, gradients, cast, self._turned)

    def __call__(self, batch: Batch, step: int) -> Tensor:
        """Sum over the samples n of ``dloss(f(s_n), y)/ds_n``, float32 (B, C, H, W), at step ``step``.

        The gradients of an image are added in the order of their sample numbers (those without input diversity first),
        whatever the chunks: the sum depends on batch and chunk sizes only as far as the model's own gradients do.
        """
        return self._chunks.run(partial(self._sum, batch, step), self._schedule.most_rows)

    def _sum(self, batch: Batch, step: int, chunk_size: int) -> Tensor:
        device, (count, channels) = batch.spectrum.device, batch.spectrum.shape[:2]
        if self._compile == "on" and self._auto is not None and self._auto.asks_for_time(device):
            self._measure(self._auto, batch, step, chunk_size)
        plain = self._compile == "off" or not self._body.active
        if not plain and count == 1:  # the compiler would specialise on a size of one
            batch = _twice(batch)
        shape = (len(batch.spectrum), channels, batch.height, batch.width)
        total = torch.zeros(shape, dtype=torch.float32, device=device)
        with matrix_precision(self._config.precision, device):
            for chunk in self._schedule.chunks(step, chunk_size):
                single = len(chunk.samples) == 1 < chunk_size
                self._add(total, batch, chunk, plain or single)
        return total[:count]

    def _measure(self, auto: AutoCompile, batch: Batch, step: int, chunk_size: int) -> None:
        """Let ``auto`` time a chunk, and take CUDA graphs from here on where it chooses them."""
        chunk, device = next(self._schedule.chunks(step, chunk_size)), batch.spectrum.device
        shape = (len(batch.spectrum), batch.spectrum.shape[1], batch.height, batch.width)
        unused = torch.zeros(shape, dtype=torch.float32, device=device)
        with matrix_precision(self._config.precision, device):
            mode = auto.measure(
                lambda: self._body.plain(unused, self._twin, batch, chunk, self._form),
                device,
                self._schedule.row_counts(chunk_size),
            )
        if mode == "graphs":
            self._take(mode)

    def _add(self, total: Tensor, batch: Batch, chunk: Chunk, plain: bool) -> None:
        arguments = self._twin, batch, chunk, self._form
        if plain and self._graphed is not None and (found := self._graphed(batch, chunk)) is not None:
            ops.accumulate(total, found, chunk.image_index)
            return
        body = self._body.plain if plain else self._body
        if not plain:
            _mark_dynamic(batch, chunk)
        if self._compile != "graphs":
            if not plain:
                torch._dynamo.maybe_mark_dynamic(total, 0)
            body(total, *arguments)
            return
        # What a CUDA graph returns is overwritten by its next run, and it may not write to its inputs: the sum is
        # added outside.
        if not plain:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        ops.accumulate(total, body(*arguments), chunk.image_index)


def _chunk_gradients(
    model: Model, sampler: Sampler, config: PathConfig, batch: Batch, chunk: Chunk, form: ModelForm
) -> Tensor:
    """Compute the gradients of the chunk's samples, float32 (P, C, H, W)."""
    samples, image_index = sampler.draw(batch, chunk), chunk.image_index
    classes = batch.targets.classes[image_index]
    layout = torch.channels_last if form.channels_last else torch.contiguous_format

    def loss(inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        output = shown_to(model, inputs, form, config.precision)
        return objective(batch.targets.logits(output, image_index), classes, config, form.reading)

    def gradient(inputs: Tensor) -> Tensor:
        return _gradient(loss, inputs, _has_factor(config))

    if chunk.placements is None:
        return gradient(samples.contiguous(memory_format=layout))
    frame = padded_size(batch.height), padded_size(batch.width)
    if not form.resize_back:
        shown = ops.diversify(samples, chunk.placements, *frame, form.channels_last)
        return ops.diversify_adjoint(gradient(shown), chunk.placements, batch.height, batch.width)
    down, across = form.resize_back
    framed = ops.diversify(samples, chunk.placements, *frame, False)
    own_size = ops.separable_transform(framed, down, across).contiguous(memory_format=layout)
    back = ops.separable_transform(gradient(own_size).contiguous(), down.T, across.T)
    return ops.diversify_adjoint(back, chunk.placements, batch.height, batch.width)


def _gradient(loss: Callable[[Tensor], tuple[Tensor, Tensor | None]], inputs: Tensor, with_factor: bool) -> Tensor:
    """Compute the gradient of a loss's sum, each row times its factor, if it has one."""
    factor: Tensor | None = None
    gradient: Tensor | None
    if torch.compiler.is_compiling():  # the compiler traces these but not the other
        if with_factor:
            gradient, factor = torch.func.grad(loss, has_aux=True)(inputs)
        else:
            gradient = torch.func.grad(lambda shown: loss(shown)[0])(inputs)
    else:
        leaf = inputs.detach().requires_grad_(True)
        with torch.enable_grad():
            value, factor = loss(leaf)
            (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
    if gradient is None:
        raise ValueError("the model's output has no gradient with respect to the image: the model detaches a tensor")
    return gradient if factor is None else gradient * factor[:, None, None, None]


def _has_factor(config: PathConfig) -> bool:
    return config.loss == "cross_entropy" and config.precision in LOSS_SCALE


def objective(
    output: Tensor, classes: Tensor, config: PathConfig, reading: Reading = "softmax"
) -> tuple[Tensor, Tensor | None]:
    """Compute the loss summed over the rows, so that a sample's gradient does not depend on how many share its chunk.

    Args:
        output: (P, classes), the model's.
        classes: (P,) int64, the targets.
        config: its loss and precision.
        reading: how the output is read.

    Returns:
        A sum, (), and a factor, (P,), or None for 1: the loss's gradient is the sum's, with every row multiplied by
        its factor. In float16 a confident model's gradients would underflow, so the factor takes the small part.
    """
    scale = LOSS_SCALE.get(config.precision)
    if config.loss == "softmax_twice":
        value = softmax_twice(output, classes, reading).sum()
        return (value if scale is None else value * scale), None  # a factor of 1 would cost two launches per chunk
    if scale is None or not _has_factor(config):
        return cross_entropy(output, classes, reading).sum(), None
    odds = log_odds(output, classes, reading)
    return -scale * odds.sum(), (-odds.detach()).sigmoid()


def _twice(batch: Batch) -> Batch:
    def two(values: Tensor) -> Tensor:
        return torch.cat([values, values])

    cutoff, places = batch.prepared.cutoff, batch.targets.places
    return batch._replace(
        spectrum=two(batch.spectrum),
        prepared=batch.prepared._replace(
            weights=two(batch.prepared.weights), cutoff=None if cutoff is None else two(cutoff)
        ),
        image_ids=two(batch.image_ids),
        targets=Targets(two(batch.targets.classes), None if places is None else two(places)),
    )


def _mark_dynamic(batch: Batch, chunk: Chunk) -> None:
    """Tell the compiler that the numbers of images and of rows change from call to call."""
    per_image = (batch.spectrum, batch.prepared.weights, batch.prepared.cutoff, batch.image_ids, *batch.targets)
    for tensor in (*per_image, *chunk):
        if tensor is not None and len(tensor) > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
