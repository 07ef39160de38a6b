"""Find the radius whose disc holds a given share of an image's spectral energy."""

from __future__ import annotations

import torch
from torch import Tensor

from .radius import multiplicity, shell_index


def shell_energy(spectrum: Tensor, width: int, include_dc: bool = True) -> Tensor:
    """Add up the energy of the shells ``ceil(r) = k``, over all channels.

    Args:
        spectrum: (B, C, H, W//2+1), complex, unscaled ``rfft2`` of the images.
        width: W of the images, which cannot be derived from the half spectrum.
        include_dc: whether the DC coefficient counts.

    Returns:
        (B, K) float64, K - 1 the largest shell of the grid.
    """
    shells = shell_index(spectrum.shape[-2], width, spectrum.device)
    parts = torch.view_as_real(spectrum.resolve_conj()).double()
    power = (parts**2).sum(-1).sum(1) * multiplicity(width, spectrum.device)  # (B, H, W//2+1)
    if not include_dc:
        power[:, 0, 0] = 0
    energy = power.new_zeros(len(power), int(shells.max()) + 1)
    return energy.index_add_(1, shells.flatten(), power.flatten(1))


def energy_cutoff(spectrum: Tensor, width: int, tau: float = 0.9, include_dc: bool = True) -> Tensor:
    """Find ``min{k : sum_{j<=k} E(j) >= tau * sum_j E(j)}``, at least 1.

    Args:
        spectrum: (B, C, H, W//2+1), complex, unscaled ``rfft2`` of the images.
        width: W of the images, pixels.
        tau: share of the energy, in (0, 1].
        include_dc: whether the DC coefficient counts.

    Returns:
        (B,) float32, whole numbers, cycles over the shorter side. Images without energy give 1.
    """
    cumulative = shell_energy(spectrum, width, include_dc).cumsum(1)
    reached = cumulative >= tau * cumulative[:, -1:]
    return reached.long().argmax(1).clamp(min=1).float()
