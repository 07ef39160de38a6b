"""Insertion and deletion: how the target's probability moves while pixels change in the order of a map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fampe_fast.metrics.protocols import GaussianBlur, Protocol, SolidColour, Substrate, mean_colour, resolve_protocol
from fampe_fast.metrics.validation import (
    check_finite,
    check_images,
    check_maps,
    check_range,
    check_targets,
)
from fampe_fast.model_care import Model, check_count, check_model, chunk_size, input_dtype, memory_format
from fampe_fast.ops import pixel_mask
from fampe_fast.progress import progress

__all__ = ["InsertionDeletion", "insertion_deletion"]


@dataclass(frozen=True, eq=False)
class InsertionDeletion:
    """Scores of B maps.

    Attributes:
        insertion: (B,), area under the insertion curve, in [0, 1]; higher is better.
        deletion: (B,), area under the deletion curve, in [0, 1]; lower is better.
        insertion_curves: (B, K + 1), the target's probability after k of K steps, from the substrate to the image.
        deletion_curves: (B, K + 1), from the image to the substrate.
        protocol: the protocol they were measured with, its `step` filled in.
    """

    insertion: Tensor
    deletion: Tensor
    insertion_curves: Tensor
    deletion_curves: Tensor
    protocol: Protocol

    @property
    def faithfulness(self) -> Tensor:
        """(B,), insertion minus deletion, in [-1, 1]; higher is better."""
        return self.insertion - self.deletion


@torch.no_grad()
def insertion_deletion(
    model: Model,
    images: Tensor,
    maps: Tensor,
    targets: int | Sequence[int] | Tensor,
    *,
    protocol: str | Protocol = "rise",
    steps: int | None = None,
    mean: float | Sequence[float] | Tensor | None = None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> InsertionDeletion:
    """Insertion and deletion curves and their areas (Petsiuk et al., RISE, BMVC 2018, arXiv 1806.07421, section 4.1).

    The score is the softmax probability of the target class; the area is the trapezoid rule over K equal intervals of
    [0, 1], whatever the size of the last step, as in the public codes. Images and steps are flattened into one list of
    rows, and the model sees each distinct image once: the two curves share their end points, and a step that changes no
    pixel takes over the score before it.

    Args:
        model: classifier in pixel space, in evaluation mode; gives logits (P, classes).
        images: (B, C, H, W) floating-point in [0, 1], any size, on the model's device.
        maps: (B, C, H, W) or (B, 1, H, W) floating-point, finite; may be signed. Only the order of the values counts.
        targets: the class of all images, or one per image: a list or a tensor (B,) of ints.
        protocol: "rise", "attexplore", "per_pixel", or a `Protocol`. Scores of different ones are not comparable.
        steps: at most this many steps of equal size, in place of the protocol's own step: coarser and faster.
        mean: the colour that the model's normalisation maps to zero, one number or one per channel, for protocols that
            change pixels to it (`rise`); None takes `model.mean`, which every `Classifier` has.
        internal_batch_size: images per model pass; None is 8 on a CPU and 64 elsewhere. The scores do not depend on it,
            but for the rounding inside the model.
        show_progress: draw a progress bar on standard error.

    Returns:
        `InsertionDeletion`, on the images' device, in float32 (float64 for a model that gives float64).

    Raises:
        TypeError: an argument of the wrong type, integer images or maps, floating-point targets.
        ValueError: wrong shapes, NaN or infinity (naming the image), images outside [0, 1], targets of the wrong number
            or out of range, a model in training mode or on another device, an output that is not (P, classes) or not
            finite, an unknown protocol, or a mean colour that is asked for and not known.
    """
    chosen = resolve_protocol(protocol)
    check_images(images)
    check_model(model, images)
    check_maps(maps, images)
    classes = check_targets(targets, images)
    chunk = chunk_size(internal_batch_size, images.device)
    batch, channels, height, width = images.shape
    pixels = height * width
    step = -(-pixels // check_count("steps", steps)) if steps is not None else chosen.step or width
    chosen = replace(chosen, step=step)
    count = -(-pixels // step)
    colour = _mean_of(model, mean, channels) if chosen.needs_mean else None
    if batch == 0:
        area, curve = images.new_zeros(0, dtype=torch.float32), images.new_zeros((0, count + 1), dtype=torch.float32)
        return InsertionDeletion(area, area.clone(), curve, curve.clone(), chosen)

    layout = memory_format(model)
    images = images.detach().contiguous(memory_format=layout)
    first_step = _first_step(maps.detach().to(images.device), chosen.ranking, step)
    rows = _rows(first_step, count)
    insert_from, delete_to = chosen.insertion_substrate, chosen.deletion_substrate
    ins_substrate = _substrate(insert_from, images, colour)
    shared = insert_from == delete_to
    del_substrate = ins_substrate if shared else _substrate(delete_to, images, colour)

    ends = _distinct(insert_from, batch) + (0 if shared else _distinct(delete_to, batch))
    with progress(batch + ends + 2 * len(rows.step), "insertion and deletion", show_progress) as advance:
        scorer = _Scorer(model, classes, chunk, layout, advance)
        whole = scorer(images)
        ins_end = scorer.substrate(ins_substrate, insert_from)
        del_end = ins_end if shared else scorer.substrate(del_substrate, delete_to)
        insertion = _curve(scorer, rows, first_step, ins_substrate, images, ins_end, whole)
        deletion = _curve(scorer, rows, first_step, images, del_substrate, whole, del_end)
    return InsertionDeletion(_area(insertion), _area(deletion), insertion, deletion, chosen)


def _area(curves: Tensor) -> Tensor:
    return (curves[:, 1:] + curves[:, :-1]).mean(1) / 2


def _first_step(maps: Tensor, ranking: str, step: int) -> Tensor:
    """(B, H, W) int32: the step, counted from 1, at which a pixel changes."""
    values = maps.to(torch.promote_types(maps.dtype, torch.float32))
    if ranking == "pixel":
        values = values.sum(1, keepdim=True)
    # + 0.0 turns -0.0 into 0.0: they tie, also for a radix sort.
    order = (values.flatten(2) + 0.0).sort(dim=-1, descending=True, stable=True).indices
    at = torch.arange(order.shape[-1], device=maps.device).div(step, rounding_mode="floor").add(1).to(torch.int32)
    first = torch.empty(order.shape, dtype=torch.int32, device=maps.device)
    return first.scatter_(-1, order, at.expand(order.shape)).amin(1).reshape(len(maps), *maps.shape[-2:])


@dataclass(frozen=True)
class _Rows:
    """The (image, step) pairs the model must see between the end points, and where every step finds its score."""

    image_index: Tensor
    """(P,) int64."""
    step: Tensor
    """(P,) int64."""
    last: Tensor
    """(B, 1) int64, the step at which the last pixel changes."""
    shown: Tensor
    """(B, K + 1) int64, the latest step, up to this one, that changed a pixel."""


def _rows(first_step: Tensor, count: int) -> _Rows:
    flat = first_step.flatten(1).long()
    changes = torch.zeros((len(flat), count + 1), dtype=torch.bool, device=flat.device).scatter_(1, flat, True)
    number = torch.arange(count + 1, device=flat.device)
    last = flat.amax(1, keepdim=True)
    image_index, step = (changes & (number < last)).nonzero(as_tuple=True)
    return _Rows(image_index, step, last, torch.where(changes, number, 0).cummax(1).values)


class _Scorer:
    """The model's probability of each row's target, in chunks."""

    def __init__(
        self,
        model: Model,
        targets: Tensor,
        chunk: int,
        layout: torch.memory_format,
        advance: Callable[[int], None],
    ) -> None:
        self.model, self.targets, self.chunk, self.advance = model, targets, chunk, advance
        self.layout = layout
        self.dtype = input_dtype(model)
        self._in_range = False

    def __call__(self, images: Tensor) -> Tensor:
        """(B,) for whole images."""
        index = torch.arange(len(images), device=images.device)
        return self.rows(index, lambda part: images[part])

    def rows(self, image_index: Tensor, make: Callable[[slice], Tensor]) -> Tensor:
        """(P,) for the rows that `make` gives for a slice of them."""
        scores: list[Tensor] = []
        for begin in range(0, len(image_index), self.chunk):
            part = slice(begin, begin + self.chunk)
            with torch.inference_mode():
                probabilities = self._probabilities(make(part))
                scores.append(probabilities.gather(1, self.targets[image_index[part], None])[:, 0])
            self.advance(len(probabilities))
        found = torch.cat(scores)  # outside inference mode: a tensor that callers may use freely
        finite = found.isfinite()
        if not bool(finite.all()):
            image = int(image_index[~finite][0])
            raise ValueError(f"the model's probability of the target is NaN for image {image}; expected finite logits")
        return found

    def substrate(self, substrate: Tensor, kind: Substrate) -> Tensor:
        """(B,) for a substrate; one of a single colour is the same image for all, and the model sees it once."""
        if not isinstance(kind, SolidColour):
            return self(substrate)
        with torch.inference_mode():
            probabilities = self._probabilities(substrate[:1].contiguous(memory_format=self.layout))
        self.advance(1)
        found = probabilities[0].clone()[self.targets]
        if not bool(found.isfinite().all()):
            raise ValueError("the model's probability of the target is NaN for the image of the substrate's colour")
        return found

    def _probabilities(self, pixels: Tensor) -> Tensor:
        if self.dtype is not None:
            pixels = pixels.to(self.dtype)
        logits = self.model(pixels)
        if not isinstance(logits, Tensor):
            raise TypeError(f"the model must return a tensor of logits (B, classes), got {type(logits).__name__}")
        if logits.ndim != 2 or len(logits) != len(pixels):
            raise ValueError(
                f"the model's output must be (B, classes); for images {tuple(pixels.shape)} it is {tuple(logits.shape)}"
            )
        if not self._in_range:
            check_range(self.targets, logits.shape[1])
            self._in_range = True
        return logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _curve(
    scorer: _Scorer,
    rows: _Rows,
    first_step: Tensor,
    start: Tensor,
    finish: Tensor,
    start_score: Tensor,
    finish_score: Tensor,
) -> Tensor:
    """(B, K + 1) from the scores at the end points and those of the rows between them."""
    scores = start_score.new_zeros(rows.shown.shape)
    scores[:, 0] = start_score
    scores.scatter_(1, rows.last, finish_score[:, None].to(scores.dtype))
    if len(rows.step):
        scores[rows.image_index, rows.step] = scorer.rows(
            rows.image_index,
            lambda part: pixel_mask(start, finish, first_step, rows.image_index[part], rows.step[part]),
        )
    return scores.gather(1, rows.shown)


def _substrate(substrate: Substrate, images: Tensor, mean: Tensor | None) -> Tensor:
    if isinstance(substrate, (SolidColour, GaussianBlur)):
        return substrate(images, mean)
    made = substrate(images)
    if not isinstance(made, Tensor):
        raise TypeError(f"the substrate function must return a tensor, got {type(made).__name__}")
    if made.shape != images.shape:
        raise ValueError(f"the substrate must have the images' shape {tuple(images.shape)}, got {tuple(made.shape)}")
    check_finite(made, "the substrate")
    return made.detach().to(images)


def _distinct(substrate: Substrate, batch: int) -> int:
    return 1 if isinstance(substrate, SolidColour) else batch


def _mean_of(model: Model, mean: float | Sequence[float] | Tensor | None, channels: int) -> Tensor:
    if mean is None:
        mean = getattr(model, "mean", None)
        if not isinstance(mean, (Tensor, int, float, list, tuple)):
            raise ValueError(
                "the protocol changes pixels to the mean colour, and the model has no attribute `mean`: give mean=..., "
                "the colour that its normalisation maps to zero, wrap it with load_classifier, or take another protocol"
            )
    return mean_colour(mean, channels)
