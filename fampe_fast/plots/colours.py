"""Convert attribution maps to values and colours: one channel, clipped at a percentile, colour-blind safe.

Two colour scales. Maps without negative values: matplotlib's ``inferno`` (perceptually uniform, lightness rising from
black). Signed maps: blue for negative and orange for positive, black at zero, both arms of equal CIELAB lightness at
equal magnitude. Zero is black in both, because a map is added to a darkened image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checks import LARGEST, check_number
from .loading import load_matplotlib

FloatArray = NDArray[np.floating[Any]]

# Opacity of the map over the image is MAX_OPACITY * |value| ** power: zero stays the image itself, the strongest values
# leave a trace of it. Below one the power keeps the middle of the scale visible; signed maps waver around zero all over
# the image, and a power above one holds that texture back.
MAX_OPACITY = 0.92
OPACITY_POWER = 0.8
SIGNED_OPACITY_POWER = 1.3
# The image under the colours: greyscale, darkened so that no photograph is as bright as strong evidence.
BACKDROP_BRIGHTNESS = 0.6
# Negative values within the rounding noise of a sum over channels need no signed scale.
_SIGN_TOLERANCE = 1e-6
# Number of steps of each arm of a colour table.
_STEPS = 255
# The two arms of the signed scale, from black; resampled to the same lightness, up to the same end.
_AGAINST = ((0, 0, 0), (10, 58, 158), (31, 125, 224), (98, 188, 255))
_FOR = ((0, 0, 0), (140, 45, 4), (230, 102, 10), (255, 165, 70))
_END_LIGHTNESS = 73.0
_LUMA = np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)


@dataclass(frozen=True)
class ScaledMap:
    """One map, ready for colouring.

    Attributes:
        values: (H, W) float32, in [0, 1], or in [-1, 1] where ``signed``. Magnitude 1 is ``limit`` and all beyond.
        limit: the magnitude, in the map's own unit, at which the colours end; 0 for a map of zeros.
        signed: whether zero is the middle of the scale instead of its lower end.
    """

    values: FloatArray
    limit: float
    signed: bool

    @property
    def empty(self) -> bool:
        """Whether every value is zero."""
        return self.limit == 0.0


def to_single_channel(attribution: Tensor) -> FloatArray:
    """Sum a map over its channels, with signs.

    Args:
        attribution: (C, H, W) or (H, W), real, any device, finite.

    Returns:
        (H, W) float64.

    Raises:
        TypeError: not a real tensor.
        ValueError: another number of dimensions, no pixels, NaN or infinity.
    """
    if not isinstance(attribution, Tensor):
        raise TypeError(f"expected the attribution map as a torch.Tensor, got {type(attribution).__name__}")
    if attribution.is_complex():
        raise TypeError(f"expected a real attribution map, got {attribution.dtype}")
    if attribution.dim() not in (2, 3) or attribution.numel() == 0:
        raise ValueError(f"expected an attribution map (C, H, W) or (H, W), got shape {tuple(attribution.shape)}")
    # On the CPU before conversion, as not every accelerator has float64.
    array: FloatArray = attribution.detach().cpu().to(torch.float64).numpy()
    if not np.isfinite(array).all():
        raise ValueError("expected a finite attribution map, got NaN or infinite values")
    return array.sum(axis=0) if array.ndim == 3 else array


def scale_map(
    attribution: Tensor, *, percentile: float = 99.0, signed: bool | None = None, smoothing: float = 0.0
) -> ScaledMap:
    """Reduce a map to one channel and scale it to the ends of the colour scale.

    The limit is the given percentile of the magnitudes (linear interpolation between order statistics), the same on
    both sides of zero; where that percentile is zero, as for a map of few non-zero pixels, it is the largest magnitude.
    A map of zeros gives zeros, and a constant one the end of the scale everywhere.

    Args:
        attribution: (C, H, W) or (H, W), real, finite, any device.
        percentile: the share of the magnitudes inside the scale, in (0, 100]; 100 clips nothing.
        signed: None decides by the values; False draws only the positive part; True uses a scale symmetric about zero.
        smoothing: standard deviation in pixels of a Gaussian applied before the scaling; 0 for none.

    Returns:
        The scaled map.

    Raises:
        TypeError: not a real tensor.
        ValueError: an invalid shape, value or parameter.
    """
    percentile = check_number("percentile", percentile, 0, 100, open_low=True)
    smoothing = check_number("smoothing", smoothing, 0, expected="finite and not negative, in pixels", largest=LARGEST)
    values = to_single_channel(attribution)
    if signed is None:
        signed = is_signed(values)
    if not signed:
        values = np.maximum(values, 0.0)
    if smoothing > 0.0:
        values = gaussian_smooth(values, smoothing)
    magnitude = np.abs(values)
    limit = float(np.percentile(magnitude, percentile)) or float(magnitude.max())
    if limit == 0.0:
        return ScaledMap(np.zeros(values.shape, np.float32), 0.0, signed)
    return ScaledMap(np.clip(values / limit, -1.0, 1.0).astype(np.float32), limit, signed)


def is_signed(values: FloatArray) -> bool:
    """Tell whether a map (H, W) has negative values beyond rounding, which need a signed scale."""
    return bool(values.min() < -_SIGN_TOLERANCE * np.abs(values).max())


def gaussian_smooth(values: FloatArray, sigma: float) -> FloatArray:
    """Filter by a Gaussian, cut at three standard deviations, edges repeated.

    Args:
        values: (H, W).
        sigma: standard deviation in pixels, above 0.

    Returns:
        (H, W) float64.
    """
    reach = max(1, math.ceil(3.0 * sigma))
    taps = np.exp(-0.5 * (np.arange(reach + 1) / sigma) ** 2)
    taps /= taps[0] + 2.0 * taps[1:].sum()
    smooth: FloatArray = np.asarray(values, dtype=np.float64)
    for _ in range(2):  # along the rows, then, transposed, along the columns
        width = smooth.shape[1]
        padded = np.pad(smooth, ((0, 0), (reach, reach)), mode="edge")
        smooth = taps[0] * padded[:, reach : reach + width]
        for k in range(1, reach + 1):
            smooth += taps[k] * (padded[:, reach - k : reach - k + width] + padded[:, reach + k : reach + k + width])
        smooth = np.ascontiguousarray(smooth.T)
    return smooth


def default_smoothing(height: int, width: int) -> float:
    """Choose the smoothing of overlays, in pixels: a ninetieth of the shorter side (2.5 px at 224), none below 32 px.

    Gradient maps scatter over single pixels, and regions are easier to see. The unsmoothed map is always shown as well.
    """
    shorter = min(height, width)
    return shorter / 90.0 if shorter >= 32 else 0.0


@lru_cache(maxsize=2)
def colour_table(signed: bool) -> FloatArray:
    """Make the colour table of a scale, from its lower to its upper end.

    Args:
        signed: the diverging table, zero in its middle, or the sequential one, zero at its start.

    Returns:
        (511, 3) or (256, 3) float32 sRGB in [0, 1], read-only.
    """
    if signed:
        table = np.concatenate([_arm(_AGAINST)[:0:-1], _arm(_FOR)])
    else:
        load_matplotlib()
        from matplotlib import colormaps

        table = np.asarray(colormaps["inferno"](np.linspace(0.0, 1.0, _STEPS + 1)))[:, :3]
    table = table.astype(np.float32)
    table.setflags(write=False)  # the cache returns the same array to every caller
    return table


def colours_of(scaled: ScaledMap) -> FloatArray:
    """Colour a map, opaquely.

    Args:
        scaled: the map.

    Returns:
        (H, W, 3) float32 sRGB in [0, 1].
    """
    steps = np.rint(np.abs(scaled.values) * _STEPS).astype(np.intp)
    if scaled.signed:
        steps = _STEPS + np.where(scaled.values < 0, -steps, steps)
    colours: FloatArray = colour_table(scaled.signed)[steps]
    return colours


def opacity_of(scaled: ScaledMap) -> FloatArray:
    """Tell how much of the image a map covers: 0 where the map is zero, rising with the magnitude.

    Args:
        scaled: the map.

    Returns:
        (H, W) float32 in [0, 0.92].
    """
    power = SIGNED_OPACITY_POWER if scaled.signed else OPACITY_POWER
    opacity: FloatArray = (MAX_OPACITY * np.abs(scaled.values) ** power).astype(np.float32)
    return opacity


def image_to_rgb(image: Tensor) -> FloatArray:
    """Convert an image in pixel space to an array for matplotlib.

    Args:
        image: (C, H, W) floating point in [0, 1], any device. Three channels are red, green, blue; of any other
            number the mean is drawn in grey.

    Returns:
        (H, W, 3) float32 in [0, 1].

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: another shape, or values that are not finite or not in [0, 1].
    """
    if not isinstance(image, Tensor):
        raise TypeError(f"expected the image as a torch.Tensor, got {type(image).__name__}")
    if not image.is_floating_point():
        raise TypeError(f"expected a floating-point image with values in [0, 1], got {image.dtype}")
    if image.dim() != 3 or image.numel() == 0:
        raise ValueError(f"expected an image (C, H, W), got shape {tuple(image.shape)}")
    array: FloatArray = image.detach().cpu().to(torch.float32).numpy()
    if not np.isfinite(array).all():
        raise ValueError("expected a finite image, got NaN or infinite values")
    low, high = float(array.min()), float(array.max())
    if low < -1e-3 or high > 1.0 + 1e-3:  # the slack is for interpolated and half-precision images
        raise ValueError(f"expected pixel values in [0, 1], got values from {low:.4g} to {high:.4g}")
    if array.shape[0] != 3:
        array = np.repeat(array.mean(axis=0, keepdims=True), 3, axis=0)
    rgb: FloatArray = np.clip(array.transpose(1, 2, 0), 0.0, 1.0)
    return rgb


def overlay_rgb(rgb: FloatArray, scaled: ScaledMap) -> FloatArray:
    """Draw a map's colours over the darkened greyscale image.

    Args:
        rgb: (H, W, 3) in [0, 1].
        scaled: a map of the same height and width.

    Returns:
        (H, W, 3) float32 in [0, 1]; where the map is zero, the darkened image unchanged.

    Raises:
        ValueError: the sizes differ.
    """
    if rgb.shape[:2] != scaled.values.shape:
        raise ValueError(f"expected a map of the image's size {rgb.shape[:2]}, got {scaled.values.shape}")
    backdrop = (rgb.astype(np.float32) @ _LUMA * BACKDROP_BRIGHTNESS)[..., None]
    opacity = opacity_of(scaled)[..., None]
    # The weights of a luma sum to one only up to rounding.
    mixed: FloatArray = np.clip(backdrop + opacity * (colours_of(scaled) - backdrop), 0.0, 1.0)
    return mixed


def lightness_of(rgb: FloatArray) -> FloatArray:
    """Compute the CIELAB lightness of sRGB colours.

    Args:
        rgb: (..., 3) in [0, 1].

    Returns:
        (...) float64 in [0, 100].
    """
    encoded = np.asarray(rgb, dtype=np.float64)
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    lightness: FloatArray = np.where(
        luminance <= (6 / 29) ** 3, luminance * (29 / 3) ** 3, 116.0 * np.cbrt(luminance) - 16.0
    )
    return lightness


def _arm(anchors: tuple[tuple[int, int, int], ...]) -> FloatArray:
    """Interpolate (256, 3) sRGB through 8-bit anchors, the first one black, in equal steps of lightness."""
    positions = np.linspace(0.0, 1.0, 4096)
    knots = np.linspace(0.0, 1.0, len(anchors))
    curve = np.stack([np.interp(positions, knots, np.array(anchors)[:, i] / 255.0) for i in range(3)], axis=-1)
    wanted = np.linspace(0.0, _END_LIGHTNESS, _STEPS + 1)
    places = np.interp(wanted, lightness_of(curve), positions)
    return np.stack([np.interp(places, positions, curve[:, i]) for i in range(3)], axis=-1)
