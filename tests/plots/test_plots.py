from __future__ import annotations

import io
import itertools
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.image import AxesImage
from matplotlib.patches import Ellipse
from PIL import Image

from fampe_fast.plots import (
    contact_sheet,
    curves_figure,
    explanation_figure,
    log_amplitude,
    overlay,
    save_figure,
    scale_map,
)
from fampe_fast.plots import saving as saving_module
from fampe_fast.plots.canvas import add_axes, new_figure, outline_of
from fampe_fast.plots.colours import (
    BACKDROP_BRIGHTNESS,
    ScaledMap,
    colour_table,
    colours_of,
    gaussian_smooth,
    image_to_rgb,
    opacity_of,
    overlay_rgb,
)
from fampe_fast.plots.explanations import percent
from fampe_fast.plots.spectrum import CIRCLE_COLOUR, draw_spectrum


@pytest.fixture(autouse=True)
def no_warnings():
    """Nothing here may warn, and numpy may divide nothing by zero."""
    with warnings.catch_warnings(), np.errstate(divide="raise", invalid="raise", over="raise"):
        warnings.simplefilter("error")
        yield


def field(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def panel(figure, label):
    (axes,) = [a for a in figure.axes if a.get_label() == label]
    return axes


def picture(axes) -> AxesImage:
    (image,) = axes.images
    return image


def cutoff_circle(axes) -> Ellipse:
    (circle,) = [p for p in axes.patches if isinstance(p, Ellipse) and p.get_label() == "cut-off"]
    return circle


def spectrum_axes(image, cutoff=None, dpi=120):
    axes = add_axes(new_figure(4.0, 4.0, dpi), 0.2, 0.2, 3.6, 3.6)
    draw_spectrum(axes, image, cutoff)
    return axes


def words_of(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def pixels_of(figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(saving_module.png_bytes(figure))))


# --- one channel, scale ---------------------------------------------------------------------------------------------


def test_channels_are_summed_with_their_signs():
    attribution = torch.tensor([[[1.0, 2.0]], [[-1.0, 2.0]], [[0.0, -1.0]]])
    scaled = scale_map(attribution, percentile=100)
    assert scaled.limit == 3.0
    assert scaled.values.tolist() == [[0.0, 1.0]]
    assert not scaled.signed


def test_clipping_is_exactly_at_the_percentile():
    # 101 values 0..100: order statistic 99 of 0..100 is the 99th percentile, and it is 99.
    scaled = scale_map(torch.arange(101.0).reshape(1, 1, 101))
    assert scaled.limit == 99.0
    np.testing.assert_array_equal(scaled.values[0], (np.minimum(np.arange(101), 99) / 99).astype(np.float32))


def test_clipping_of_a_signed_map_is_two_sided():
    # Magnitudes 0, 1, 1, ..., 100, 100: order statistic 198 of 0..200 is 99.
    attribution = torch.arange(-100.0, 101.0).reshape(1, 1, 201)
    scaled = scale_map(attribution)
    assert scaled.signed
    assert scaled.limit == 99.0
    np.testing.assert_allclose(scaled.values[0], np.clip(np.arange(-100, 101) / 99, -1, 1), rtol=1e-7)
    # Magnitudes decide, not the sides: one side's values alone do not move the other side's limit.
    assert scale_map(torch.cat([attribution, attribution.abs()], 1)).limit == pytest.approx(99.0)


@pytest.mark.parametrize("signed", [False, True, None])
def test_a_map_of_zeros_is_no_evidence(signed):
    scaled = scale_map(torch.zeros(3, 9, 8), signed=signed, smoothing=2.0)
    assert scaled.empty
    assert scaled.limit == 0.0
    assert (scaled.values == 0).all()
    assert (opacity_of(scaled) == 0).all()
    rgb = image_to_rgb(field(3, 9, 8))
    grey = overlay_rgb(rgb, scaled)
    luma = rgb @ np.array([0.2126, 0.7152, 0.0722])
    np.testing.assert_allclose(grey, np.repeat(luma[..., None], 3, -1) * BACKDROP_BRIGHTNESS, atol=1e-6)


@pytest.mark.parametrize(("value", "end"), [(2.5, 1.0), (-2.5, -1.0), (1e-300, 1.0), (1e300, 1.0)])
def test_a_constant_map_is_the_end_of_the_scale_everywhere(value, end):
    scaled = scale_map(torch.full((1, 8, 8), value, dtype=torch.float64))
    assert scaled.limit == abs(value)
    assert (scaled.values == end).all()


def test_few_non_zero_pixels_are_scaled_by_the_largest():
    attribution = torch.zeros(1, 20, 20)
    attribution[0, 3, 4], attribution[0, 5, 6] = 4.0, 1.0
    scaled = scale_map(attribution)
    assert scaled.limit == 4.0
    assert scaled.values[3, 4] == 1.0
    assert scaled.values[5, 6] == 0.25
    assert np.count_nonzero(scaled.values) == 2


def test_rounding_noise_does_not_make_a_map_signed():
    attribution = field(1, 8, 8)
    attribution[0, 0, 0] = -1e-8
    assert not scale_map(attribution).signed
    assert scale_map(attribution).values.min() == 0.0
    attribution[0, 0, 0] = -1e-3
    assert scale_map(attribution).signed


def test_the_sign_can_be_chosen():
    attribution = torch.tensor([[[-4.0, 1.0, 2.0]]])
    positive = scale_map(attribution, percentile=100, signed=False)
    assert positive.values.tolist() == [[0.0, 0.5, 1.0]]
    assert scale_map(attribution.abs(), signed=True).signed


def test_any_tensor_will_do():
    plain = field(3, 12, 10)
    expected = scale_map(plain).values
    strided = plain.permute(1, 2, 0).contiguous().permute(2, 0, 1).requires_grad_()
    np.testing.assert_array_equal(scale_map(strided).values, expected)
    np.testing.assert_allclose(scale_map(plain.to(torch.bfloat16)).values, expected, atol=0.02)
    assert scale_map(plain.sum(0)).values.shape == (12, 10)


@pytest.mark.parametrize(
    ("attribution", "options", "error", "words"),
    [
        (np.zeros((1, 8, 8)), {}, TypeError, "ndarray"),
        (torch.zeros(1, 8, 8, dtype=torch.complex64), {}, TypeError, "complex64"),
        (torch.zeros(1, 1, 8, 8), {}, ValueError, r"\(1, 1, 8, 8\)"),
        (torch.zeros(0, 8, 8), {}, ValueError, r"\(0, 8, 8\)"),
        (torch.full((1, 8, 8), math.nan), {}, ValueError, "NaN"),
        (torch.full((1, 8, 8), math.inf), {}, ValueError, "infinite"),
        (torch.zeros(1, 8, 8), {"percentile": 0.0}, ValueError, "percentile"),
        (torch.zeros(1, 8, 8), {"percentile": math.nan}, ValueError, "percentile"),
        (torch.zeros(1, 8, 8), {"percentile": 100.1}, ValueError, "100.1"),
        (torch.zeros(1, 8, 8), {"smoothing": -1.0}, ValueError, "smoothing"),
    ],
)
def test_bad_maps_are_refused(attribution, options, error, words):
    with pytest.raises(error, match=words):
        scale_map(attribution, **options)


@pytest.mark.parametrize(
    ("image", "error", "words"),
    [
        (np.zeros((3, 8, 8)), TypeError, "ndarray"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(1, 3, 8, 8), ValueError, r"\(1, 3, 8, 8\)"),
        (torch.full((3, 8, 8), math.nan), ValueError, "NaN"),
        (torch.full((3, 8, 8), 2.5), ValueError, "2.5"),
    ],
)
def test_bad_images_are_refused(image, error, words):
    for draw in (image_to_rgb, log_amplitude):
        with pytest.raises(error, match=words):
            draw(image)
    with pytest.raises(error, match=words):
        overlay(image, torch.zeros(1, 8, 8))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"attribution": torch.zeros(1, 8, 9)}, ValueError, r"\(8, 8\).*\(1, 8, 9\)"),
        ({"mask": torch.zeros(8, 8)}, TypeError, "float32"),
        ({"mask": torch.zeros(8, 9, dtype=torch.bool)}, ValueError, r"\(8, 9\)"),
        ({"probability": 1.5}, ValueError, "1.5"),
        ({"probability": math.nan}, ValueError, "nan"),
        ({"cutoff": 0.0}, ValueError, "cut-off"),
        ({"cutoff": math.nan}, ValueError, "cut-off"),
        ({"dpi": 0}, ValueError, "dpi"),
    ],
)
def test_bad_explanations_are_refused(options, error, words):
    arguments = {"image": field(3, 8, 8), "attribution": field(3, 8, 8), **options}
    with pytest.raises(error, match=words):
        explanation_figure(**arguments)


