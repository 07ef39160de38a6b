"""Maps and gradients seen in the frequency domain: low-pass filters, bands, signatures, slopes."""

from .low_pass import filtered_map, low_pass
from .signature import fourier_signature, power_slope
from .two_scale import two_scale_map

__all__ = ["filtered_map", "fourier_signature", "low_pass", "power_slope", "two_scale_map"]
