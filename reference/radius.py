"""Compute the radial frequency of every coefficient of a half spectrum, in cycles over the shorter side."""

from __future__ import annotations

import torch
from torch import Tensor


def signed_frequencies(height: int, width: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """List ``rfft2``'s integer frequencies: rows (H, 1), negative in the second half, and columns (1, W//2+1)."""
    rows = torch.arange(height, device=device)
    rows = torch.where(rows > height // 2, rows - height, rows)
    return rows[:, None], torch.arange(width // 2 + 1, device=device)[None, :]


def squared_radius(
    height: int, width: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Compute ``r^2 = min(H,W)^2 * ((fu/H)^2 + (fv/W)^2)``, shape (H, W//2+1)."""
    rows, columns = signed_frequencies(height, width, device)
    shorter = min(height, width)
    return (rows.to(dtype) * (shorter / height)) ** 2 + (columns.to(dtype) * (shorter / width)) ** 2


def inside_radius(radius: Tensor, height: int, width: int) -> Tensor:
    """Mark the coefficients with ``r <= radius``, bool (B, H, W//2+1), for radii (B,) in cycles over the shorter side.

    ``r^2 * long^2 = (fu*W)^2 + (fv*H)^2`` is a whole number, which float64 holds for sides up to 8192, as it does
    ``radius * long`` of a float32 radius: no coefficient on the radius changes sides by rounding.
    """
    rows, columns = signed_frequencies(height, width, radius.device)
    scaled = (rows.double() * width) ** 2 + (columns.double() * height) ** 2
    return scaled <= (radius.double()[:, None, None] * max(height, width)) ** 2


def shell_index(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Compute ``ceil(r)`` exactly, int64 (H, W//2+1): the smallest k with ``k^2 >= r^2``, decided in integers.

    A rounded square root would lift a coefficient at radius 3 into shell 4.
    """
    rows, columns = signed_frequencies(height, width, device)
    short, long = min(height, width), max(height, width)
    along_short, along_long = (rows, columns) if height <= width else (columns, rows)
    scaled = along_short**2 * long**2 + along_long**2 * short**2  # r^2 * long^2
    shell = (scaled.double().sqrt() / long).ceil().long()
    shell = torch.where(((shell - 1) ** 2 * long**2 >= scaled) & (shell > 0), shell - 1, shell)
    return torch.where(shell**2 * long**2 < scaled, shell + 1, shell)


def multiplicity(width: int, device: torch.device | str = "cpu") -> Tensor:
    """Count how often each half-spectrum column is in the full one, int64 (W//2+1,): 1 at DC and Nyquist, else 2."""
    columns = torch.arange(width // 2 + 1, device=device)
    return torch.where((columns == 0) | (2 * columns == width), 1, 2)