@pytest.mark.parametrize("shape", [(11, 17), (6, 5)])
def test_smoothing_is_the_gaussian_filter_with_repeated_edges(shape):
    sigma, reach = 1.3, 4
    values = field(*shape).double().numpy()
    taps = {k: math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)}
    total = sum(taps.values())
    height, width = shape
    expected = np.zeros(shape)
    for i, j, k, m in itertools.product(range(height), range(width), taps, taps):
        source = values[min(max(i + k, 0), height - 1), min(max(j + m, 0), width - 1)]
        expected[i, j] += taps[k] * taps[m] / total**2 * source
    np.testing.assert_allclose(gaussian_smooth(values, sigma), expected, rtol=1e-12)


# --- colours --------------------------------------------------------------------------------------------------------

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
vision = pytest.mark.parametrize("vision", VISION)


def seen_lab(rgb: np.ndarray, vision: str) -> np.ndarray:
    """CIELAB (D65) of sRGB colours as somebody with the given vision sees them."""
    rgb = np.asarray(rgb, dtype=np.float64)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.asarray(VISION[vision]).T, 0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    t = linear @ to_xyz.T / to_xyz.sum(1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


@vision
def test_lightness_rises_along_the_sequential_scale(vision):
    lightness = seen_lab(colour_table(False), vision)[:, 0]
    assert (np.diff(lightness) > -0.05).all()
    assert (np.diff(lightness[::8]) > 0).all()
    assert lightness[0] < 2
    assert lightness[-1] > 90


@vision
def test_lightness_rises_from_the_middle_of_the_signed_scale(vision):
    table = colour_table(True)
    assert len(table) == 511
    assert (table[255] == 0).all()
    lightness = seen_lab(table, vision)[:, 0]
    for arm in (lightness[255:], lightness[255::-1]):
        assert (np.diff(arm) > 0).all()
        assert arm[-1] > 60


def test_both_arms_of_the_signed_scale_are_equally_light_in_equal_steps():
    lightness = seen_lab(colour_table(True), "normal")[:, 0]
    np.testing.assert_allclose(lightness, lightness[::-1], atol=0.3)
    np.testing.assert_allclose(np.diff(lightness[255:]), lightness[-1] / 255, atol=0.02)


@vision
def test_for_and_against_are_told_apart_by_everybody(vision):
    against, for_ = seen_lab(colour_table(True)[:255][::-1], vision), seen_lab(colour_table(True)[256:], vision)
    difference = np.linalg.norm(against - for_, axis=-1)
    # A difference of about 2.3 is just noticeable.
    assert (difference[63:] > 15).all()
    assert (difference[127:] > 30).all()


def test_opposite_maps_have_mirrored_colours():
    attribution = field(3, 16, 12) - 0.5
    there, back = scale_map(attribution), scale_map(-attribution)
    np.testing.assert_array_equal(there.values, -back.values)
    mirror = {tuple(a): tuple(b) for a, b in zip(colour_table(True), colour_table(True)[::-1], strict=True)}
    for a, b in zip(colours_of(there).reshape(-1, 3), colours_of(back).reshape(-1, 3), strict=True):
        assert mirror[tuple(a)] == tuple(b)
    np.testing.assert_array_equal(opacity_of(there), opacity_of(back))


@pytest.mark.parametrize("signed", [False, True])
def test_zero_is_transparent_and_opacity_rises_with_the_magnitude(signed):
    values = np.linspace(0, 1, 101, dtype=np.float32)[None]
    scaled = ScaledMap(values, 1.0, signed)
    colours, opacity = colours_of(scaled), opacity_of(scaled)
    assert (colours.shape, opacity.shape) == ((1, 101, 3), (1, 101))
    assert opacity[0, 0] == 0
    assert (np.diff(opacity[0]) > 0).all()
    assert 0.85 < opacity[0, -1] < 1
    assert colours.min() >= 0
    assert colours.max() <= 1


def test_weak_values_of_a_signed_map_are_held_back():
    weak = np.full((1, 1), 0.2, dtype=np.float32)
    assert opacity_of(ScaledMap(weak, 1.0, True)) < opacity_of(ScaledMap(weak, 1.0, False)) / 2


def test_the_strongest_evidence_outshines_a_white_image():
    values = np.array([[0.0, 1.0]], dtype=np.float32)
    for signed in (False, True):
        drawn = overlay_rgb(np.ones((1, 2, 3), np.float32), ScaledMap(values, 1.0, signed))
        backdrop, evidence = seen_lab(drawn, "normal")[0]
        assert evidence[0] > backdrop[0] + 5


def test_a_colour_table_cannot_be_spoilt():
    with pytest.raises(ValueError, match="read-only"):
        colour_table(True)[0] = 1


# --- spectrum -------------------------------------------------------------------------------------------------------

SHAPES = [(32, 32), (33, 21), (24, 48), (48, 20), (8, 8), (9, 64)]
shapes = pytest.mark.parametrize("shape", SHAPES)


@shapes
@pytest.mark.parametrize("channels", [1, 3])
def test_log_amplitude_is_numpys(shape, channels):
    image = field(channels, *shape)
    energy = (np.abs(np.fft.fft2(image.double().numpy())) ** 2).sum(0)
    np.testing.assert_allclose(log_amplitude(image), np.fft.fftshift(np.log1p(np.sqrt(energy))), atol=1e-9)


def test_a_constant_image_has_its_spectrum_in_the_middle():
    spectrum = log_amplitude(torch.full((1, 9, 8), 0.5))
    assert spectrum[4, 4] == pytest.approx(math.log1p(36))
    spectrum[4, 4] = 0
    np.testing.assert_allclose(spectrum, 0, atol=1e-9)


@shapes
@pytest.mark.parametrize("share", [(0.3, 0.0), (0.0, 0.3), (0.2, 0.35)])
def test_the_circle_passes_through_the_bins_at_its_radius(shape, share):
    """A sine at (fu, fv) has the radius r; with the cut-off r, its bin as drawn lies on the circle as drawn."""
    height, width = shape
    fu, fv = round(share[0] * height), round(share[1] * width)
    radius = min(shape) * math.hypot(fu / height, fv / width)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    sine = 0.5 + 0.4 * torch.sin(2 * math.pi * (fu * rows / height + fv * columns / width) + 0.7)
    axes = spectrum_axes(sine[None], radius)
    drawn, circle = picture(axes), cutoff_circle(axes)

    values = np.asarray(drawn.get_array()).copy()
    bins = (values.shape[0] // 2, values.shape[1] // 2)
    values[bins] = 0  # DC
    row, column = np.unravel_index(values.argmax(), values.shape)
    left, right, bottom, top = drawn.get_extent()
    assert drawn.origin == "lower"
    x = left + (column + 0.5) * (right - left) / values.shape[1]
    y = bottom + (row + 0.5) * (top - bottom) / values.shape[0]

    assert circle.center == (0.0, 0.0)
    on_circle = math.hypot(2 * x / circle.width, 2 * y / circle.height)
    assert on_circle == pytest.approx(1.0, abs=1e-9)
    assert circle.width == pytest.approx(2 * radius)
    # And the panel shows the frequencies up to Nyquist, at one scale for both axes.
    half = min(shape) / 2
    assert axes.get_xlim() == axes.get_ylim() == (-half, half)
    box = axes.get_window_extent()
    assert box.width == pytest.approx(box.height)


@pytest.mark.parametrize("shape", [(64, 64), (40, 120)])
def test_the_circle_is_seen_in_the_picture(shape):
    axes = spectrum_axes(field(1, *shape), 15)
    pixels = pixels_of(axes.figure).astype(float)
    cyan = np.array(to_rgb(CIRCLE_COLOUR)) * 255
    for angle in np.linspace(0, 2 * math.pi, 12, endpoint=False):
        x, y = axes.transData.transform((15 * math.cos(angle), 15 * math.sin(angle)))
        row, column = len(pixels) - 1 - int(y), int(x)
        around = pixels[row - 1 : row + 2, column - 1 : column + 2].reshape(-1, 3)
        assert np.abs(around - cyan).max(-1).min() < 30


def test_a_small_circle_is_magnified():
    image = field(3, 64, 64)
    axes = spectrum_axes(image, 1)
    (corner,) = axes.child_axes
    for where in (axes, corner):
        assert cutoff_circle(where).width == 2
    low, high = corner.get_xlim()
    assert high - low < 10
    assert not spectrum_axes(image, 19).child_axes
    assert not spectrum_axes(image).patches


def test_a_cutoff_may_be_a_tensor():
    assert cutoff_circle(spectrum_axes(field(3, 32, 32), torch.tensor(5))).height == 10


# --- figures --------------------------------------------------------------------------------------------------------

LONG = "$\\frac{ an unreasonably long, 100%_odd & twisted\nname of a class, " * 6


def overlapping(figure) -> list[tuple[str, str]]:
    """Pairs of texts that lie over each other, and texts that leave the figure."""
    boxes = [(t.get_text(), t.get_window_extent()) for t in figure.texts if t.get_text()]
    full = figure.bbox
    clashes = [
        (first, second)
        for (first, a), (second, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]
    out = [
        (text, "outside")
        for text, box in boxes
        if box.x0 < 0 or box.y0 < 0 or box.x1 > full.width or box.y1 > full.height
    ]
    return clashes + out


@pytest.mark.parametrize(
    ("shape", "signed"), [((3, 32, 32), True), ((1, 8, 8), False), ((3, 8, 160), False), ((3, 160, 8), True)]
)
def test_no_text_covers_another(shape, signed):
    image, attribution = field(*shape), field(*shape, seed=1) - 0.5 * signed
    mask = torch.zeros(shape[1:], dtype=torch.bool)
    mask[2:6, 2:6] = True
    options = {"class_name": LONG, "probability": 0.123, "note": LONG, "mask": mask}
    assert overlapping(explanation_figure(image, attribution, cutoff=123.456, **options)) == []
    assert overlapping(explanation_figure(image, attribution)) == []
    assert overlapping(overlay(image, attribution, **options)) == []
    for scores in (None, {LONG: [0.1, -0.2]}):
        sheet = contact_sheet(
            [image, image], {"a": [attribution] * 2, LONG: [-attribution] * 2}, [LONG, "b"], scores=scores, title=LONG
        )
        assert overlapping(sheet) == []


def test_long_names_end_in_an_ellipsis_and_short_ones_do_not():
    image = field(3, 32, 32)
    long = words_of(explanation_figure(image, image, class_name=LONG))
    assert long[0].startswith("$\\frac{ an unreasonably long, 100%_odd & twisted name")
    assert long[0].endswith("…")
    short = words_of(explanation_figure(image, image, class_name="tabby cat", probability=0.931, cutoff=19))
    assert {"tabby cat", "probability 93.1 %", "evidence for tabby cat", "spectrum, energy cut-off 19"} <= set(short)
    assert not any("…" in text for text in short)


def test_the_legend_names_both_sides_of_a_signed_map():
    image = field(3, 32, 32)
    signed = set(words_of(overlay(image, image - 0.5, class_name="tabby cat")))
    assert {"against", "0", "for", "evidence against and for tabby cat"} <= signed
    assert {"none", "strong", "evidence for tabby cat"} <= set(words_of(overlay(image, image, class_name="tabby cat")))


def test_the_panels_show_image_map_and_overlay():
    image, attribution = field(3, 40, 50), field(3, 40, 50, seed=1)
    figure = explanation_figure(image, attribution, smoothing=1.5, percentile=95)
    raw = scale_map(attribution, percentile=95)
    smooth = scale_map(attribution, percentile=95, smoothing=1.5)
    rgb = image.permute(1, 2, 0).numpy()
    for label, expected in (("image", rgb), ("map", colours_of(raw)), ("overlay", overlay_rgb(rgb, smooth))):
        drawn = np.asarray(picture(panel(figure, label)).get_array())
        np.testing.assert_allclose(drawn / 255, expected, atol=0.5 / 255 + 1e-6)
    assert "overlay, map smoothed by 1.5 px" in words_of(figure)


def test_a_panel_keeps_the_images_shape():
    for height, width in ((40, 50), (64, 16)):
        image = field(3, height, width)
        box = panel(explanation_figure(image, image), "overlay").get_window_extent()
        assert box.height / box.width == pytest.approx(height / width)


def test_a_map_of_zeros_says_no_evidence():
    image = field(3, 32, 32)
    figure = explanation_figure(image, torch.zeros(3, 32, 32), class_name="tabby cat", cutoff=3)
    assert words_of(figure).count("no evidence") == 2
    assert pixels_of(figure).std() > 0
    assert "no evidence" not in words_of(explanation_figure(image, image))


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 9, 11), (3, 8, 300), (4, 300, 500)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_images_tiny_and_large_ones_are_drawn(shape, value):
    image = torch.full(shape, value)
    attribution = field(1, *shape[1:])
    for figure in (explanation_figure(image, attribution, cutoff=1), overlay(image, attribution)):
        width, height = figure.get_size_inches() * figure.dpi
        assert pixels_of(figure).shape == (int(height), int(width), 3)


def test_outlines_run_along_the_pixels_edges():
    mask = np.zeros((12, 15), dtype=bool)
    mask[3:7, 4:10] = True
    (line,) = outline_of(mask)
    np.testing.assert_allclose(line.min(0), [3.5, 2.5])
    np.testing.assert_allclose(line.max(0), [9.5, 6.5])
    np.testing.assert_array_equal(line[0], line[-1])


def test_outlines_of_every_mask():
    assert outline_of(np.zeros((4, 5), dtype=bool)) == []
    (frame,) = outline_of(np.ones((4, 5), dtype=bool))
    np.testing.assert_allclose([frame.min(0), frame.max(0)], [[-0.5, -0.5], [4.5, 3.5]])
    ring = np.ones((7, 7), dtype=bool)
    ring[3, 3] = False
    assert len(outline_of(ring)) == 2


def test_a_mask_is_outlined_in_the_three_pictures():
    image = field(3, 16, 16)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[4:9, 5:11] = True
    figure = explanation_figure(image, image, mask=mask)
    for label in ("image", "map", "overlay"):
        assert len(panel(figure, label).collections) == 2
    assert "image, object outlined" in words_of(figure)
    assert not panel(explanation_figure(image, image), "image").collections


@pytest.mark.parametrize(
    ("probability", "words"),
    [(0.0, "0.0 %"), (1.0, "100.0 %"), (0.99996, ">99.9 %"), (1e-9, "<0.1 %"), (0.5, "50.0 %"), (0.9312, "93.1 %")],
)
def test_probabilities_are_never_rounded_to_certainty(probability, words):
    assert percent(probability) == words
    assert percent(torch.tensor(probability, dtype=torch.float64)) == words


def test_curves_carry_their_areas():
    rising, constant = torch.linspace(0, 1, 11), torch.full((5,), 0.25)
    figure = curves_figure(rising, constant, title="tabby cat")
    assert {"— insertion 0.500", "- - deletion 0.250", "tabby cat"} <= set(words_of(figure))
    insertion, deletion = panel(figure, "curves").lines
    np.testing.assert_allclose(insertion.get_xydata(), np.stack([np.linspace(0, 1, 11)] * 2, -1), atol=1e-7)
    np.testing.assert_allclose(deletion.get_xdata(), np.linspace(0, 1, 5))
    assert overlapping(figure) == []


@pytest.mark.parametrize(
    ("curve", "error"),
    [
        (torch.ones(1), ValueError),
        (torch.ones(2, 2), ValueError),
        (torch.tensor([0, math.nan]), ValueError),
        ([0, 1], TypeError),
    ],
)
def test_bad_curves_are_refused(curve, error):
    with pytest.raises(error, match="deletion_curve"):
        curves_figure(torch.ones(3), curve)


# --- contact sheet --------------------------------------------------------------------------------------------------


def test_a_contact_sheet_has_a_row_for_each_image_and_a_column_for_each_method():
    images = torch.stack([torch.full((3, 20, 20), grey) for grey in (0.2, 0.5, 1.0)])
    empty = torch.zeros(3, 3, 20, 20)
    figure = contact_sheet(images, {"first": empty, "second": empty}, ["one", "two", "three"], title="A page")
    drawn = panel(figure, "page").images
    assert len(drawn) == 3 * 3
    boxes = np.array([d.get_extent() for d in drawn]).reshape(3, 3, 4)  # left, right, bottom, top; y runs downwards
    assert (np.diff(boxes[..., 0], axis=1) > 0).all()
    assert (np.diff(boxes[..., 3], axis=0) > 0).all()
    assert (boxes[:, 1:, 0] > boxes[:, :-1, 1]).all()
    assert (boxes[1:, :, 3] > boxes[:-1, :, 2]).all()
    for row, grey in enumerate((0.2, 0.5, 1.0)):
        for column in range(3):
            expected = grey * (1 if column == 0 else BACKDROP_BRIGHTNESS)
            value = np.asarray(drawn[3 * row + column].get_array()) / 255
            np.testing.assert_allclose(value, expected, atol=0.5 / 63 + 0.5 / 255)
    assert {"A page", "image", "first", "second", "one", "two", "three"} <= set(words_of(figure))
    assert words_of(figure).count("no evidence") == 6


def test_column_heads_carry_the_mean_score():
    images = field(3, 3, 16, 16)
    figure = contact_sheet(
        images,
        {"a": images, "b": images - 0.5, "c": images},
        scores={"a": torch.tensor([0.1, 0.2, 0.6]), "b": [-0.5, math.nan, -0.25]},
        score_name="insertion",
    )
    words = words_of(figure)
    assert {"mean 0.300", "mean −0.375", "0.100", "0.200", "0.600", "−0.500", "–", "−0.250"} <= set(words)
    assert sum(text.startswith("mean") for text in words) == 2
    assert "Numbers: insertion" in words
    # Both kinds of map are there, so both scales are.
    assert {"evidence for the class", "evidence against and for the class"} <= set(words)


def test_a_contact_sheet_takes_images_of_different_sizes():
    images = [field(3, 30, 90), field(1, 8, 8), field(3, 300, 60)]
    figure = contact_sheet(images, {"a": [image.sum(0) for image in images]})
    for drawn, image in zip(panel(figure, "page").images[::2], images, strict=True):
        left, right, bottom, top = drawn.get_extent()
        assert (bottom - top) / (right - left) == pytest.approx(image.shape[1] / image.shape[2], rel=0.04)
    assert pixels_of(figure).std() > 0


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"images": []}, ValueError, "at least one image"),
        ({"maps_by_method": {}}, ValueError, "at least one method"),
        ({"maps_by_method": {"a": torch.zeros(1, 3, 8, 8)}}, ValueError, "2 maps of 'a'"),
        ({"titles": ["one"]}, ValueError, "2 titles"),
        ({"scores": {"z": [1, 2]}}, ValueError, "'z'"),
        ({"scores": {"a": [1]}}, ValueError, "2 scores of 'a'"),
        ({"images": ["one", "two"]}, TypeError, "str"),
        ({"images": torch.zeros(2, 8, 8)}, ValueError, r"\(8, 8\)"),
        ({"maps_by_method": {"a": torch.zeros(2, 3, 8, 9)}}, ValueError, r"\(8, 8\)"),
    ],
)
def test_bad_contact_sheets_are_refused(arguments, error, words):
    good = {"images": torch.zeros(2, 3, 8, 8), "maps_by_method": {"a": torch.zeros(2, 3, 8, 8)}}
    with pytest.raises(error, match=words):
        contact_sheet(**{**good, **arguments})


