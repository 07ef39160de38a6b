"""The suite's checks, a module per primitive: plain functions ``check_<what>(ops, device, case)``."""

from . import accumulate, band_mix, dct_mix, diversify, energy_cutoff, gradient_step, pixel_mask, radial_mask

__all__ = [
    "accumulate",
    "band_mix",
    "dct_mix",
    "diversify",
    "energy_cutoff",
    "gradient_step",
    "pixel_mask",
    "radial_mask",
]
