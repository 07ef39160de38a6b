"""Maps and gradients seen in the frequency domain: low-pass filters, bands, signatures, slopes."""

from .bands import RadialBands, bands_between, equal_energy_bands, equal_width_bands
from .low_pass import filtered_map, low_pass
from .signature import fourier_signature, power_slope
from .two_scale import blurred_map, two_scale_map

__all__ = [
    "RadialBands",
    "bands_between",
    "blurred_map",
    "equal_energy_bands",
    "equal_width_bands",
    "filtered_map",
    "fourier_signature",
    "low_pass",
    "power_slope",
    "two_scale_map",
]