@pytest.mark.slow
@pytest.mark.shared
def test_a_page_of_photographs_is_a_small_file(photographs, tmp_path):
    images, labels = photographs(16)
    # Maps as scattered as gradients are: differences of neighbouring pixels.
    change = images - images.roll(1, -1)
    maps = {f"method {i}": change.abs() if i % 2 else change for i in range(5)}
    figure = contact_sheet(images, maps, [str(int(k)) for k in labels], scores={name: [0.5] * 16 for name in maps})
    path = save_figure(figure, tmp_path / "sheet.png")
    assert path.stat().st_size < 3e6
    assert overlapping(figure) == []


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_figure():
    return spectrum_axes(field(1, 8, 8), dpi=50).figure


def test_a_png_has_the_figures_size(tmp_path):
    figure = explanation_figure(field(3, 24, 24), field(3, 24, 24), class_name="tabby cat", dpi=70)
    path = save_figure(figure, tmp_path / "new" / "folders" / "picture.png")
    assert path == tmp_path / "new" / "folders" / "picture.png"
    assert os.listdir(path.parent) == ["picture.png"]
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        assert image.size == tuple(int(side * 70) for side in figure.get_size_inches())
        assert image.info["dpi"] == pytest.approx((70, 70), abs=0.1)
        image.load()
        assert image.getpixel((0, 0)) == (255, 255, 255)


