"""Draw the explanation of one image: the image, the evidence over it, and its frequencies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .canvas import FAINT, add_axes, add_scale, add_text, draw_outline, new_figure, show_rgb
from .colours import FloatArray, ScaledMap, colours_of, default_smoothing, image_to_rgb, overlay_rgb, scale_map
from .spectrum import checked_cutoff, draw_spectrum, label_spectrum, spectrum_caption

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Inches.
_MARGIN = 0.35
_GAP = 0.28
_PANEL = 3.0
_NARROWEST_COLUMN = 2.0
_THINNEST_PICTURE = 0.1
_CAPTION = 0.24
_FOOT = 0.82


def overlay(
    image: Tensor,
    attribution: Tensor,
    *,
    class_name: str | None = None,
    probability: float | None = None,
    title: str | None = None,
    note: str | None = None,
    mask: Tensor | None = None,
    percentile: float = 99.0,
    signed: bool | None = None,
    smoothing: float | None = None,
    dpi: int = 120,
) -> Figure:
    """Draw the evidence in colours over the darkened grey image, with a colour scale.

    This is the third of the four panels of ``explanation_figure``; arguments, checks and errors are the same.

    Returns:
        The figure, for ``save_figure``.
    """
    rgb, _, smooth, outline = _prepare(image, attribution, mask, percentile, signed, smoothing)
    width, height = _fit(rgb.shape[1], rgb.shape[0], 4.0)
    column = max(width, 3.0)
    head = _head_height(title or class_name, probability, note)
    figure = new_figure(column + 2 * _MARGIN, head + height + 0.12 + _FOOT, dpi)
    _write_head(figure, title or class_name, probability, note)
    axes = add_axes(figure, _MARGIN, head, width, height)
    axes.set_label("overlay")
    _show_map(figure, axes, overlay_rgb(rgb, smooth), smooth, outline)
    add_scale(figure, _MARGIN, head + height + 0.14, column, signed=smooth.signed, what=class_name or "the class")
    return figure


def explanation_figure(
    image: Tensor,
    attribution: Tensor,
    *,
    class_name: str | None = None,
    probability: float | None = None,
    title: str | None = None,
    note: str | None = None,
    cutoff: float | None = None,
    mask: Tensor | None = None,
    percentile: float = 99.0,
    signed: bool | None = None,
    smoothing: float | None = None,
    dpi: int = 120,
) -> Figure:
    """Draw four panels: the image, the map, the overlay, and the spectrum with the energy cut-off as a circle.

    Args:
        image: (C, H, W) floating point in [0, 1], any device.
        attribution: (C', H, W) or (H, W), finite; summed over channels.
        class_name: name of the explained class.
        probability: the model's probability of that class, in [0, 1].
        title: title in place of the class name.
        note: a line of small print under the title, such as the scores of this map.
        cutoff: radius in cycles over the shorter side, above 0; None draws no circle.
        mask: (H, W) bool, an object whose outline is drawn.
        percentile: the share of the map's magnitudes inside the colour scale, in (0, 100].
        signed: whether the scale has two sides; None decides by the map.
        smoothing: standard deviation in pixels of a Gaussian over the map, in the overlay alone; None is a ninetieth
            of the shorter side. The overlay has its own limit, so each panel uses the whole scale.
        dpi: pixels per inch.

    Returns:
        The figure, for ``save_figure``.

    Raises:
        TypeError: something that is not a tensor of the kind described.
        ValueError: shapes that do not fit, or values out of range.
    """
    radius = checked_cutoff(cutoff)
    rgb, raw, smooth, outline = _prepare(image, attribution, mask, percentile, signed, smoothing)
    sigma = default_smoothing(*raw.values.shape) if smoothing is None else smoothing
    width, height = _fit(rgb.shape[1], rgb.shape[0], _PANEL)
    column = max(width, _NARROWEST_COLUMN)
    side = min(max(height, _NARROWEST_COLUMN), _PANEL)
    head = _head_height(title or class_name, probability, note) + _CAPTION
    lefts = [_MARGIN + i * (column + _GAP) for i in range(4)]
    total = (lefts[3] + side + _MARGIN, head + max(height, side) + _FOOT)
    figure = new_figure(*total, dpi)
    _write_head(figure, title or class_name, probability, note)

    captions = (
        "image" if outline is None else "image, object outlined",
        "evidence map",
        "overlay" if sigma == 0.0 else f"overlay, map smoothed by {sigma:.2g} px",
        spectrum_caption(radius),
    )
    for left, caption in zip(lefts, captions, strict=True):
        add_text(figure, left, head - 0.09, caption, size=10, smallest=7.5, max_width=column + 0.6 * _GAP)
    axes = [add_axes(figure, left, head, width, height) for left in lefts[:3]]
    for panel, label in zip(axes, ("image", "map", "overlay"), strict=True):
        panel.set_label(label)
    show_rgb(axes[0], rgb)
    if outline is not None:
        draw_outline(axes[0], outline)
    _show_map(figure, axes[1], colours_of(raw), raw, outline)
    _show_map(figure, axes[2], overlay_rgb(rgb, smooth), smooth, outline)
    panel = add_axes(figure, lefts[3], head, side, side)
    panel.set_label("spectrum")
    draw_spectrum(panel, image, radius)
    label_spectrum(figure, lefts[3], head + side, side, min(raw.values.shape))
    add_scale(
        figure,
        lefts[1],
        head + height + 0.14,
        lefts[2] + width - lefts[1],
        signed=raw.signed,
        what=class_name or "the class",
    )
    return figure


def percent(probability: float) -> str:
    """Write a probability in per cent, without rounding to 0 or 100.

    Args:
        probability: in [0, 1].

    Returns:
        One decimal, with the bounds ``<0.1 %`` and ``>99.9 %``.

    Raises:
        ValueError: not in [0, 1].
    """
    value = float(probability)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"expected a probability in [0, 1], got {value}")
    if 0.0 < value < 0.001:
        return "<0.1 %"
    if 0.999 < value < 1.0:
        return ">99.9 %"
    return f"{100 * value:.1f} %"


def check_mask(mask: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Check a mask and convert it to an array.

    Args:
        mask: (H, W) bool, any device.
        size: the image's (H, W).

    Returns:
        (H, W) bool.

    Raises:
        TypeError: not a tensor of bool.
        ValueError: not of the image's size.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"expected the mask as a tensor of torch.bool, got {given}")
    if tuple(mask.shape) != size:
        raise ValueError(f"expected a mask of the image's size {size}, got shape {tuple(mask.shape)}")
    array: NDArray[np.bool_] = mask.detach().cpu().numpy()
    return array


def _prepare(
    image: Tensor,
    attribution: Tensor,
    mask: Tensor | None,
    percentile: float,
    signed: bool | None,
    smoothing: float | None,
) -> tuple[FloatArray, ScaledMap, ScaledMap, NDArray[np.bool_] | None]:
    """Check that the image, the map, the map for the overlay and the mask are valid and fit together."""
    rgb = image_to_rgb(image)
    size: tuple[int, int] = (rgb.shape[0], rgb.shape[1])
    raw = scale_map(attribution, percentile=percentile, signed=signed)
    if raw.values.shape != size:
        raise ValueError(f"expected a map of the image's size {size}, got shape {tuple(attribution.shape)}")
    sigma = default_smoothing(*size) if smoothing is None else smoothing
    # The unsmoothed map decides the sign, so that both panels share one scale.
    smooth = scale_map(attribution, percentile=percentile, signed=raw.signed, smoothing=sigma)
    return rgb, raw, smooth, None if mask is None else check_mask(mask, size)


def _fit(width: int, height: int, box: float) -> tuple[float, float]:
    """Fit a picture into a square box, in inches, keeping its aspect ratio within visible limits."""
    longer = max(width, height)
    return max(box * width / longer, _THINNEST_PICTURE), max(box * height / longer, _THINNEST_PICTURE)


def _show_map(
    figure: Figure, axes: Axes, rgb: FloatArray, scaled: ScaledMap, outline: NDArray[np.bool_] | None
) -> None:
    show_rgb(axes, rgb)
    if outline is not None:
        draw_outline(axes, outline)
    if scaled.empty:
        width, height = figure.get_size_inches()
        place = axes.get_position()
        x, y = (place.x0 + place.x1) / 2 * width, (1 - (place.y0 + place.y1) / 2) * height
        words = add_text(figure, x, y, "no evidence", size=11, colour="white", align="center", vertical="center")
        words.set_bbox({"facecolor": "black", "edgecolor": "none", "alpha": 0.6, "pad": 3.0})


def _small_print(probability: float | None, note: str | None) -> str:
    parts = [] if probability is None else [f"probability {percent(probability)}"]
    return "  ·  ".join(parts + ([note] if note else []))


def _head_height(title: str | None, probability: float | None, note: str | None) -> float:
    lines = (0.33 if title else 0.0) + (0.25 if _small_print(probability, note) else 0.0)
    return lines + (0.28 if lines else 0.15)


def _write_head(figure: Figure, title: str | None, probability: float | None, note: str | None) -> None:
    line, room = 0.1, float(figure.get_size_inches()[0]) - 2 * _MARGIN
    if title:
        line += 0.3
        add_text(figure, _MARGIN, line, title, size=14, weight="bold", max_width=room)
    small = _small_print(probability, note)
    if small:
        line += 0.24
        add_text(figure, _MARGIN, line, small, size=10, colour=FAINT, max_width=room)
