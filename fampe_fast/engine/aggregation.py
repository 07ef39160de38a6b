"""The sum of the loss gradients over the samples, in chunks of one size however large N and B are."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .. import ops
from ..runtime.compilation import Compiled, resolve_compile
from ..runtime.model import Model, input_dtype, memory_format
from ..runtime.model_probe import Probed, answer
from ..runtime.outputs import Reading, cross_entropy, log_odds, softmax_twice
from .config import PathConfig
from .placements import padded_size, resize_matrix
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


class ModelForm(NamedTuple):
    """How the model wants its samples, and how its output is read."""

    dtype: torch.dtype | None
    channels_last: bool
    height: int
    width: int
    reading: Reading
    writes_input: bool
    resize_back: tuple[Tensor, ...]
    """Matrices (H, frame height) and (W, frame width) for a model that does not take input diversity's larger frames;
    empty for others."""


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
    def gradients(model: Model, batch: Batch, chunk: Chunk, step: Tensor, form: ModelForm) -> Tensor:
        return _chunk_gradients(model, sampler, config, batch, chunk, step, form)

    def add(total: Tensor, model: Model, batch: Batch, chunk: Chunk, step: Tensor, form: ModelForm) -> None:
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
        form: ModelForm,
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
            form: as from ``form``.
        """
        plain = self._graphs.add.plain
        run = self._choose(spectrum.device)
        count, number = len(spectrum), schedule.step_number(step)
        batch = Batch(spectrum, prepared, stream, targets)
        if run is not plain and count == 1:  # a compiler takes a size of one for a constant
            batch = _twice(batch)
        shape = (len(batch.spectrum), spectrum.shape[1], *schedule.size)
        total = torch.zeros(shape, dtype=torch.float32, device=spectrum.device)
        with matrix_precision(self.config.precision, spectrum.device):
            for chunk in schedule.chunks(step, chunk_size):
                single = len(chunk.rows.samples) == 1 < chunk_size
                (plain if single else run)(total, self.model, batch, chunk, number, form)
        return total[:count]

    def form(self, probed: Probed, height: int, width: int, device: torch.device, takes_frames: bool) -> ModelForm:
        """Say how the model wants samples of one size.

        Args:
            probed: what is known of the model.
            height: H of the images, in pixels.
            width: W of the images, in pixels.
            device: where the samples are.
            takes_frames: whether the model takes input diversity's larger frames.

        Raises:
            ValueError: a loss that asks for classes that exclude each other, of a model whose classes do not.
        """
        if self.config.loss == "softmax_twice" and probed.reading in ("sigmoid", "independent"):
            raise ValueError(
                "loss='softmax_twice' is of classes that exclude each other, and the model's are independent "
                "(output='sigmoid', or probabilities that do not sum to 1): use loss='cross_entropy'"
            )
        back: tuple[Tensor, ...] = ()
        if not takes_frames:
            back = tuple(resize_matrix(padded_size(size), size, device) for size in (height, width))
        channels_last = memory_format(self.model) == torch.channels_last
        return ModelForm(
            input_dtype(self.model), channels_last, height, width, probed.reading, probed.writes_input, back
        )

    def _choose(self, device: torch.device) -> Callable[..., None]:
        wanted, graphs = resolve_compile(self.config.compile, device), self._graphs
        if wanted == "off":
            return graphs.add.plain
        if wanted == "graphs":
            return self._run_graphed if graphs.gradients.active else graphs.add.plain
        return self._run_compiled if graphs.add.active else graphs.add.plain

    def _run_compiled(
        self, total: Tensor, model: Model, batch: Batch, chunk: Chunk, step: Tensor, form: ModelForm
    ) -> None:
        torch._dynamo.maybe_mark_dynamic(total, 0)
        _mark_dynamic(batch, chunk)
        self._graphs.add(total, model, batch, chunk, step, form)

    def _run_graphed(
        self, total: Tensor, model: Model, batch: Batch, chunk: Chunk, step: Tensor, form: ModelForm
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
    form: ModelForm,
) -> Tensor:
    """Gradients of the chunk's samples, float32 (P, C, H, W)."""
    samples = sampler.draw(batch.spectrum, batch.prepared, chunk.rows, batch.stream, step, form.width)
    image_index = chunk.rows.image_index
    classes = batch.targets.classes[image_index]
    layout = torch.channels_last if form.channels_last else torch.contiguous_format

    def loss(inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        shown = inputs.to(form.dtype)
        if form.writes_input:  # a leaf must not be written to
            shown = shown.clone()
        with autocast(config.precision, inputs.device):
            output = answer(model, shown)
        return objective(batch.targets.logits(output, image_index), classes, config, form.reading)

    def gradient(inputs: Tensor) -> Tensor:
        return _gradient(loss, inputs, _has_factor(config))

    if chunk.placements is None:
        return gradient(samples.contiguous(memory_format=layout))
    frame = padded_size(form.height), padded_size(form.width)
    if not form.resize_back:
        shown = ops.diversify(samples, chunk.placements, *frame, form.channels_last)
        return ops.diversify_adjoint(gradient(shown), chunk.placements, form.height, form.width)
    down, across = form.resize_back
    framed = ops.diversify(samples, chunk.placements, *frame, False)
    own_size = ops.separable_transform(framed, down, across).contiguous(memory_format=layout)
    back = ops.separable_transform(gradient(own_size).contiguous(), down.T, across.T)
    return ops.diversify_adjoint(back, chunk.placements, form.height, form.width)


def _gradient(loss: Callable[[Tensor], tuple[Tensor, Tensor | None]], inputs: Tensor, with_factor: bool) -> Tensor:
    """The gradient of a loss's sum, each row times its factor, if it has one."""
    factor: Tensor | None = None
    gradient: Tensor | None
    if torch.compiler.is_compiling():  # which traces these and not the other
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
        raise ValueError("the model's output has no gradient with respect to the image: it detaches on the way")
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
        A sum, (), and a factor, (P,), or None for 1: the loss's gradient is the sum's with every row times its factor.
        Where the model runs in float16, whose smallest number a sure model's gradients lie below, the factor holds
        what is small.
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
    return Batch(
        two(batch.spectrum),
        batch.prepared._replace(weights=two(batch.prepared.weights), cutoff=None if cutoff is None else two(cutoff)),
        batch.stream._replace(image_ids=two(batch.stream.image_ids)),
        Targets(two(batch.targets.classes), None if places is None else two(places)),
    )


def _mark_dynamic(batch: Batch, chunk: Chunk) -> None:
    """Tell the compiler that the numbers of images and of rows change from call to call."""
    per_image = (batch.spectrum, batch.prepared.weights, batch.prepared.cutoff, batch.stream.image_ids)
    per_row = (chunk.rows.image_index, chunk.rows.samples, chunk.placements)
    for tensor in (*per_image, *batch.targets, *per_row):
        if tensor is not None and len(tensor) > 1:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