def test_the_same_figure_gives_the_same_bytes(tmp_path):
    image = field(3, 24, 24)
    first, second = (
        save_figure(explanation_figure(image, image, cutoff=3), tmp_path / name) for name in ("a.png", "b.PNG")
    )
    assert first.read_bytes() == second.read_bytes()


def test_an_earlier_file_is_replaced(small_figure, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    save_figure(small_figure, str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_run_leaves_the_folder_as_it_was(small_figure, tmp_path, monkeypatch, failure, where):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise failure

    monkeypatch.setattr(saving_module.os, where, fail)
    with pytest.raises(type(failure)) as caught:
        save_figure(small_figure, path)
    assert os.listdir(tmp_path) == ["a.png"]
    assert path.read_bytes() == b"old"
    if isinstance(failure, OSError):
        assert "cannot write the file: No space left on device" in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_figure_that_cannot_be_drawn_touches_nothing(small_figure, tmp_path, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    monkeypatch.setattr(FigureCanvasAgg, "draw", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_figure(small_figure, tmp_path / "new" / "a.png")
    assert os.listdir(tmp_path) == []


def test_places_where_no_file_can_be(small_figure, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "file" / "deeper" / "a.png"):
        with pytest.raises(OSError, match="cannot write the file: a file exists where a folder is needed") as caught:
            save_figure(small_figure, path)
        assert caught.value.filename == str(path)
    with pytest.raises(IsADirectoryError, match=r"folder\.png"):
        save_figure(small_figure, tmp_path / "folder.png")
    with pytest.raises(ValueError, match=r"\.png.*a\.jpg"):
        save_figure(small_figure, tmp_path / "new" / "a.jpg")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]
    assert os.listdir(tmp_path / "folder.png") == []


def test_the_name_may_be_as_long_as_the_file_system_allows(small_figure, tmp_path):
    assert save_figure(small_figure, tmp_path / ("x" * 251 + ".png")).is_file()


def test_a_figure_with_another_canvas_keeps_it(tmp_path):
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1), dpi=50)
    canvas = FigureCanvasSVG(figure)
    with Image.open(save_figure(figure, tmp_path / "a.png")) as image:
        assert image.size == (100, 50)
    assert figure.canvas is canvas


# --- a good guest ---------------------------------------------------------------------------------------------------


def test_the_users_rcparams_change_nothing():
    image = field(3, 40, 40)

    def draw() -> list[bytes]:
        figures = (
            explanation_figure(
                image, image - 0.5, class_name="tabby cat", probability=0.5, cutoff=2, mask=image[0] > 0.7
            ),
            overlay(image, image * 0),
            curves_figure(torch.linspace(0, 1, 9), torch.linspace(1, 0, 9)),
            contact_sheet(image[None], {"a": image[None]}),
        )
        return [saving_module.png_bytes(figure) for figure in figures]

    plain = draw()
    odd = {
        "axes.facecolor": "red",
        "axes.grid": True,
        "axes.linewidth": 5,
        "axes.xmargin": 0.4,
        "figure.autolayout": True,
        "figure.constrained_layout.use": True,
        "figure.dpi": 33,
        "figure.facecolor": "black",
        "font.family": "serif",
        "font.size": 25,
        "font.style": "italic",
        "font.weight": "bold",
        "grid.linewidth": 4,
        "image.aspect": "equal",
        "image.cmap": "jet",
        "image.interpolation": "nearest",
        "image.origin": "lower",
        "lines.linestyle": ":",
        "lines.linewidth": 9,
        "lines.marker": "o",
        "patch.edgecolor": "red",
        "patch.linewidth": 7,
        "savefig.bbox": "tight",
        "savefig.dpi": 11,
        "savefig.transparent": True,
        "text.color": "red",
        "text.parse_math": True,
        "xtick.labelsize": 30,
    }
    with matplotlib.rc_context(odd):
        assert draw() == plain


@pytest.mark.slow
def test_importing_is_light_and_pyplot_never_comes(tmp_path):
    script = """
import json, sys
import fampe_fast.plots as plots
light = not any(name.split(".")[0] in ("matplotlib", "PIL") for name in sys.modules)
import matplotlib, torch
def settings():  # dict() would ask for the backend, and matplotlib imports pyplot to answer
    return {name: dict.__getitem__(matplotlib.rcParams, name) for name in matplotlib.rcParams}
before = settings()
image = torch.rand(3, 16, 16)
figures = (
    plots.explanation_figure(image, image, cutoff=1, mask=image[0] > 0.5), plots.overlay(image, image - 0.5),
    plots.slopes_figure({"a": torch.rand(4)}), plots.curves_figure(torch.rand(4), torch.rand(4)),
    plots.contact_sheet(image[None], {"a": image[None]}),
)
for i, figure in enumerate(figures):
    plots.save_figure(figure, f"{sys.argv[1]}/{i}.png")
print(json.dumps([light, "matplotlib.pyplot" in sys.modules, settings() == before]))
"""
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, False, True]
    assert len(list(Path(tmp_path).glob("*.png"))) == 5
