"""Generate images with known explanations: an object at a known place, with a texture of a known frequency band."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..checks import check_count

FloatArray = npt.NDArray[np.float64]

#: Shape name -> (points n, inner radius / outer radius): the outline runs in 2n straight segments between n outer and n
#: inner points, so a regular n-gon has the ratio cos(pi/n). No points: the disc.
_OUTLINES: Final[dict[str, tuple[int, float]]] = {
    "disc": (0, 1.0),
    "square": (4, math.cos(math.pi / 4)),
    "triangle": (3, math.cos(math.pi / 3)),
    "star": (5, 0.45),
}
SHAPES: Final[tuple[str, ...]] = tuple(_OUTLINES)

#: Texture name -> radial frequency interval, in cycles per image side. A gap of almost an octave lies between the two.
BANDS: Final[dict[str, tuple[float, float]]] = {"coarse": (5.0, 9.0), "fine": (16.0, 26.0)}

#: Class index = shape index * number of bands + band index; neither the shape nor the band alone tells the class.
CLASS_NAMES: Final[tuple[str, ...]] = tuple(f"{band} {shape}" for shape in SHAPES for band in BANDS)

DEFAULT_SIZE: Final = 96
MIN_SIZE: Final = 64  # the fine band must stay below Nyquist, the star's points above a pixel

_SIDE_RANGE: Final = (0.27, 0.42)  # square root of the object's area, as a share of the image side, for every shape
_MARGIN: Final = 0.02  # least distance of any object from the border, as a share of the image side
_STREAM_SCENE, _STREAM_OBJECT, _STREAM_LABELS = range(3)


@dataclass(frozen=True)
class GeneratedImages:
    """A batch of generated images and their ground truth.

    The composition is linear: ``images = coverage * object + (1 - coverage) * backgrounds``. To replace a background,
    add ``(1 - coverage) * (other - backgrounds)``.

    Attributes:
        images: float32 (B, 3, S, S) in [0, 1].
        labels: int64 (B,), indices into ``CLASS_NAMES``.
        masks: bool (B, S, S), the pixels at least half covered by the object.
        bands: float32 (B, 2), the radial frequency interval of the object's texture, in cycles per image side.
        coverage: float32 (B, S, S) in [0, 1], the share of each pixel that the object covers (its anti-aliased edge).
        backgrounds: float32 (B, 3, S, S) in [0, 1], the same images without the object.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    bands: Tensor
    coverage: Tensor
    backgrounds: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def generate(
    indices: int | Sequence[int] | npt.NDArray[np.integer] | Tensor,
    seed: int = 0,
    size: int = DEFAULT_SIZE,
    *,
    labels: Sequence[int] | npt.NDArray[np.integer] | Tensor | None = None,
) -> GeneratedImages:
    """Generate labelled images of textured objects, each a function only of seed, index, size and label.

    An object (disc, square, triangle or star; random place, size and rotation, but the same distribution of area and
    place for every shape) carries a band-limited texture, coarse or fine, over a background of 1/f noise with a random
    palette, contrast and lighting. The class is the pair of shape and texture. Background, colours, place, area and
    lighting are drawn without regard to the class, so they carry no evidence of it.

    Args:
        indices: indices of the images, non-negative integers; a number ``n`` means ``0 ... n-1``.
        seed: seed, non-negative; each seed gives an independent sequence of images.
        size: the side S in pixels, at least 64. The frequency bands, in cycles per side, do not depend on it.
        labels: the class of each image. By default every aligned block of 8 indices holds each class once, in an order
            drawn from the seed, so that the first ``n`` images are balanced to within one per class.

    Returns:
        The images with labels, object masks, frequency bands, edge coverage and backgrounds, on the CPU.

    Raises:
        TypeError: an index, label, seed or size is not a whole number.
        ValueError: an index or seed is negative, the size is below 64, a label is not a class, or there are not as many
            labels as indices.
    """
    if isinstance(indices, (Sequence, np.ndarray, Tensor)):
        index_list = _whole_numbers("indices", indices)
    else:
        index_list = list(range(check_count("indices", indices, at_least=0)))
    seed, size = check_count("seed", seed, at_least=0), check_count("size", size, at_least=MIN_SIZE)
    if labels is None:
        label_list = [_balanced_label(seed, index) for index in index_list]
    else:
        label_list = _whole_numbers("labels", labels)
        if len(label_list) != len(index_list):
            raise ValueError(f"labels must be one per index: expected {len(index_list)}, got {len(label_list)}")
        if label_list and max(label_list) >= len(CLASS_NAMES):
            raise ValueError(f"labels must lie in 0 ... {len(CLASS_NAMES) - 1}, got {max(label_list)}")

    count = len(index_list)
    images = np.empty((count, 3, size, size), np.float32)
    backgrounds = np.empty_like(images)
    coverage = np.empty((count, size, size), np.float32)
    # One image at a time, so that no bit depends on the batch.
    for row, (index, label) in enumerate(zip(index_list, label_list, strict=True)):
        images[row], coverage[row], backgrounds[row] = _render(seed, index, label, size)
    intervals = list(BANDS.values())
    return GeneratedImages(
        images=torch.from_numpy(images),
        labels=torch.tensor(label_list, dtype=torch.int64),
        masks=torch.from_numpy(coverage >= 0.5),
        bands=torch.tensor([intervals[label % len(BANDS)] for label in label_list]).reshape(count, 2),
        coverage=torch.from_numpy(coverage),
        backgrounds=torch.from_numpy(backgrounds),
    )


