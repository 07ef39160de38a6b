"""Measure insertion and deletion: the target's probability while pixels change in the order of a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..checks import check_count, check_finite, check_positive
from ..ops import pixel_mask
from ..progress import UpTo, progress
from ..runtime.compilation import Compile
from ..runtime.cpu_memory import kept_memory
from ..runtime.isolation import isolated
from ..runtime.model import Model, memory_format
from .protocols import GaussianBlur, Protocol, SolidColour, Substrate, mean_colour, resolve_protocol
from .refinement import Refined, refine
from .scorer import Scorer, prepare

__all__ = ["InsertionDeletion", "insertion_deletion"]


@dataclass(frozen=True, eq=False)
class InsertionDeletion:
    """Scores of B maps.

    Attributes:
        insertion: (B,), area under the insertion curve, in [0, 1]; higher is better.
        deletion: (B,), area under the deletion curve, in [0, 1]; lower is better.
        insertion_curves: (B, K + 1), the target's probability after k of K steps, from the substrate to the image.
        deletion_curves: (B, K + 1), from the image to the substrate.
        protocol: the protocol used, with its `step` filled in.
        insertion_measured: (B, K + 1) bool, the steps evaluated by the model; the others are interpolated.
        deletion_measured: (B, K + 1) bool.
        insertion_error: (B,), estimated error of the area due to interpolation; 0 where all steps were measured.
        deletion_error: (B,).
    """

    insertion: Tensor
    deletion: Tensor
    insertion_curves: Tensor
    deletion_curves: Tensor
    protocol: Protocol
    insertion_measured: Tensor
    deletion_measured: Tensor
    insertion_error: Tensor
    deletion_error: Tensor

    @property
    def faithfulness(self) -> Tensor:
        """(B,), insertion minus deletion, in [-1, 1]; higher is better."""
        return self.insertion - self.deletion


@isolated()
def insertion_deletion(
    model: Model,
    images: Tensor,
    maps: Tensor,
    targets: int | Sequence[int] | Tensor,
    *,
    protocol: str | Protocol = "rise",
    steps: int | None = None,
    passes: int | None = None,
    tolerance: float | None = None,
    mean: float | Sequence[float] | Tensor | None = None,
    internal_batch_size: int | None = None,
    compile: Compile = "auto",
    show_progress: bool = False,
) -> InsertionDeletion:
    """Measure insertion and deletion curves and their areas.

    After Petsiuk et al., RISE, BMVC 2018, arXiv 1806.07421, section 4.1.

    The score is the target's probability according to the model's ``output``; the area is the trapezoid rule over K
    equal intervals of [0, 1], whatever the size of the last step, as in the public codes. Images, curves and steps are
    flattened into one list of rows, and the model sees each distinct image once (a new model is first probed with three
    more images): the two curves share their end points, and a step that changes no pixel keeps the previous score.

    ``passes`` and ``tolerance`` measure only the steps where the curve moves most, and interpolate the others linearly
    (``metrics.refinement``): first a coarse grid, then, in rounds for all images together, the middle of the intervals
    with the largest influence on the area, until the budget is used or the estimated error is small enough. Compared
    with all 225 steps (``rise``, MobileNetV2, 16 photographs, 3 methods; by ``benchmarks/quality/metric_passes.py``):

    | errors | passes=17 | passes=33 | passes=65 | tolerance=0.01 | tolerance=0.0025 |
    |---|--:|--:|--:|--:|--:|
    | steps measured per curve | 17 | 33 | 65 | 23.7 | 62.0 |
    | an image's area, root mean square | 0.0050 | 0.0027 | 0.0010 | 0.0038 | 0.0010 |
    | an image's area, largest | 0.019 | 0.014 | 0.004 | 0.018 | 0.004 |
    | a method's mean area, largest | 0.0020 | 0.0009 | 0.0009 | 0.0008 | 0.0008 |
    | mean difference of methods, largest | 0.0034 | 0.0013 | 0.0012 | 0.0003 | 0.0015 |
    | areas covered by the estimate | 96 % | 92 % | 98 % | 95 % | 96 % |

    The estimate is not a bound: a peak between two measured steps can be missed.

    Args:
        model: classifier in pixel space, in evaluation mode; returns (P, classes).
        images: (B, C, H, W) floating-point in [0, 1], any size, on the model's device.
        maps: (B, C, H, W) or (B, 1, H, W) floating-point, finite; may be signed. Only the order of the values counts.
        targets: the class of all images, or one per image: a list or a tensor (B,) of ints.
        protocol: protocol of insertion and deletion: "rise", "attexplore", "per_pixel", "per_element", or a `Protocol`.
            Scores of different protocols are not comparable.
        steps: use at most this many steps of equal size in place of the protocol's step: faster, but a coarser measure
            that is not comparable.
        passes: evaluate at most this many points of each curve, at least 2, chosen where it moves most. The ends are
            among them, and the others are interpolated; from K + 1 on it has no effect.
        tolerance: stop refining a curve when the estimated error of its area is at most this, above 0.
        mean: the colour that the model's normalisation maps to zero, one number or one per channel, for protocols that
            change pixels to it (`rise`); None takes `model.mean`, which every `Classifier` has.
        internal_batch_size: images per model pass; None is 8 on a CPU and 64 elsewhere. The scores do not depend on it,
            except for rounding inside the model. After an out-of-memory error it is halved once, with a warning, and
            the new value is remembered for the model.
        compile: run the model's forward pass through ``torch.compile``: "on", "off", "graphs" (with CUDA graphs), or
            "auto" (on for a GPU, off for a CPU). It changes the last bits of the output; a model that cannot be
            compiled runs uncompiled, with one warning.
        show_progress: draw a progress bar on standard error.

    Returns:
        `InsertionDeletion`, on the images' device, in float32 (float64 for a float64 model).

    Raises:
        TypeError: an argument of the wrong type, integer images or maps, floating-point targets.
        torch.OutOfMemoryError: out of memory; the message says what to change.
        ValueError: wrong shapes, NaN or infinity (naming the image), images outside [0, 1], targets of the wrong number
            or out of range, a model in training mode or on another device, an output that is not (P, classes) or not
            finite, an unknown protocol, a mean colour that is needed and unknown, a budget or tolerance out of
            range, CUDA graphs without a GPU.
    """
    chosen = resolve_protocol(protocol)
    classes, probed, chunks, way = prepare(model, images, maps, targets, internal_batch_size, compile)
    passes, tolerance = _check_budget(passes, tolerance)
    batch, channels, height, width = images.shape
    pixels = height * width
    step = -(-pixels // check_count("steps", steps)) if steps is not None else chosen.step or width
    chosen = replace(chosen, step=step)
    count = -(-pixels // step)
    colour = _mean_of(model, mean, channels) if chosen.needs_mean else None
    if batch == 0:
        curves = images.new_zeros((0, count + 1), dtype=torch.float32)
        return _result(Refined(curves, curves.bool(), curves[:, 0]), chosen)

    images = images.detach().contiguous(memory_format=memory_format(model))
    first_step = _first_step(maps.detach().to(images.device), chosen.ranking, step, channels)
    changes, shown = _shown(torch.cat([first_step, first_step]), count)
    full = tolerance is None and (passes is None or passes > count)
    between = count - 1 if passes is None else min(passes, count + 1) - 2  # the steps of a curve without its ends
    rows = _ends_of(chosen, batch) + 2 * batch * between
    bar = progress(rows, "insertion and deletion", show_progress)
    with bar as advance, kept_memory(images.device), chunks.advice():
        counted = UpTo(rows, advance)
        scorer = Scorer(model, classes, chunks=chunks, probed=probed, compile=way, advance=counted)
        sweep = _Sweep(scorer, images, first_step, shown[:, -1], chosen, colour)
        if full:
            scores = sweep.measure(changes).gather(1, shown)
            found = Refined(scores, torch.ones_like(changes), torch.zeros_like(scores[:, 0]))
        else:
            found = refine(sweep.measure, shown, passes=passes, tolerance=tolerance)
        counted.finish()  # without steps that equal others, or that were not asked for
    return _result(found, chosen)


def _result(found: Refined, protocol: Protocol) -> InsertionDeletion:
    """Split the insertion curves from the deletion curves below them."""
    batch = len(found.curves) // 2
    (insertion, deletion), measured, error = (part.tensor_split([batch]) for part in found)
    return InsertionDeletion(_area(insertion), _area(deletion), insertion, deletion, protocol, *measured, *error)


def _ends_of(protocol: Protocol, batch: int) -> int:
    """Count the distinct images at the ends of a batch's curves."""
    kinds = [protocol.insertion_substrate]
    if protocol.deletion_substrate != protocol.insertion_substrate:
        kinds.append(protocol.deletion_substrate)
    return batch + sum(1 if isinstance(kind, SolidColour) else batch for kind in kinds)


