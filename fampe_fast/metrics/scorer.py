"""Score many images with the model, in chunks, compiled or not: probabilities or logits."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_classes, check_maps, check_targets, check_unit_images
from ..runtime.chunking import ChunkSize
from ..runtime.compilation import Compile, Compiled, resolve_compile
from ..runtime.model import Model, check_model, input_dtype
from ..runtime.model_probe import ModelInfo, forward, probe
from ..runtime.outputs import probabilities, scores
from ..runtime.per_model import cache_of

__all__ = ["Score", "Scorer", "prepare"]

Score = Literal["probability", "logit"]


def prepare(
    model: Model,
    images: Tensor,
    maps: Tensor,
    targets: int | Sequence[int] | Tensor,
    internal_batch_size: int | None,
    compile: Compile,
) -> tuple[Tensor, ModelInfo, ChunkSize, Literal["off", "on", "graphs"]]:
    """Check the arguments common to all metrics of maps, before any work.

    Args:
        model: the model, in evaluation mode.
        images: (B, C, H, W) in [0, 1], on the model's device.
        maps: (B, C, H, W) or (B, 1, H, W).
        targets: the class of all images, or one per image.
        internal_batch_size: images per model pass; None is 8 on a CPU and 64 elsewhere.
        compile: "on", "off", "graphs" or "auto".

    Returns:
        The images' classes, (B,) int64 on their device, the model's ``ModelInfo``, the images per model pass, and
        ``compile`` with "auto" resolved.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: wrong shapes, values outside their range, a model in training mode or on another device, targets of
            the wrong number, an unknown ``compile``, or graphs on a device without them.
    """
    check_unit_images(images)
    check_model(model, images)
    check_maps(maps, images)
    classes = check_targets(targets, images)
    info = probe(model, images)
    chunks = ChunkSize.for_scores(model, images, internal_batch_size, info)
    if compile not in get_args(Compile):
        raise ValueError(f"compile must be one of {', '.join(get_args(Compile))}; got {compile!r}")
    return classes, info, chunks, resolve_compile(compile, images.device)


def _forward_of(model: Model, score: Score, probed: ModelInfo, graphed: bool) -> Compiled:
    """Look up a model's compiled scores, a function of the model, the pixels and the model's dtype.

    Shared by all calls that score with a model, as compiling takes long. Compiled, there is one graph for every number
    of images from 2, or a CUDA graph for each number.
    """
    known: dict[Hashable, Compiled] = cache_of(model, "scores")
    key = score, probed.reading, probed.writes_input, graphed
    if key not in known:
        # The model is an argument: a function that holds it would keep it alive in the cache.
        def score_all(model: Model, pixels: Tensor, dtype: torch.dtype | None) -> Tensor:
            return _scores(model, pixels, dtype, score, probed)

        options = {"mode": "reduce-overhead"} if graphed else {}
        known[key] = Compiled(score_all, f"the scores of {type(model).__name__}", **options)
    return known[key]


def _scores(model: Model, pixels: Tensor, dtype: torch.dtype | None, score: Score, probed: ModelInfo) -> Tensor:
    """Compute scores (P, classes), float32, or float64 for a float64 model."""
    shown = pixels if dtype is None else pixels.to(dtype)
    output = forward(model, shown.clone() if probed.writes_input else shown)
    if output.ndim != 2:
        raise ValueError(
            f"the model's output must be (B, classes); for images {tuple(pixels.shape)} it is {tuple(output.shape)}"
        )
    return probabilities(output, probed.reading) if score == "probability" else scores(output, probed.reading)


class Scorer:
    """Computes the model's score of each row's target in chunks, without waiting for the device between them."""

    def __init__(
        self,
        model: Model,
        targets: Tensor,
        *,
        chunks: ChunkSize,
        probed: ModelInfo,
        compile: Literal["off", "on", "graphs"],
        score: Score = "probability",
        advance: Callable[[int], None],
    ) -> None:
        """Store the parts; nothing is compiled before the first chunk.

        Args:
            model: the model, in evaluation mode.
            targets: (B,) int64, the images' classes, on their device.
            chunks: images per model pass.
            probed: the model's ``ModelInfo``.
            compile: as returned by ``prepare``.
            score: the kind of score.
            advance: called after each pass with its number of images.

        Raises:
            ValueError: a target out of range.
        """
        if len(probed.shape) == 1:
            check_classes(probed.shape, targets)
        self._model, self._targets, self._chunks, self._advance = model, targets, chunks, advance
        self._dtype = input_dtype(model)
        self._compile = compile
        self._forward = _forward_of(model, score, probed, compile == "graphs")

    def __call__(self, image_index: Tensor, make: Callable[[slice], Tensor], shared: int = 0) -> tuple[Tensor, Tensor]:
        """Score the rows that ``make`` returns for slices, each for its image's target.

        Args:
            image_index: (P,) int64 in [0, B), the image whose target a row is scored for; at least one row.
            make: returns the rows (p, C, H, W) of a slice, in the model's memory format; called again for fewer after
                the pass ran out of memory.
            shared: number of first rows that are scored for all targets.

        Returns:
            (P,) and (shared, B); they may contain NaN, which the caller reports.
        """

        def ask(part: slice) -> Tensor:
            # Not inference_mode: a model may keep its tensors in a buffer or cache, and could then not be trained.
            with torch.no_grad():
                return self._run(make(part))

        own, common = [], []
        for part, found in self._chunks.each(len(image_index), ask):
            own.append(found.gather(1, self._targets[image_index[part], None])[:, 0])
            common.append(found[: max(shared - part.start, 0), self._targets])
            self._advance(len(found))
        return torch.cat(own), torch.cat(common)

    def _run(self, pixels: Tensor) -> Tensor:
        if self._compile == "off" or not self._forward.active:
            plain: Callable[..., Tensor] = self._forward.plain
            return plain(self._model, pixels, self._dtype)
        count, graphed = len(pixels), self._compile == "graphs"
        pixels = _padded(pixels, _size(count, self._chunks.size, graphed))
        if graphed:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        elif len(pixels) > 1:
            torch._dynamo.maybe_mark_dynamic(pixels, 0)
        found: Tensor = self._forward(self._model, pixels, self._dtype)
        return found[:count]


def _size(count: int, chunk: int, graphed: bool) -> int:
    """Choose the number of images of a compiled pass for ``count``, so that few graphs suffice."""
    if graphed:  # a power of two below the chunk: at most twice the remainder's work, and few graphs to capture
        return min(chunk, 1 << (count - 1).bit_length())
    return min(chunk, max(count, 2))  # the compiler would specialise on a size of one


def _padded(pixels: Tensor, count: int) -> Tensor:
    """Repeat the last image, in the same memory format."""
    if count == len(pixels):
        return pixels
    channels_last = pixels.shape[1] > 1 and pixels.is_contiguous(memory_format=torch.channels_last)
    index = torch.arange(count, device=pixels.device).clamp(max=len(pixels) - 1)
    return pixels[index].contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
