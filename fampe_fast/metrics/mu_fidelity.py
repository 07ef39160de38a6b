"""Measure mu-fidelity: how well a map's relevance predicts the drop of the score without random parts of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from ..checks import (
    check_choice,
    check_count,
    check_finite,
    check_image_ids,
    check_number,
    check_seed,
)
from ..progress import progress
from ..runtime.compilation import Compile
from ..runtime.cpu_memory import kept_memory
from ..runtime.isolation import isolated
from ..runtime.model import Model, memory_format
from .protocols import GaussianBlur, SolidColour, Substrate, mean_colour
from .random_words import Stream, random_words
from .rank_correlation import rank_correlation
from .scorer import Score, Scorer, prepare

__all__ = ["MuFidelity", "mu_fidelity"]


@dataclass(frozen=True, eq=False)
class MuFidelity:
    """Mu-fidelity of B maps.

    Attributes:
        scores: (B,) in [-1, 1], higher is better; 0 is chance.
        grid_size: cells per side of the grid from which subsets were drawn; None for single pixels.
        subset_percent: the share of the cells in a subset, as a fraction.
        fixed_size: whether all subsets had the same size.
        samples: subsets per image.
        score: the score whose drop was measured.
    """

    scores: Tensor
    grid_size: int | None
    subset_percent: float
    fixed_size: bool
    samples: int
    score: Score


@isolated()
def mu_fidelity(
    model: Model,
    images: Tensor,
    maps: Tensor,
    targets: int | Sequence[int] | Tensor,
    *,
    grid_size: int | None = 9,
    subset_percent: float = 0.2,
    fixed_size: bool = False,
    samples: int = 200,
    baseline: float | Sequence[float] | Substrate = 0.0,
    score: Score = "probability",
    seed: int = 0,
    image_ids: Sequence[int] | Tensor | None = None,
    internal_batch_size: int | None = None,
    compile: Compile = "auto",
    show_progress: bool = False,
) -> MuFidelity:
    """Compute the rank correlation of the relevance of random subsets of an image with the score lost without them.

    ``corr_S(sum of the map over S, f(x) - f(x with S at the baseline))``: Bhatt, Weller, Moura, "Evaluating and
    aggregating feature-based model explanations", IJCAI 2020 (arXiv 2005.00631, definition 3), with the choices of
    Xplique's ``MuFidelity``: Spearman's correlation, subsets of the cells of a grid (spread over the image as nearest
    neighbours), every cell in a subset with probability ``subset_percent``, independently. The paper's subsets have one
    size (``fixed_size``); if the size varies, a map that is positive everywhere gains because its sum tells the size of
    the subset, and a constant map does not score 0. f(x) is the same for all subsets and does not affect the ranks, so
    it is not computed.

    The subsets of an image depend on the seed and the image's id, not on the other images, the chunks or the device;
    relevance is summed in whole numbers, so that equal sums tie exactly. A map or a model with the same value for all
    subsets scores 0. If the model's probability stays at 1 up to rounding, use the logit.

    Args:
        model: classifier in pixel space, in evaluation mode; returns logits (P, classes).
        images: (B, C, H, W) floating-point in [0, 1], on the model's device.
        maps: (B, C, H, W) or (B, 1, H, W) floating-point, finite; summed over the channels, with their signs.
        targets: the class of all images, or one per image: a list or a tensor (B,) of ints.
        grid_size: number of cells per side, at most the shorter side; None uses single pixels.
        subset_percent: share of the cells in a subset, above 0 and below 1 (a fraction, despite Xplique's name).
        fixed_size: every subset has ``round(subset_percent * cells)`` cells, at least 1 and not all.
        samples: number of subsets per image, at least 2, each a pass of the model.
        baseline: value that replaces a subset's pixels, in pixel units: a number, one number per channel, or a
            substrate of ``insertion_deletion`` (``SolidColour()`` is the model's mean colour, ``GaussianBlur()`` the
            blurred image).
        score: score to measure: the target's probability, or its logit.
        seed: seed of the random subsets, 64 bits.
        image_ids: (B,) integers in [0, 2^32 - 2] that name the images in the random stream; default: their position.
        internal_batch_size: images per model pass, and subsets in memory; None is 8 on a CPU and 64 elsewhere. The
            scores do not depend on it, except for rounding inside the model. Halved as in ``insertion_deletion``.
        compile: run the model's forward pass through ``torch.compile``, as in ``insertion_deletion``.
        show_progress: draw a progress bar on standard error.

    Returns:
        `MuFidelity`, the scores on the images' device, in their dtype (float32 at least).

    Raises:
        TypeError: an argument of the wrong type.
        torch.OutOfMemoryError: out of memory; the message says what to change.
        ValueError: wrong shapes, NaN or infinity (naming the image), images outside [0, 1], targets of the wrong number
            or out of range, a model in training mode or on another device, an output that is not (P, classes) or not
            finite, a grid finer than the image, a share outside (0, 1), too few samples, a baseline that does not fit,
            CUDA graphs without a GPU.
    """
    classes, probed, chunks, way = prepare(model, images, maps, targets, internal_batch_size, compile)
    ids = check_image_ids(image_ids, images)
    seed = check_seed(seed)
    batch, _, height, width = images.shape
    grid_size = None if grid_size is None else check_count("grid_size", grid_size)
    cell = _cell_of_pixel(height, width, grid_size).to(images.device)
    cells = int(cell[-1]) + 1
    expected = "a fraction above 0 and below 1"
    share = check_number("subset_percent", subset_percent, 0, 1, open_low=True, expected=expected)
    if share == 1:
        raise ValueError(f"subset_percent must be {expected}, got {subset_percent!r}")
    samples = check_count("samples", samples)
    if samples < 2:
        raise ValueError("samples must be at least 2, got 1: one subset has no correlation")
    score = check_choice("score", score, get_args(Score))
    if fixed_size and cells < 2:
        raise ValueError("subsets of one size need at least 2 cells to choose from, got 1")
    size = min(max(1, round(share * cells)), cells - 1) if fixed_size else None
    substitute = _baseline(baseline, images, model)
    kind = torch.promote_types(images.dtype, torch.float32)
    if batch == 0:
        return MuFidelity(images.new_zeros(0, dtype=kind), grid_size, share, fixed_size, samples, score)

    layout = memory_format(model)
    images = images.detach().contiguous(memory_format=layout)
    relevance_of_cell = _whole_numbers(maps.detach().to(images.device), cell, cells)
    row = torch.arange(batch * samples, device=images.device)
    image, sample = row.div(samples, rounding_mode="floor"), row.remainder(samples)
    relevance: dict[int, Tensor] = {}

    def without_a_subset(part: slice) -> Tensor:
        rows = image[part]
        taken = _subsets(random_words(Stream.SUBSETS, seed, ids[rows], sample[part], cells), share, size)
        relevance[part.start] = torch.where(taken, relevance_of_cell[rows], 0).sum(1)
        gone = taken[:, cell].reshape(-1, 1, height, width)
        return torch.where(gone, substitute[rows], images[rows]).contiguous(memory_format=layout)

    bar = progress(batch * samples, "mu-fidelity", show_progress)
    with bar as advance, kept_memory(images.device), chunks.advice():
        scorer = Scorer(model, classes, chunks=chunks, probed=probed, compile=way, score=score, advance=advance)
        left = scorer(image, without_a_subset)[0].cpu()
    finite = left.isfinite()
    if not bool(finite.all()):
        bad = int(image.cpu()[~finite][0])
        raise ValueError(f"the model's {score} of the target is not finite for image {bad}; expected finite logits")
    lost = -left.reshape(batch, samples)
    scores = rank_correlation(torch.cat([*relevance.values()]).cpu().reshape(batch, samples), lost)
    return MuFidelity(scores.to(kind).to(images.device), grid_size, share, fixed_size, samples, score)


def _cell_of_pixel(height: int, width: int, grid_size: int | None) -> Tensor:
    """Compute each pixel's cell, (H*W,) int64, row by row: nearest neighbour with half-pixel centres."""
    if grid_size is None:
        return torch.arange(height * width, device="cpu")
    if grid_size > min(height, width):
        raise ValueError(
            f"grid_size must be at most {min(height, width)} for images of {height} x {width} pixels, got {grid_size}; "
            "None takes single pixels"
        )
    row = ((2 * torch.arange(height, device="cpu") + 1) * grid_size).div(2 * height, rounding_mode="floor")
    column = ((2 * torch.arange(width, device="cpu") + 1) * grid_size).div(2 * width, rounding_mode="floor")
    return (row[:, None] * grid_size + column).flatten()


def _baseline(baseline: object, images: Tensor, model: Model) -> Tensor:
    """Make the baseline, (B, C, H, W), possibly expanded."""
    kind = baseline
    if not callable(kind):
        kind = SolidColour(tuple(kind) if isinstance(kind, Sequence) and not isinstance(kind, str) else kind)  # type: ignore[arg-type]
    if isinstance(kind, (SolidColour, GaussianBlur)):
        colour = None
        if kind.needs_mean:
            mean = getattr(model, "mean", None)
            if mean is None:
                raise ValueError(
                    "the baseline needs the model's mean colour, but the model has no attribute `mean`: give a "
                    "colour in [0, 1], or wrap the model with load_classifier"
                )
            colour = mean_colour(mean, images.shape[1])
        return kind(images.detach(), colour)
    made: object = kind(images.detach())
    if not isinstance(made, Tensor):
        raise TypeError(f"the baseline function must return a tensor, got {type(made).__name__}")
    if made.shape != images.shape:
        raise ValueError(f"the baseline must have the images' shape {tuple(images.shape)}, got {tuple(made.shape)}")
    check_finite(made, "the baseline")
    return made.detach().to(images)


def _whole_numbers(maps: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Sum the relevance per cell, (B, cells) int64, in units of a power of two far below the map's largest value.

    Sums of whole numbers do not depend on their order, so subsets of equal relevance tie on every device.
    """
    values = maps.to("cpu", torch.float64).sum(1).flatten(1)
    bits = 62 - values.shape[1].bit_length()
    exponents = values.abs().amax(1).frexp().exponent.clamp(min=-900).tolist()
    units = torch.tensor([[2.0 ** (bits - exponent)] for exponent in exponents], dtype=torch.float64, device="cpu")
    whole = (values * units).round().long().to(maps.device)
    return whole.new_zeros(len(maps), cells).index_add_(1, cell, whole)


def _subsets(words: Tensor, share: float, size: int | None) -> Tensor:
    """Draw subsets (P, cells) from random words: each cell with a probability, or the ``size`` smallest words."""
    if size is None:
        return words < round(share * 2**32)
    chosen = words.sort(dim=1, stable=True).indices[:, :size]
    return torch.zeros_like(words, dtype=torch.bool).scatter_(1, chosen, True)
