"""Generate textures with known spectra: noise, gratings and checkerboards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .generated import FloatArray, noise_of_amplitude, radial_frequency

UNIT = 32
"""The side of a texture is a multiple of this, so that gratings and checkerboards have whole periods."""

_MEAN = 0.5
_NOISE = 0.15  # standard deviation with which one pixel in a thousand leaves [0, 1] and is clipped
_GRATING = 0.4  # amplitude
_SQUARES = 0.3  # likewise


@dataclass(frozen=True)
class Texture:
    """A kind of texture.

    Attributes:
        name: its name, with its frequency in cycles per side.
        draw: makes one, (size, size) float64 in [0, 1], from a random generator.
        power: (size, size//2+1) float64, the expectation of ``|rfft2|^2`` over textures of this kind, up to a factor.
    """

    name: str
    draw: Callable[[np.random.Generator], FloatArray]
    power: FloatArray


def textures(size: int) -> list[Texture]:
    """List the kinds of textures of a size.

    Args:
        size: the side in pixels, a multiple of 32, at least 64.

    Raises:
        ValueError: another size.
    """
    if size < 2 * UNIT or size % UNIT:
        raise ValueError(
            f"size must be a multiple of {UNIT}, at least {2 * UNIT}, so that periods are whole; got {size}"
        )
    slow, fast = size // 32, size // 8
    return [
        Texture("white noise", lambda rng: rng.uniform(0, 1, (size, size)), _white(size)),
        Texture("noise, power 1/f^2", lambda rng: _sloped_noise(rng, size), _sloped(size)),
        _grating(size, slow, 0),
        _grating(size, 0, fast),
        _grating(size, 3 * slow, 4 * slow),
        _checkerboard(size, slow),
        _checkerboard(size, fast),
    ]


def _with_mean(power: FloatArray, mean: float, variance: float) -> FloatArray:
    """Scale the power of all frequencies but DC to a variance, and set DC's; in units of pixels^4."""
    size = len(power)
    columns = np.full(size // 2 + 1, 2.0)
    columns[[0, -1]] = 1.0  # the columns of DC and Nyquist have no conjugate columns; the side is even
    power = power.copy()
    power[0, 0] = 0.0
    power *= size**4 * variance / (power * columns).sum()
    power[0, 0] = size**4 * mean**2
    return power


def _white(size: int) -> FloatArray:
    return _with_mean(np.ones((size, size // 2 + 1)), _MEAN, 1 / 12)


def _sloped(size: int) -> FloatArray:
    """Compute the mean power of photographs, 1/f^2 (Field, J. Opt. Soc. Am. A 4, 1987)."""
    return _with_mean(np.maximum(radial_frequency(size), 1.0) ** -2.0, _MEAN, _NOISE**2)


def _sloped_noise(rng: np.random.Generator, size: int) -> FloatArray:
    amplitude = 1 / np.maximum(radial_frequency(size), 1.0)
    amplitude[0, 0] = 0.0
    noise = noise_of_amplitude(rng, amplitude)
    texture: FloatArray = np.clip(_MEAN + _NOISE * noise / noise.std(), 0.0, 1.0)
    return texture


def _grating(size: int, rows: int, columns: int) -> Texture:
    """Make a cosine with whole cycles per side along both axes and a random phase, a single frequency beside DC."""
    place = np.arange(size) / size
    angle = 2 * math.pi * (rows * place[:, None] + columns * place[None, :])
    power = np.zeros((size, size // 2 + 1))
    power[[rows, -rows] if not columns else rows, columns] = 1.0
    return Texture(
        f"grating, {math.hypot(rows, columns):g} cycles",
        lambda rng: _MEAN + _GRATING * np.cos(angle + rng.uniform(0, 2 * math.pi)),
        _with_mean(power, _MEAN, _GRATING**2 / 2),
    )


def _checkerboard(size: int, cycles: int) -> Texture:
    """Make squares, ``cycles`` light and as many dark ones along each axis, at a random offset.

    Their spectrum is the product of two square waves': odd multiples of ``cycles`` along both axes, of an amplitude
    that falls as ``1 / sin(pi m / period)``.
    """
    period = size // cycles
    sign = np.where(np.arange(size) % period < period // 2, 1.0, -1.0)
    odd = np.arange(1, period, 2)
    along = np.zeros(size)
    along[odd * cycles] = np.sin(math.pi * odd / period) ** -2.0

    def draw(rng: np.random.Generator) -> FloatArray:
        rows, columns = (np.roll(sign, int(shift)) for shift in rng.integers(0, period, 2))
        return _MEAN + _SQUARES * np.outer(rows, columns)

    power = along[:, None] * along[: size // 2 + 1]
    return Texture(f"checkerboard, {cycles} x {cycles} cycles", draw, _with_mean(power, _MEAN, _SQUARES**2))