def _area(curves: Tensor) -> Tensor:
    return (curves[:, 1:] + curves[:, :-1]).mean(1) / 2


def _check_budget(passes: object, tolerance: object) -> tuple[int | None, float | None]:
    budget = None if passes is None else check_count("passes", passes)
    if budget is not None and budget < 2:
        raise ValueError("passes must be at least 2, for the ends of a curve, got 1")
    return budget, None if tolerance is None else check_positive("tolerance", tolerance, kind="a number or None")


def _first_step(maps: Tensor, ranking: str, step: int, channels: int) -> Tensor:
    """Compute the step, from 1, at which each pixel changes: (B, H, W) int32; for elements (B, channels, H, W)."""
    # [B, C or 1, H, W]
    values = maps.to(torch.promote_types(maps.dtype, torch.float32))
    if ranking == "pixel":
        values = values.sum(1, keepdim=True)  # [B, 1, H, W]
    elif ranking == "element":
        # One channel that holds all of them, one below the other: [B, 1, channels * H, W]
        step *= channels
        values = values.expand(-1, channels, -1, -1).reshape(len(maps), 1, channels * maps.shape[2], maps.shape[3])
    # [B, 1 or C, elements], positions by falling value; + 0.0 turns -0.0 into 0.0: they tie, also for a radix sort.
    order = (values.flatten(2) + 0.0).sort(dim=-1, descending=True, stable=True).indices
    # [elements], the step at which the element of a rank changes, counted from 1
    at = torch.arange(order.shape[-1], device=maps.device).div(step, rounding_mode="floor").add(1).to(torch.int32)
    # [B, elements], that step by position; of several channels the earliest
    first = torch.empty(order.shape, dtype=torch.int32, device=maps.device)
    first = first.scatter_(-1, order, at.expand(order.shape)).amin(1)
    return first.reshape(len(maps), *([channels] if ranking == "element" else []), *maps.shape[-2:])


