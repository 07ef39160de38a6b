"""Measure whether a map points at the object: relevance mass and the pointing game, with masks of the object."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import LARGEST, check_finite, check_number

__all__ = ["pointing_game", "relevance_mass"]


def relevance_mass(maps: Tensor, masks: Tensor) -> Tensor:
    """Compute the share of the positive relevance inside the mask: relevance mass accuracy.

    Arras, Osman, Samek, CLEVR-XAI, Information Fusion 2022 (arXiv 2003.07258). The map is summed over the channels, and
    negative sums count as zero. A map without any positive sum scores 0.

    Args:
        maps: (B, C, H, W) floating-point, finite; may be signed.
        masks: (B, H, W) or (B, 1, H, W) bool, True on the object; at least one pixel in each.

    Returns:
        (B,) in [0, 1], float32 at least. A uniform positive map scores the mask's share of the image.

    Raises:
        TypeError: maps that are not floating-point tensors, masks that are not bool tensors.
        ValueError: shapes that do not fit, NaN or infinity, an empty mask (naming the image).
    """
    relevance, inside = _checked(maps, masks)
    relevance = relevance.clamp(min=0)
    # Scaled by the largest value first, so that sums neither overflow nor underflow.
    peak = relevance.amax(1, keepdim=True)
    relevance = relevance / torch.where(peak > 0, peak, 1)
    total = relevance.sum(1)
    return (relevance * inside).sum(1) / torch.where(total > 0, total, 1)


def pointing_game(maps: Tensor, masks: Tensor, *, tolerance: float = 0.0) -> Tensor:
    """Test whether the map's maximum lies on the object (Zhang et al., Excitation Backprop, ECCV 2016).

    The map is summed over the channels; the first of several maxima counts, row by row. A constant map is a miss.

    Args:
        maps: (B, C, H, W) floating-point, finite; may be signed.
        masks: (B, H, W) or (B, 1, H, W) bool, True on the object; at least one pixel in each.
        tolerance: largest distance in pixels, at least 0, between the maximum and the mask for a hit (often 15).

    Returns:
        (B,) bool; its mean is the pointing game's accuracy.

    Raises:
        TypeError: maps that are not floating-point tensors, masks that are not bool tensors.
        ValueError: shapes that do not fit, NaN or infinity, an empty mask (naming the image), a negative tolerance.
    """
    tolerance = check_number("tolerance", tolerance, 0, expected="finite and at least 0 pixels", largest=LARGEST)
    relevance, inside = _checked(maps, masks)
    height, width = maps.shape[-2:]
    place = relevance.argmax(1)
    row = torch.arange(height, device=maps.device)[:, None] - place.div(width, rounding_mode="floor")[:, None, None]
    column = torch.arange(width, device=maps.device) - place.remainder(width)[:, None, None]
    near = (row**2 + column**2 <= tolerance**2).flatten(1)
    return (near & inside).any(1) & (relevance.amax(1) > relevance.amin(1))


def _checked(maps: object, masks: object) -> tuple[Tensor, Tensor]:
    """Sum maps over the channels, and flatten them and the masks to (B, H*W)."""
    if not isinstance(maps, Tensor) or not maps.is_floating_point():
        raise TypeError(f"maps must be a floating-point torch.Tensor (B, C, H, W), got {_kind(maps)}")
    if not isinstance(masks, Tensor) or masks.dtype != torch.bool:
        raise TypeError(f"masks must be a torch.Tensor of bool, got {_kind(masks)}")
    if maps.ndim != 4 or 0 in maps.shape[1:]:
        raise ValueError(f"maps must be (B, C, H, W) with C, H and W at least 1, got shape {tuple(maps.shape)}")
    batch, _, height, width = maps.shape
    if masks.shape not in ((batch, height, width), (batch, 1, height, width)):
        raise ValueError(
            f"masks must be {(batch, height, width)} or {(batch, 1, height, width)} for maps {tuple(maps.shape)}, "
            f"got {tuple(masks.shape)}"
        )
    check_finite(maps, "maps")
    inside = masks.flatten(1).to(maps.device)
    empty = ~inside.any(1)
    if bool(empty.any()):
        raise ValueError(
            f"every mask must have at least one pixel, but the mask of image {int(empty.nonzero()[0])} is empty"
        )
    values = maps.detach().to(torch.promote_types(maps.dtype, torch.float32))
    return values.sum(1).flatten(1), inside


def _kind(value: object) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
