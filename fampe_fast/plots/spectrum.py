"""Draw the amplitude spectrum of an image, with the circle of the energy cut-off."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..checks import check_positive
from .canvas import FAINT, INK, add_text
from .colours import FloatArray, image_to_rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Visible on every grey of the spectrum, and different from the colours of the evidence.
CIRCLE_COLOUR = "#3fd0ff"
# Below this share of the panel's half width a circle is a dot: a magnified centre is drawn into the corner.
_SMALLEST_CIRCLE = 0.12
# Position of the magnified centre, as shares of the panel's width and height.
_CORNER_START, _CORNER_END = 0.58, 0.98


def log_amplitude(image: Tensor) -> FloatArray:
    """Compute the logarithm of an image's amplitude spectrum, with zero frequency in the middle.

    Args:
        image: (C, H, W) floating point in [0, 1].

    Returns:
        (H, W) float64: ``log(1 + a)``, where ``a`` is the root of the energy summed over channels (no scaling forward).
        Row ``i`` is the vertical frequency ``i - H // 2``, column ``j`` the horizontal one ``j - W // 2``.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: another shape, or values that are not finite or not in [0, 1].
    """
    image_to_rgb(image)  # for its checks
    planes = image.detach().cpu().to(torch.float64)
    energy = torch.fft.fft2(planes).abs().square().sum(dim=0)
    spectrum: FloatArray = torch.fft.fftshift(energy.sqrt().log1p()).numpy()
    return spectrum


def draw_spectrum(axes: Axes, image: Tensor, cutoff: float | None = None) -> None:
    """Draw the spectrum of an image in greys, and the cut-off as a circle.

    Both axes are in cycles over the shorter side, the unit of the radius
    ``r = min(H, W) * sqrt((fu / H)^2 + (fv / W)^2)``: the circle has the radius ``cutoff`` for every shape of image,
    and the semi-axes ``cutoff * H / min(H, W)`` and ``cutoff * W / min(H, W)`` in FFT bins. A circle too small to be
    seen is shown again in a magnified corner.

    Args:
        axes: the axes, preferably square.
        image: (C, H, W) floating point in [0, 1].
        cutoff: radius in cycles over the shorter side, above 0; None draws no circle.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: another shape, values not in [0, 1], or a cut-off that is not a positive number.
    """
    from matplotlib.patches import Rectangle

    radius = checked_cutoff(cutoff)
    spectrum = log_amplitude(image)
    height, width = spectrum.shape
    shorter = min(height, width)
    half = shorter / 2
    _paint(axes, spectrum)
    axes.set_xlim(-half, half)
    axes.set_ylim(-half, half)
    if radius is None:
        return
    small = radius < _SMALLEST_CIRCLE * half
    _circle(axes, radius, 0.9 if small else 1.6)
    if small:
        corner = axes.inset_axes(
            (_CORNER_START, _CORNER_START, _CORNER_END - _CORNER_START, _CORNER_END - _CORNER_START)
        )
        corner.set_label("magnified centre")
        # Three radii show the circle and its surroundings; below two and a half bins there is no picture.
        reach = max(3.0 * radius, 2.5)
        _paint(corner, spectrum, reach)
        corner.set_xlim(-reach, reach)
        corner.set_ylim(-reach, reach)
        corner.grid(False)
        corner.set_xticks([])
        corner.set_yticks([])
        for spine in corner.spines.values():
            spine.set(visible=True, color="white", linewidth=1.0)
        _circle(corner, radius, 1.6)
        axes.add_patch(Rectangle((-reach, -reach), 2 * reach, 2 * reach, fill=False, edgecolor="white", linewidth=0.8))
        start, end = (2 * _CORNER_START - 1) * half, (2 * _CORNER_END - 1) * half
        for x, y, to_x, to_y in ((-reach, reach, start, end), (reach, -reach, end, start)):
            axes.plot([x, to_x], [y, to_y], color="white", alpha=0.6, linewidth=0.8, linestyle="-", marker="")


def spectrum_caption(cutoff: float | None) -> str:
    """Write the caption of a spectrum with a cut-off, in cycles over the shorter side, or without."""
    return "spectrum" if cutoff is None else f"spectrum, energy cut-off {float(cutoff):.4g}"


def label_spectrum(figure: Figure, left: float, top: float, width: float, shorter: int) -> None:
    """Write the frequencies at the ends and the unit under a spectrum; takes 0.4 inches of height.

    Args:
        figure: the figure.
        left: left edge of the spectrum in inches, as are ``top`` and ``width``.
        top: position of the spectrum's lower edge.
        width: width of the spectrum.
        shorter: the image's shorter side in pixels.
    """
    line = top + 0.17
    end = f"{shorter / 2:g}"
    add_text(figure, left, line, f"−{end}", size=8.5, colour=FAINT)
    add_text(figure, left + width, line, end, size=8.5, colour=FAINT, align="right")
    add_text(figure, left + width / 2, line, "0", size=8.5, colour=FAINT, align="center")
    add_text(figure, left + width / 2, line + 0.17, "cycles per shorter side", size=8.5, colour=INK, align="center")


def checked_cutoff(cutoff: object) -> float | None:
    """Check the radius of the circle, a number above 0 or a tensor of one element; None without a circle.

    Raises:
        TypeError: not a number.
        ValueError: not finite or not above 0.
    """
    expected = "a cut-off radius above 0"
    if isinstance(cutoff, Tensor) and cutoff.numel() == 1:
        cutoff = cutoff.reshape(())
    return None if cutoff is None else check_positive("cutoff", cutoff, expected=expected, kind=expected)


def _paint(axes: Axes, spectrum: FloatArray, reach: float = math.inf) -> None:
    """Paint the spectrum in greys that fit its values within ``reach``, every bin centred on its frequency."""
    height, width = spectrum.shape
    up, across = min(height, width) / height, min(height, width) / width
    seen = spectrum[np.abs(np.arange(height) - height // 2) * up <= reach]
    seen = seen[:, np.abs(np.arange(width) - width // 2) * across <= reach]
    low, high = np.percentile(seen, [1.0, 99.9])
    # For an even side the highest frequency is drawn at both ends, as the spectrum is periodic: no blank half bin.
    closed = np.pad(spectrum, ((0, 1 - height % 2), (0, 1 - width % 2)), mode="wrap")
    right, top = (width // 2 + 0.5) * across, (height // 2 + 0.5) * up
    axes.imshow(
        closed,
        cmap="gray",
        vmin=float(low),
        # A constant spectrum, of one pixel or a black image, is drawn black.
        vmax=float(max(high, low + 1e-6)),
        origin="lower",
        extent=(-right, right, -top, top),
        interpolation="antialiased",
        aspect="auto",
        resample=True,
    )


def _circle(axes: Axes, radius: float, line: float) -> None:
    from matplotlib.patches import Ellipse

    for colour, thickness, label in (("black", 1.8 * line, "rim"), (CIRCLE_COLOUR, line, "cut-off")):
        axes.add_patch(
            Ellipse((0.0, 0.0), 2 * radius, 2 * radius, fill=False, edgecolor=colour, linewidth=thickness, label=label)
        )
