"""The numerical primitives, each dispatched to the backend that fits the tensors' device (see ``backends``).

Signatures and results are those of the functions of the same name in ``fampe_fast.reference``.
"""

from __future__ import annotations

from torch import Tensor

from ..reference.gradient_step import StepResult
from .backends import implementation

__all__ = ["StepResult", "band_mix", "dct_mix", "energy_cutoff", "gradient_step", "pixel_mask", "radial_mask"]


def radial_mask(cutoff: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Gaussian low-pass masks and their complements; see ``fampe_fast.reference.radial_mask.radial_mask``."""
    masks: tuple[Tensor, Tensor] = implementation("radial_mask", cutoff.device)(cutoff, height, width)
    return masks


def energy_cutoff(spectrum: Tensor, width: int, tau: float = 0.9, include_dc: bool = True) -> Tensor:
    """Radius that holds the share tau of the energy; see ``fampe_fast.reference.energy_cutoff.energy_cutoff``."""
    cutoff: Tensor = implementation("energy_cutoff", spectrum.device)(spectrum, width, tau, include_dc)
    return cutoff


def band_mix(
    spectrum: Tensor,
    cutoff: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
    width: int,
    shared_multiplier: bool = False,
) -> Tensor:
    """Perturbed sample spectra; see ``fampe_fast.reference.band_mix.band_mix``."""
    mixed: Tensor = implementation("band_mix", spectrum.device)(
        spectrum, cutoff, weights, image_ids, image_index, samples, seed, step, width, shared_multiplier
    )
    return mixed


def dct_mix(
    spectrum: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
) -> Tensor:
    """AttEXplore's perturbed DCT spectra; see ``fampe_fast.reference.dct_mix.dct_mix``."""
    mixed: Tensor = implementation("dct_mix", spectrum.device)(
        spectrum, weights, image_ids, image_index, samples, seed, step
    )
    return mixed


def gradient_step(
    images: Tensor,
    origin: Tensor,
    gradient_sum: Tensor,
    momentum: Tensor,
    attribution: Tensor,
    kernel: Tensor,
    samples: int,
    decay: float,
    step_size: float,
    eps: float,
    lower: float,
    upper: float,
) -> StepResult:
    """One step along the path; see ``fampe_fast.reference.gradient_step.gradient_step``."""
    result: StepResult = implementation("gradient_step", images.device)(
        images, origin, gradient_sum, momentum, attribution, kernel, samples, decay, step_size, eps, lower, upper
    )
    return result


def pixel_mask(start: Tensor, finish: Tensor, first_step: Tensor, image_index: Tensor, step: Tensor) -> Tensor:
    """Masked batches of insertion and deletion; see ``fampe_fast.reference.pixel_mask.pixel_mask``."""
    masked: Tensor = implementation("pixel_mask", start.device)(start, finish, first_step, image_index, step)
    return masked