def band_texture(rng: np.random.Generator, band: tuple[float, float], size: int) -> FloatArray:
    """Draw a periodic texture with all its energy in a radial frequency band.

    White noise within the band; clipping it and projecting it onto the band again evens out its amplitude (a low crest
    factor, as in iterative clipping and filtering of multicarrier signals) without leaving the band.

    Args:
        rng: source of the noise.
        band: lowest and highest radius ``sqrt(u^2 + v^2)``, in cycles per image side, both inside the band.
        size: side in pixels.

    Returns:
        float64 (size, size), zero mean if the band leaves out 0, scaled to a largest absolute value of 1.
    """
    radius = radial_frequency(size)
    inside = (radius >= band[0]) & (radius <= band[1])
    texture = noise_of_amplitude(rng, inside.astype(np.float64))
    for _ in range(2):
        limit = 0.8 * float(texture.std())
        texture = np.fft.irfft2(np.fft.rfft2(np.clip(texture, -limit, limit)) * inside, s=texture.shape)
    return texture / float(np.abs(texture).max())


def _render(seed: int, index: int, label: int, size: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Render one image (3, S, S), the object's coverage (S, S) and the background (3, S, S)."""
    scene = _rng(seed, index, _STREAM_SCENE)
    # The label decides only the outline and the band; everything else is drawn before it is used.
    light_angle, light_strength = scene.uniform(0.0, 2.0 * math.pi), scene.uniform(0.05, 0.3)
    light = light_strength * np.array([math.cos(light_angle), math.sin(light_angle)])
    hue = scene.uniform()
    background = _background(scene, hue, light, size)

    thing = _rng(seed, index, _STREAM_OBJECT)
    side = thing.uniform(*_SIDE_RANGE) * size
    reach = max(_outer_radius(shape, side) for shape in SHAPES) + _MARGIN * size  # the same for every shape
    centre = thing.uniform(reach, size - reach, 2)
    rotation = thing.uniform(0.0, 2.0 * math.pi)
    dark, bright = _object_colours(thing, hue)

    shape, band = SHAPES[label // len(BANDS)], list(BANDS.values())[label % len(BANDS)]
    # The object is drawn only in a square around it, which holds every pixel that it covers.
    low = np.maximum(np.floor(centre - reach).astype(int), 0)
    high = np.minimum(np.ceil(centre + reach).astype(int), size)
    rows, columns = slice(low[1], high[1]), slice(low[0], high[0])
    x, y = np.arange(low[0], high[0])[None, :] + 0.5 - centre[0], np.arange(low[1], high[1])[:, None] + 0.5 - centre[1]
    texture = band_texture(thing, band, size)[rows, columns]
    distance = _signed_distance(shape, side, rotation, x, y)
    colour = dark[:, None, None] + (bright - dark)[:, None, None] * (0.5 + 0.5 * texture)
    shading = 1.0 + (light[0] * x + light[1] * y) * (2.0 / size)
    rim = 1.0 - 0.35 * np.exp(np.minimum(distance, 0.0) / (0.012 * size))
    surface = np.clip(colour * (shading * rim), 0.0, 1.0)
    coverage = np.zeros((size, size))
    coverage[rows, columns] = np.clip(0.5 - distance, 0.0, 1.0)
    image = background.copy()
    image[:, rows, columns] += coverage[rows, columns] * (surface - background[:, rows, columns])
    return image, coverage, background


def _background(rng: np.random.Generator, hue: float, light: FloatArray, size: int) -> FloatArray:
    """Draw a (3, S, S) background: 1/f noise between two colours, a little colour noise, a lighting gradient."""
    slope = rng.uniform(1.1, 1.8)  # amplitude ~ r^-slope; photographs lie near 1 to 1.5
    spectrum = np.maximum(radial_frequency(size), 1.0) ** -slope
    spectrum[0, 0] = 0.0
    light_field, colour_field = (
        field / field.std() for field in (noise_of_amplitude(rng, spectrum), noise_of_amplitude(rng, spectrum))
    )

    contrast = rng.uniform(0.3, 1.0)
    value = rng.uniform(0.35, 0.7)
    colours = [
        _rgb(hue + rng.normal(0.0, 0.06), rng.uniform(0.1, 0.42), value + sign * 0.3 * contrast) for sign in (-1, 1)
    ]
    # tanh keeps the mix between the two colours: no hard clipping, so no flat patches
    mix = (0.5 + 0.5 * np.tanh(0.8 * light_field))[None]
    image = colours[0][:, None, None] * (1.0 - mix) + colours[1][:, None, None] * mix
    image += 0.03 * contrast * np.array([1.0, 0.0, -1.0])[:, None, None] * colour_field  # cooler and warmer places
    axis = (np.arange(size) + 0.5) * (2.0 / size) - 1.0
    lit: FloatArray = image * (1.0 + 1.5 * (light[0] * axis[None, :] + light[1] * axis[:, None]))
    return np.clip(lit, 0.0, 1.0)


def _object_colours(rng: np.random.Generator, background_hue: float) -> tuple[FloatArray, FloatArray]:
    """Draw the texture's dark and bright colour, with a hue different from the background's."""
    hue = background_hue + rng.uniform(0.2, 0.8)
    middle, half_range = rng.uniform(0.48, 0.62), rng.uniform(0.16, 0.3)
    saturation = rng.uniform(0.35, 0.75)
    dark = _rgb(hue + rng.normal(0.0, 0.04), saturation, middle - half_range)
    bright = _rgb(hue + rng.normal(0.0, 0.04), 0.75 * saturation, middle + half_range)
    return dark, bright


def _signed_distance(shape: str, side: float, rotation: float, x: FloatArray, y: FloatArray) -> FloatArray:
    """Compute the distance of points (x, y) from the outline around the origin, negative inside; exact."""
    points, ratio = _OUTLINES[shape]
    outer = _outer_radius(shape, side)
    radius = np.sqrt(x * x + y * y)
    if points == 0:
        return radius - outer
    # Fold the plane into the wedge between an outer point (on the x axis) and an inner one: by the mirror symmetry the
    # nearest point of the outline lies in the same wedge, where the outline is one segment.
    half = math.pi / points
    angle = np.abs((np.arctan2(y, x) - rotation + half) % (2.0 * half) - half)
    px, py = radius * np.cos(angle) - outer, radius * np.sin(angle)
    ex, ey = ratio * outer * math.cos(half) - outer, ratio * outer * math.sin(half)
    along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0.0, 1.0)
    inside = ex * py - ey * px > 0.0
    distance: FloatArray = np.sqrt((px - along * ex) ** 2 + (py - along * ey) ** 2)
    return np.where(inside, -distance, distance)


def _outer_radius(shape: str, side: float) -> float:
    """Compute the radius of the outer points at which the shape's area is ``side**2``."""
    points, ratio = _OUTLINES[shape]
    area = math.pi if points == 0 else points * ratio * math.sin(math.pi / points)
    return side / math.sqrt(area)


@lru_cache(maxsize=8)
def radial_frequency(size: int) -> FloatArray:
    """Compute the radial frequency of the half spectrum, (S, S//2+1), in cycles per side; not to be written to."""
    u, v = np.fft.fftfreq(size, 1.0 / size)[:, None], np.fft.rfftfreq(size, 1.0 / size)[None, :]
    radius: FloatArray = np.hypot(u, v)
    return radius


def noise_of_amplitude(rng: np.random.Generator, amplitude: FloatArray) -> FloatArray:
    """Draw real Gaussian noise (S, S) of the given amplitude spectrum (S, S//2+1), in the spectrum."""
    size = len(amplitude)
    spectrum = np.zeros(amplitude.shape, np.complex128)
    wanted = amplitude > 0.0
    parts = rng.standard_normal((2, int(wanted.sum())))
    spectrum[wanted] = (parts[0] + 1j * parts[1]) * amplitude[wanted]
    # irfft2 keeps the Hermitian half of the columns that hold each coefficient and its conjugate.
    spectrum[:, [0, -1] if size % 2 == 0 else [0]] *= math.sqrt(2.0)
    return np.fft.irfft2(spectrum, s=(size, size))


def _rgb(hue: float, saturation: float, value: float) -> FloatArray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, min(max(value, 0.0), 1.0)))


def _balanced_label(seed: int, index: int) -> int:
    block, place = divmod(index, len(CLASS_NAMES))
    return int(_rng(seed, block, _STREAM_LABELS).permutation(len(CLASS_NAMES))[place])


def _rng(seed: int, index: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index, stream))))


def _whole_numbers(name: str, values: object) -> list[int]:
    """List a one-dimensional collection of whole numbers of at least 0."""
    if isinstance(values, (Tensor, np.ndarray)):
        if values.ndim != 1:
            raise ValueError(f"{name} must be one-dimensional, got shape {tuple(values.shape)}")
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, (str, bytes)):
        raise TypeError(f"{name} must be a sequence of whole numbers, got {type(values).__name__}")
    return [check_count(name, value, at_least=0) for value in values]
