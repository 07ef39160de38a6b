"""Divide the frequencies of an image size into radial bands, and filter images by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_batch, check_choice, check_count, check_cutoff
from ..reference.radius import multiplicity, signed_frequencies
from .coefficients import check_half_spectrum, product_per_frequency

Spacing = Literal["width", "energy"]


def check_spacing(spacing: object) -> Spacing:
    """Check that a spacing is ``width`` or ``energy``.

    Raises:
        ValueError: another value.
    """
    found: Spacing = check_choice("spacing", spacing, get_args(Spacing))
    return found


@dataclass(frozen=True, eq=False)
class RadialBands:
    """K rings ``edges[k] < r <= edges[k + 1]`` around DC, common to all images or separate for each of B images.

    Every frequency up to the corners of the spectrum is in exactly one ring, apart from DC, which is in the first or in
    none. The ring is decided in integers, without rounding. r is in cycles over the shorter
    side (``reference.radius``).

    Attributes:
        size: (H, W), pixels.
        edges: (1 or B, K + 1) float64 on the CPU, radii; equal ones enclose an empty ring (or DC
            alone). The last is the corner's.
        index: (1 or B, H, W//2 + 1) int64, the ring of each coefficient of the half spectrum, -1 in none.
    """

    size: tuple[int, int]
    edges: Tensor
    index: Tensor

    @property
    def count(self) -> int:
        """Number of bands, K."""
        return self.edges.shape[1] - 1

    def coefficients(self) -> Tensor:
        """Count each ring's coefficients of the full spectrum, (1 or B, K) int64, on the index's device."""
        weight = multiplicity(self.size[1], self.index.device).expand_as(self.index)
        return _sums_by_index(self.index, weight, self.count)

    def energy(self, images: Tensor) -> Tensor:
        """Measure the energy of images in each ring: ``sum |X|^2 / (HW)`` over its coefficients and the channels.

        By Parseval's theorem these energies, and DC's if no ring has it, sum to ``sum x^2`` over pixels and channels.

        Args:
            images: (B, C, H, W) real floating-point, of this size, any values.

        Returns:
            (B, K) float64 on the CPU.

        Raises:
            TypeError: not a real floating-point tensor.
            ValueError: images of another size or number.
        """
        self._check(images)
        return self.sums(product_per_frequency(images, images))

    def sums(self, values: Tensor) -> Tensor:
        """Sum values of the half spectrum, (B, H, W//2+1), in each ring: (B, K) float64 on the CPU.

        Raises:
            ValueError: values of another size.
        """
        found = check_half_spectrum(values, self.size).detach().cpu().double()
        return _sums_by_index(self.index.cpu().expand(len(found), -1, -1), found, self.count)

    def products(self, first: Tensor, second: Tensor) -> Tensor:
        """Compute the scalar product of two batches in each ring; for a batch with itself it is ``energy``.

        Args:
            first: (B, C, H, W) real floating-point, of this size, any values.
            second: (B, C, H, W), likewise.

        Returns:
            (B, K) float64 on the CPU; with DC's product, if no ring has it, they sum to that of the pixels.

        Raises:
            TypeError: not real floating-point tensors.
            ValueError: batches of another size or number.
        """
        self._check(first)
        self._check(second)
        return self.sums(product_per_frequency(first, second))

    def project(self, images: Tensor, band: int | Tensor) -> Tensor:
        """Project images orthogonally onto the frequencies of one ring.

        Args:
            images: (B, C, H, W) real floating-point, of this size, any values; float16 and bfloat16 are filtered in
                float32.
            band: one ring for all images, or a tensor (B,) of ints.

        Returns:
            (B, C, H, W) in the images' dtype; differentiable.

        Raises:
            TypeError: not a real floating-point tensor.
            ValueError: images of another size or number, or a ring out of range.
        """
        self._check(images)
        chosen = torch.as_tensor(band, device=self.index.device)
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.count:
            raise ValueError(f"band must be in 0 ... {self.count - 1}, got {band}")
        if not len(images):
            return images.clone()
        wide = images if images.dtype == torch.float64 else images.float()
        keep = (self.index == chosen.reshape(-1, 1, 1)).to(images.device)
        projected: Tensor = torch.fft.irfft2(torch.fft.rfft2(wide) * keep[:, None], s=self.size)
        return projected.to(images.dtype)

    def of(self, image_index: Tensor) -> RadialBands:
        """Select the rings of some of the images, (P,) int64; common rings stay as they are."""
        if len(self.edges) == 1:
            return self
        return RadialBands(self.size, self.edges[image_index.cpu()], self.index[image_index.to(self.index.device)])

    def _check(self, images: object) -> None:
        batch = check_batch("images", images)
        if tuple(batch.shape[-2:]) != self.size:
            height, width = self.size
            raise ValueError(f"these bands belong to {height} x {width} pixels, got shape {tuple(batch.shape)}")
        if len(self.edges) not in (1, len(batch)):
            raise ValueError(f"these bands belong to {len(self.edges)} images, got {len(batch)}")


def equal_width_bands(
    height: int, width: int, count: int, *, include_dc: bool = False, device: torch.device | str = "cpu"
) -> RadialBands:
    """Split the spectrum into ``count`` rings of equal width, from DC to its corner.

    Args:
        height: H, pixels.
        width: W, pixels.
        count: K.
        include_dc: put DC into the first ring; otherwise no ring has it. Removing it changes the mean brightness.
        device: device of the index.

    Raises:
        TypeError: a number that is not whole.
        ValueError: a number below 1, or so many rings that one would have no frequency.
    """
    height, width = check_count("height", height), check_count("width", width)
    count = check_count("bands", count)
    grid = _grid(height, width)
    corner = int(grid.distinct[-1])
    # r <= (k/K) * corner, squared and times long^2: whole numbers on both sides.
    limits = [k * k * corner // count**2 for k in range(1, count + 1)]
    bands = _rings(
        grid, torch.tensor([limits], device="cpu"), [[k / count * grid.radius_of(corner) for k in range(count + 1)]]
    )
    held = bands.coefficients()[0]
    if bool((held == 0).any()):
        raise ValueError(
            f"{count} bands of equal width are too many for {height} x {width} pixels: band "
            f"{int((held == 0).nonzero()[0])} would hold no frequency"
        )
    return _finished(bands, include_dc, device)


def bands_between(
    height: int,
    width: int,
    edges: Sequence[float],
    *,
    include_dc: bool = False,
    device: torch.device | str = "cpu",
) -> RadialBands:
    """Split the spectrum into rings at given edges; the frequencies beyond the last edge form one more ring.

    Args:
        height: H, pixels.
        width: W, pixels.
        edges: radii above 0 in cycles over the shorter side, ascending: ``[15, 40]`` makes the rings (0, 15], (15, 40]
            and all beyond.
        include_dc: put DC into the first ring.
        device: device of the index.

    Raises:
        TypeError: an edge that is not a number.
        ValueError: edges that are not ascending, not finite, not above 0, or none.
    """
    height, width = check_count("height", height), check_count("width", width)
    radii = [check_cutoff("edges", edge) for edge in edges]
    if not radii or radii[0] <= 0 or any(a >= b for a, b in pairwise(radii)):
        raise ValueError(f"edges must be ascending radii above 0, got {list(edges)}")
    grid = _grid(height, width)
    corner = int(grid.distinct[-1])
    # With a tolerance for rounded radii: a radius equal to the edge belongs to the inner ring.
    limits = [int(Fraction(radius) ** 2 * grid.long**2 * (1 + Fraction(1, 10**12))) for radius in radii]
    inside = [(limit, radius) for limit, radius in zip(limits, radii, strict=True) if limit < corner]
    limits, radii = [limit for limit, _ in inside], [radius for _, radius in inside]
    bands = _rings(grid, torch.tensor([[*limits, corner]], device="cpu"), [[0.0, *radii, grid.radius_of(corner)]])
    return _finished(bands, include_dc, device)


def octave_bands(height: int, width: int, *, include_dc: bool = False) -> RadialBands:
    """Split the spectrum into octaves: radii up to 2, from 2 to 4, from 4 to 8 and so on to its corner.

    Args:
        height: H, pixels.
        width: W, pixels.
        include_dc: put DC into the first ring.

    Raises:
        TypeError: a number that is not whole.
        ValueError: a number below 1.
    """
    highest = min(check_count("height", height), check_count("width", width)) // 2
    octaves = [2.0**k for k in range(1, max(2, highest.bit_length()))]
    return bands_between(height, width, octaves, include_dc=include_dc)


NAMES_OF_THREE = ("low", "middle", "high")
"""The rings of ``three_bands``."""


def three_bands(height: int, width: int, edges: tuple[float, float] | None = None) -> RadialBands:
    """Split the spectrum into a low band with DC, a middle and a high band.

    Args:
        height: H, pixels.
        width: W, pixels.
        edges: radii between the bands in cycles over the shorter side; None is 1/16 and 1/6 of its pixels, for waves
            longer than 16 and shorter than 6 pixels, but at least 1 and 2.

    Raises:
        TypeError: an edge that is not a number.
        ValueError: edges that are not ascending and above 0, or a band that would have no frequency but DC.
    """
    shorter = min(check_count("height", height), check_count("width", width))
    between = (max(1.0, shorter / 16), max(2.0, shorter / 6)) if edges is None else edges
    bands = bands_between(height, width, between)
    held = [*bands.coefficients()[0].tolist(), 0]
    if 0 in held[:3]:
        name, limits = NAMES_OF_THREE[held.index(0)], (0, *between, float(bands.edges[0, -1]))
        low, high = limits[held.index(0)], limits[held.index(0) + 1]
        raise ValueError(
            f"the {name} band, radii from {low:g} to {high:g}, would hold no frequency of {height} x {width} pixels"
        )
    return bands_between(height, width, between, include_dc=True)


def equal_energy_bands(images: Tensor, count: int, *, include_dc: bool = False) -> RadialBands:
    """Split each image's spectrum into ``count`` rings with energies as equal as its frequencies allow.

    Edge k is the smallest radius that contains at least the share k/K, so a ring's energy differs from 1/K by less than
    the energy at a single radius (at each of its two edges). If a single radius has more than 1/K, as the lowest of a
    photograph may, some rings are empty. A constant image gets rings of equal width.

    Args:
        images: (B, C, H, W) real floating-point, finite, any values; their energy is summed over the channels.
        count: K.
        include_dc: put DC into the first ring and count its energy, the largest part of a photograph's.

    Returns:
        Rings (B, ...), the index on the images' device.

    Raises:
        TypeError: not a real floating-point tensor, or a count that is not whole.
        ValueError: not (B, C, H, W), NaN or infinity, or a count below 1 or above the number of distinct radii.
    """
    if not bool(check_batch("images", images).isfinite().all()):
        raise ValueError("images hold NaN or infinity; expected finite values")
    count = check_count("bands", count)
    height, width = images.shape[-2:]
    grid = _grid(height, width)
    if count > len(grid.distinct) - 1:
        raise ValueError(f"{height} x {width} pixels have {len(grid.distinct) - 1} radii, too few for {count} bands")
    power = product_per_frequency(images, images).flatten(1)
    if not include_dc:
        power[:, 0] = 0
    per_radius = power.new_zeros(len(images), len(grid.distinct))
    per_radius.scatter_add_(1, grid.place.flatten().expand(len(images), -1), power)
    inside = per_radius.cumsum(1)
    # Set edge K to the corner and find constant images by their pixels, so that rounding decides neither.
    shares = inside[:, -1:] * (torch.arange(1, count, dtype=torch.float64, device="cpu") / count)
    places = torch.searchsorted(inside, shares)
    limits = torch.cat([grid.distinct[places], grid.distinct[-1:].expand(len(images), 1)], 1)
    edges = torch.cat(
        [torch.zeros(len(images), 1, dtype=torch.float64, device="cpu"), limits.double().sqrt() / grid.long], 1
    )
    flat = (images.detach().amax((-2, -1)) == images.detach().amin((-2, -1))).all(1).cpu()
    if bool(flat.any()):
        even = [k * k * int(grid.distinct[-1]) // count**2 for k in range(1, count + 1)]
        limits[flat] = torch.tensor(even, device="cpu")
        places = torch.arange(count + 1, dtype=torch.float64, device="cpu")
        edges[flat] = places / count * grid.radius_of(int(grid.distinct[-1]))
    return _finished(_rings(grid, limits, edges.tolist()), include_dc, images.device)


@dataclass(frozen=True, eq=False)
class _Grid:
    size: tuple[int, int]
    long: int
    scaled: Tensor
    """(H, W//2+1) int64: ``r^2 * long^2``."""
    distinct: Tensor
    """(R,) int64: its values, ascending from 0."""
    place: Tensor
    """(H, W//2+1) int64: where in ``distinct``."""

    def radius_of(self, scaled: int) -> float:
        return float(scaled**0.5 / self.long)


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> _Grid:
    short, long = min(height, width), max(height, width)
    with torch.inference_mode(False):  # cached for later calls outside this context, too
        rows, columns = signed_frequencies(height, width)
        along_short, along_long = (rows, columns) if height <= width else (columns, rows)
        scaled = along_short**2 * long**2 + along_long**2 * short**2
        distinct, place = torch.unique(scaled, return_inverse=True)
    return _Grid((height, width), long, scaled, distinct, place)


def _rings(grid: _Grid, limits: Tensor, edges: list[list[float]]) -> RadialBands:
    """Make rings whose outer edges are ``r^2 * long^2 <= limits``, (1 or B, K) int64 ascending, DC in the first."""
    scaled = grid.scaled.flatten().expand(len(limits), -1)
    index = torch.searchsorted(limits, scaled.contiguous()).view(len(limits), *grid.scaled.shape)
    radii = torch.tensor(edges, dtype=torch.float64, device="cpu").reshape(len(limits), limits.shape[1] + 1)
    return RadialBands(grid.size, radii, index)


def _finished(bands: RadialBands, include_dc: bool, device: torch.device | str) -> RadialBands:
    index = bands.index
    if not include_dc:
        index = index.clone()
        index[:, 0, 0] = -1
    return RadialBands(bands.size, bands.edges, index.to(device))


def _sums_by_index(index: Tensor, values: Tensor, count: int) -> Tensor:
    slots = (index + 1).flatten(1)  # slot 0: in no ring
    return values.new_zeros(len(values), count + 1).scatter_add_(1, slots, values.flatten(1))[:, 1:]