def _shown(first_step: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Tell whether each step changes a pixel, (N, K + 1), true at step 0; and the latest such step, int64."""
    flat = first_step.flatten(1).long()  # [N, elements]
    # [N, K + 1]
    changes = torch.zeros((len(flat), count + 1), dtype=torch.bool, device=flat.device).scatter_(1, flat, True)
    changes[:, 0] = True
    number = torch.arange(count + 1, device=flat.device)
    return changes, torch.where(changes, number, 0).cummax(1).values


class _Sweep:
    """The curves of B images measured so far, first insertion and then deletion."""

    def __init__(
        self, scorer: Scorer, images: Tensor, first_step: Tensor, last: Tensor, protocol: Protocol, mean: Tensor | None
    ) -> None:
        """Start without measurements.

        Args:
            scorer: computes the model's scores.
            images: (B, C, H, W), in the model's memory format.
            first_step: (B, H, W) int32, the step at which a pixel changes, or (B, C, H, W) for separate values.
            last: (2 * B,) int64, the step at which the last pixel of a curve changes.
            protocol: defines the substrates.
            mean: the model's mean colour, if the protocol needs it.
        """
        self._scorer, self._last, self._protocol = scorer, last, protocol
        origin = _substrate(protocol.insertion_substrate, images, mean)
        self._same = protocol.insertion_substrate == protocol.deletion_substrate
        target = origin if self._same else _substrate(protocol.deletion_substrate, images, mean)
        layout = torch.contiguous_format if images.is_contiguous() else torch.channels_last
        # [2 * B, C, H, W], insertion first: from the substrate to the image, then from the image to the substrate
        self._start = torch.cat([origin, images]).contiguous(memory_format=layout)
        self._finish = torch.cat([images, target]).contiguous(memory_format=layout)
        # [2 * B, H, W], or [2 * B, C, H, W]
        self._first_step = torch.cat([first_step, first_step])
        self._shape = images.shape[1:]
        self._by_element = first_step.ndim == 4
        self._channels_last = layout == torch.channels_last
        if self._by_element:
            self._start, self._finish = self._as_pixels(self._start), self._as_pixels(self._finish)
            self._first_step = self._as_pixels(self._first_step)[:, 0]
        self._batch = len(images)
        self._scores: Tensor | None = None

    def measure(self, wanted: Tensor) -> Tensor:
        """Score more steps, and return all scores so far, (2 * B, K + 1), with arbitrary values elsewhere.

        Args:
            wanted: (2 * B, K + 1) bool, the steps to measure; the first call always measures the ends.
        """
        number = torch.arange(wanted.shape[1], device=wanted.device)  # [K + 1]
        # [P] each, the rows to score: steps between the ends
        curve, step = (wanted & (number > 0) & (number < self._last[:, None])).nonzero(as_tuple=True)
        if self._scores is None:
            self._scores = self._with_ends(curve, step, wanted.shape)
        elif len(curve):
            self._scores[curve, step] = self._ask(curve, step)[0]
        finite = self._scores.isfinite().all(1)
        if not bool(finite.all()):
            image = int((~finite).nonzero()[0]) % self._batch
            raise ValueError(f"the model's probability of the target is NaN for image {image}; expected finite logits")
        return self._scores

    def _with_ends(self, curve: Tensor, step: Tensor, shape: torch.Size) -> Tensor:
        """Score the distinct images at the ends, and other rows in the same passes."""
        batch, protocol = self._batch, self._protocol
        every = torch.arange(2 * batch, device=curve.device)  # [2 * B]
        insertion, deletion = every[:batch], every[batch:]  # [B] each, numbers of curves
        # Images of a single colour are one image, scored for all targets; they come first.
        ends = [(protocol.insertion_substrate, insertion, torch.zeros_like(insertion))]
        if not self._same:
            ends.append((protocol.deletion_substrate, deletion, self._last[batch:]))
        solid = [(curves[:1], steps[:1]) for kind, curves, steps in ends if isinstance(kind, SolidColour)]
        others = [(curves, steps) for kind, curves, steps in ends if not isinstance(kind, SolidColour)]
        parts = [*solid, (deletion, torch.zeros_like(deletion)), *others, (curve, step)]
        curve, step = (torch.cat(part) for part in zip(*parts, strict=True))
        # [P] and [solid, B]
        own, common = self._ask(curve, step, len(solid))
        if not bool(common.isfinite().all()):
            raise ValueError("the model's probability of the target is NaN for the image of the substrate's colour")
        scores = own.new_zeros(shape)  # [2 * B, K + 1]
        scores[curve, step] = own
        colours = iter(common)
        for kind, curves, steps in ends:
            if isinstance(kind, SolidColour):
                scores[curves, steps] = next(colours)
        scores[insertion, self._last[:batch]] = scores[deletion, 0]
        if self._same:
            scores[deletion, self._last[batch:]] = scores[insertion, 0]
        return scores

    def _ask(self, curve: Tensor, step: Tensor, shared: int = 0) -> tuple[Tensor, Tensor]:
        start, finish, first_step = self._start, self._finish, self._first_step

        def rows(part: slice) -> Tensor:
            masked = pixel_mask(start, finish, first_step, curve[part], step[part])
            return self._as_images(masked) if self._by_element else masked

        return self._scorer(curve.remainder(self._batch), rows, shared)

    def _as_pixels(self, values: Tensor) -> Tensor:
        """View all values of (N, C, H, W) as pixels of one channel, (N, 1, R, S), in memory order."""
        if self._channels_last:
            return values.permute(0, 2, 3, 1).flatten(2)[:, None]
        return values.flatten(1, 2)[:, None]

    def _as_images(self, values: Tensor) -> Tensor:
        """View them as (N, C, H, W) again."""
        channels, height, width = self._shape
        if self._channels_last:
            return values.view(-1, height, width, channels).permute(0, 3, 1, 2)
        return values.view(-1, channels, height, width)


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


def _mean_of(model: Model, mean: float | Sequence[float] | Tensor | None, channels: int) -> Tensor:
    if mean is None:
        mean = getattr(model, "mean", None)
        if not isinstance(mean, (Tensor, int, float, list, tuple)):
            raise ValueError(
                "the protocol changes pixels to the mean colour, but the model has no attribute `mean`: give mean=..., "
                "the colour that its normalisation maps to zero, wrap it with load_classifier, or take another protocol"
            )
    return mean_colour(mean, channels)
