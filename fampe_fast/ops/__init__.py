"""The numerical primitives, each dispatched to the backend that fits the tensors' device (see ``backends``).

Signatures and results are those of the functions of the same name in ``fampe_fast.reference``; behind each stands a
torch custom operator (see ``library``), so they may be traced by ``torch.compile``.
"""

from __future__ import annotations

from torch import Tensor

from ..reference.gradient_step import StepResult
from . import library

__all__ = [
    "StepResult",
    "accumulate",
    "band_mix",
    "dct_mix",
    "diversify",
    "diversify_adjoint",
    "energy_cutoff",
    "gradient_step",
    "irfft2",
    "pixel_mask",
    "radial_mask",
    "separable_transform",
]


def radial_mask(cutoff: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Gaussian low-pass masks and their complements; see ``fampe_fast.reference.radial_mask.radial_mask``."""
    masks: tuple[Tensor, Tensor] = library.radial_mask(cutoff, height, width)
    return masks


def energy_cutoff(spectrum: Tensor, width: int, tau: float = 0.9, include_dc: bool = True) -> Tensor:
    """Radius that holds the share tau of the energy; see ``fampe_fast.reference.energy_cutoff.energy_cutoff``."""
    cutoff: Tensor = library.energy_cutoff(spectrum, width, tau, include_dc)
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
    mixed: Tensor = library.band_mix(
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
    mixed: Tensor = library.dct_mix(spectrum, weights, image_ids, image_index, samples, seed, step)
    return mixed


def diversify(
    samples: Tensor, placements: Tensor, frame_height: int, frame_width: int, channels_last: bool = False
) -> Tensor:
    """Samples resized and put into frames of zeros; see ``fampe_fast.reference.diversify.diversify``."""
    shown: Tensor = library.diversify(samples, placements, frame_height, frame_width, channels_last)
    return shown


def diversify_adjoint(gradient: Tensor, placements: Tensor, height: int, width: int) -> Tensor:
    """The transpose of ``diversify``; see ``fampe_fast.reference.diversify.diversify_adjoint``."""
    back: Tensor = library.diversify_adjoint(gradient, placements, height, width)
    return back


def accumulate(total: Tensor, gradient: Tensor, image_index: Tensor) -> None:
    """Rows added to their images, in place; see ``fampe_fast.reference.accumulate.accumulate``."""
    library.accumulate(total, gradient, image_index)


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
    return StepResult(
        *library.gradient_step(
            images, origin, gradient_sum, momentum, attribution, kernel, samples, decay, step_size, eps, lower, upper
        )
    )


def pixel_mask(start: Tensor, finish: Tensor, first_step: Tensor, image_index: Tensor, step: Tensor) -> Tensor:
    """Masked batches of insertion and deletion; see ``fampe_fast.reference.pixel_mask.pixel_mask``."""
    masked: Tensor = library.pixel_mask(start, finish, first_step, image_index, step)
    return masked


def separable_transform(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``rows @ values @ columns.T`` in full float32, also where the process allows tf32.

    Args:
        values: (..., H, W).
        rows: (H', H).
        columns: (W', W).

    Returns:
        (..., H', W').
    """
    transformed: Tensor = library.separable_transform(values, rows, columns)
    return transformed


def irfft2(spectrum: Tensor, width: int) -> Tensor:
    """``torch.fft.irfft2`` of half spectra (..., H, W//2+1), complex, to images (..., H, W); not differentiable."""
    images: Tensor = library.irfft2(spectrum, width)
    return images
