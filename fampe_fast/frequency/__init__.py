"""Analyse maps and gradients in the frequency domain: low-pass filters, bands, sectors, signatures, slopes."""

from .bands import RadialBands, bands_between, equal_energy_bands, equal_width_bands, octave_bands, three_bands
from .coefficients import centred, product_per_frequency
from .low_pass import filtered_map, low_pass
from .sectors import OrientationSectors, orientation_sectors
from .signature import fourier_signature, power_slope
from .two_scale import blurred_map, two_scale_map

__all__ = [
    "OrientationSectors",
    "RadialBands",
    "bands_between",
    "blurred_map",
    "centred",
    "equal_energy_bands",
    "equal_width_bands",
    "filtered_map",
    "fourier_signature",
    "low_pass",
    "octave_bands",
    "orientation_sectors",
    "power_slope",
    "product_per_frequency",
    "three_bands",
    "two_scale_map",
]
