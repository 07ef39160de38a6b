"""Compare the bands that an attack disturbs with the bands that models depend on (Wang et al., arXiv 2005.03141)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..engine.targets import Target
from ..frequency.bands import equal_width_bands
from ..runtime.model import Model
from .occluded_frequency import FrequencyOcclusion, OccludedFrequency


@dataclass(frozen=True, eq=False)
class BandDisturbance:
    """Energies per band of perturbations and of their images, summed over channels; on the CPU.

    Attributes:
        edges: (K + 1,) float64, radii in cycles over the shorter side; DC is in the first band.
        perturbation: (B, K) float64, energy of ``perturbed - images``; sums to its squared Euclidean norm.
        image: (B, K) float64, energy of the images, DC's included.
    """

    edges: Tensor
    perturbation: Tensor
    image: Tensor

    def share(self) -> Tensor:
        """Compute the bands' shares of the perturbation's energy, (B, K); zeros for a perturbation of zero."""
        total = self.perturbation.sum(1, keepdim=True)
        found: Tensor = self.perturbation / total.clamp(min=1e-300)
        return found


def disturbance(images: Tensor, perturbed: Tensor, *, bands: int = 16) -> BandDisturbance:
    """Measure the distribution of an attack's energy over the spectrum.

    Args:
        images: (B, C, H, W) real floating-point, the originals.
        perturbed: (B, C, H, W), the attacked ones.
        bands: number of bands of equal width, K, from DC to the corner of the spectrum.

    Raises:
        TypeError: not real floating-point tensors.
        ValueError: shapes that differ or are not (B, C, H, W), or too many bands for the size.
    """
    if images.shape != perturbed.shape or images.ndim != 4:
        raise ValueError(
            f"images and perturbed must be (B, C, H, W) of one shape, got {tuple(images.shape)} and "
            f"{tuple(perturbed.shape)}"
        )
    height, width = images.shape[-2:]
    rings = equal_width_bands(height, width, bands, include_dc=True)
    return BandDisturbance(rings.edges[0], rings.energy(perturbed - images), rings.energy(images))


def compare_reliance(
    models: Mapping[str, Model],
    images: Tensor,
    target: Target = None,
    *,
    internal_batch_size: int | None = None,
    **options: Any,
) -> dict[str, FrequencyOcclusion]:
    """Compare the occluded-frequency curves of several models on the same images.

    Args:
        models: by name, in evaluation mode.
        images: (B, C, H, W), as ``OccludedFrequency`` takes them.
        target: the scored class; None is each model's prediction, which may differ between models.
        internal_batch_size: images per model pass.
        **options: options of ``OccludedFrequency``: bands, spacing, score...

    Returns:
        The curves by model, with the images in the same order, so that differences are paired.

    Raises:
        TypeError, ValueError: as ``OccludedFrequency``; ValueError also for no models.
    """
    if not models:
        raise ValueError("expected at least one model, got none")
    return {
        name: OccludedFrequency(model, **options)(images, target, internal_batch_size=internal_batch_size)
        for name, model in models.items()
    }
