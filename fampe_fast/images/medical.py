"""Generate medical-like images: a slice of a head, as from computed tomography, and a radiograph of a chest."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from .generated import FloatArray, noise_of_amplitude, radial_frequency

# The head of Shepp and Logan (IEEE Trans. Nucl. Sci. 21, 1974) with the contrasts of Toft (thesis, Technical University
# of Denmark, 1996), which make it visible: value, half axes, centre, degrees; the picture spans -1 to 1.
_HEAD: Final = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)
# Of a chest, in the same units: the body's soft outline, two lungs, the heart and the spine.
_BODY: Final = (0.20, 0.95, 1.3, 0.0, 0.1, 0.0)
_ORGANS: Final = (
    (-0.12, 0.30, 0.62, 0.42, 0.05, 6.0),
    (-0.12, 0.28, 0.62, -0.42, 0.05, -6.0),
    (0.08, 0.34, 0.28, 0.12, -0.3, 20.0),
    (0.07, 0.10, 1.2, 0.0, 0.0, 0.0),
)
_CT_NOISE = 0.03
_QUANTA = 900.0  # photons per pixel: about 3 % of noise, or 0.02 of the range
_RIBS = 0.02
_AIR = 0.4


def head_slice(rng: np.random.Generator, size: int) -> FloatArray:
    """Draw the phantom of Shepp and Logan at a random place and angle, with the fine grain of a reconstruction.

    The noise's amplitude rises as the square root of the frequency (Riederer, Pelc and Chesler, Phys. Med. Biol. 23,
    1978: its power follows the reconstruction's ramp).

    Args:
        rng: source of place and noise.
        size: side in pixels.

    Returns:
        float64 (size, size) in [0, 1].
    """
    x, y = _places(rng, size)
    picture = sum((_ellipse(x, y, *numbers, edge=2 / size) for numbers in _HEAD), np.zeros((size, size)))
    noise = noise_of_amplitude(rng, np.sqrt(radial_frequency(size)))
    grainy: FloatArray = np.clip(picture + _CT_NOISE * noise / noise.std(), 0.0, 1.0)
    return grainy


def chest_radiograph(rng: np.random.Generator, size: int) -> FloatArray:
    """Draw lungs, heart, spine and ribs in low contrast with soft edges and photon noise.

    Args:
        rng: source of place and noise.
        size: side in pixels.

    Returns:
        float64 (size, size) in [0, 1], most of it between 0.35 and 0.7.
    """
    x, y = _places(rng, size)
    body = _ellipse(x, y, *_BODY, edge=0.2)
    organs = sum((_ellipse(x, y, *numbers, edge=0.1) for numbers in _ORGANS), np.zeros((size, size)))
    ribs = _RIBS * np.cos(2 * math.pi * (4.5 * (y + 0.6 * np.abs(x) ** 1.5)) + rng.uniform(0, 2 * math.pi))
    picture = np.clip(_AIR + body + organs + ribs * body / _BODY[0], 0.0, 1.0)
    return np.clip(rng.poisson(_QUANTA * picture) / _QUANTA, 0.0, 1.0)


def _places(rng: np.random.Generator, size: int) -> tuple[FloatArray, FloatArray]:
    """Compute pixel coordinates from -1 to 1, shifted, rotated and scaled a little."""
    axis = (np.arange(size) + 0.5) * (2 / size) - 1
    x, y = np.broadcast_to(axis[None, :], (size, size)), np.broadcast_to(-axis[:, None], (size, size))
    angle, scale, (across, up) = rng.uniform(-0.15, 0.15), rng.uniform(1.0, 1.15), rng.uniform(-0.04, 0.04, 2)
    x, y = (x - across) * scale, (y - up) * scale
    return math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x


def _ellipse(
    x: FloatArray,
    y: FloatArray,
    value: float,
    a: float,
    b: float,
    across: float,
    up: float,
    degrees: float,
    *,
    edge: float,
) -> FloatArray:
    """Fill an ellipse with a value, with a border of width ``edge``."""
    angle = math.radians(degrees)
    x, y = x - across, y - up
    radius = np.hypot((math.cos(angle) * x + math.sin(angle) * y) / a, (math.cos(angle) * y - math.sin(angle) * x) / b)
    inside: FloatArray = np.clip(0.5 + (1 - radius) * min(a, b) / edge, 0.0, 1.0)
    return value * inside
