"""Find the energy cut-off in three launches, of which only the first touches the spectrum.

Why not one fused kernel. A shell is a ring through the whole plane: of 224 px, 56 programs share an image, and none
knows a shell's energy before all are done. One launch would need floating-point atomics, whose order is not fixed, and
with it the sum's last bits and now and then the cut-off; or one program per image, which leaves most of a GPU idle; or
a barrier among all programs, which Triton does not have. So the sums meet in memory between launches. It happens once
per call, not in every step, and the second and third launch read a hundredth of what the first one reads.

(1) A program owns a tile of 16 x 32 coefficients, reads it once for every channel, and writes the energy of each shell
that crosses the tile: its diagonal is 34.4 long, so at most 36 shells do, whatever the image. For three channels that
scratch is about 1% of the spectrum. (2) For a run of shells, a program adds the tiles in a fixed order. (3) A program
per image adds the shells up and finds the first radius. Every order is fixed by the image's size alone: the same to the
bit from run to run, in every batch.

Tiles are summed in float32, everything after that in float64 (a few thousand additions), and the threshold is
compared as in the reference: energies that float32 holds give its very cut-off, ties included; others can differ only
where the share at a shell is within a few float32 ulp of tau. Accesses have 8 bytes, one coefficient: a row has
W//2+1 of them, an odd number for the usual widths, so every other row starts 8 bytes off.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .packing import unpack
from .radius import on_edge, shell_index, signed_frequency

ROWS, COLUMNS = 16, 32
"""A tile: one warp, which adds up a shell without a barrier, and 16 coefficients per thread in registers."""

BINS = 36
"""Shells a tile has room for: over its diagonal the radius grows by at most sqrt(15^2 + 31^2) = 34.4."""

MAX_SIDE = 32768
"""Longest side for which the squares of ``shell_index`` fit into 64 bits."""


@triton.jit(do_not_specialize=["channels", "height", "width"])
def _tile_energy(
    spectrum_ptr,  # (B, C, H, W//2+1) complex64 as int64
    energy_ptr,  # (B, tiles, BINS) float32
    lowest_ptr,  # (tiles,) int32, the shell of a tile's first bin
    used_ptr,  # (tiles,) int32, how many bins a tile uses
    channels,
    height,
    width,
    INCLUDE_DC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BINS: tl.constexpr,
):
    half = width // 2 + 1
    across = tl.cdiv(half, COLUMNS)
    tiles = tl.cdiv(height, ROWS) * across
    tile = tl.program_id(0) % tiles
    image = (tl.program_id(0) // tiles).to(tl.int64)
    row = tile // across * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    column = tile % across * COLUMNS + tl.arange(0, COLUMNS)[None, :]  # [1, COLUMNS]
    # [ROWS, COLUMNS]
    inside = (row < height) & (column < half)
    place = row * half + column
    power = tl.zeros((ROWS, COLUMNS), tl.float32)
    for channel in range(channels):
        plane = spectrum_ptr + (image * channels + channel) * height * half
        real, imaginary = unpack(tl.load(plane + place, mask=inside, other=0))
        power += real * real + imaginary * imaginary
    power = tl.where(on_edge(column, width), power, 2 * power)
    if not INCLUDE_DC:
        power = tl.where(place == 0, 0.0, power)

    frequency = tl.abs(signed_frequency(row, height))  # [ROWS, 1]
    shell = shell_index(frequency, column, height, width)  # [ROWS, COLUMNS]
    # The radius grows with |frequency| and column, so the corner next to DC has the lowest shell.
    nearest = tl.min(tl.where(row < height, frequency, height))
    lowest = shell_index(nearest, tile % across * COLUMNS, height, width)
    used = tl.max(tl.where(inside, shell, 0)) - lowest + 1
    tl.store(lowest_ptr + tile, lowest)  # every image's program writes the same
    tl.store(used_ptr + tile, used)
    energy_ptr += (image * tiles + tile) * BINS
    for k in range(used):
        tl.store(energy_ptr + k, tl.sum(tl.where(shell == lowest + k, power, 0.0)))


@triton.jit(do_not_specialize=["tiles", "shells"])
def _shell_energy(
    tile_energy_ptr,  # (B, tiles, BINS) float32
    lowest_ptr,  # (tiles,) int32
    used_ptr,  # (tiles,) int32
    energy_ptr,  # (B, K) float64
    tiles,
    shells,  # K
    BINS: tl.constexpr,
    TILES: tl.constexpr,
    SHELLS: tl.constexpr,
):
    blocks = tl.cdiv(shells, SHELLS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    shell = tl.program_id(0) % blocks * SHELLS + tl.arange(0, SHELLS)  # [SHELLS]
    total = tl.zeros((TILES, SHELLS), tl.float64)
    for first in range(0, tiles, TILES):
        # tile, lowest and used: [TILES]; the others: [TILES, SHELLS]
        tile = first + tl.arange(0, TILES)
        lowest = tl.load(lowest_ptr + tile, mask=tile < tiles, other=0)
        bins = shell[None, :] - lowest[:, None]
        used = tl.load(used_ptr + tile, mask=tile < tiles, other=0)
        there = (bins >= 0) & (bins < used[:, None])
        place = (image * tiles + tile[:, None]) * BINS + bins
        total += tl.load(tile_energy_ptr + place, mask=there, other=0.0).to(tl.float64)
    tl.store(energy_ptr + image * shells + shell, tl.sum(total, axis=0), mask=shell < shells)


@triton.jit(do_not_specialize=["tau_bits", "shells"])
def _first_radius(
    energy_ptr,  # (B, K) float64
    cutoff_ptr,  # (B,) float32
    tau_bits,  # tau, a float64, as int64: Triton passes numbers with a point as float32
    shells,  # K
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0).to(tl.int64)
    # [BLOCK]
    shell = tl.arange(0, BLOCK)
    energy = tl.load(energy_ptr + image * shells + shell, mask=shell < shells, other=0.0)
    cumulative = tl.cumsum(energy, 0)
    total = tl.sum(tl.where(shell == shells - 1, cumulative, 0.0))
    # From the last shell with any energy on, the disc holds everything, however the scan rounded.
    last = tl.max(tl.where(energy > 0, shell, 0))
    reached = (cumulative >= tau_bits.to(tl.int64).to(tl.float64, bitcast=True) * total) | (shell >= last)
    first = tl.min(tl.where(reached, shell, BLOCK))  # a scalar, as total and last
    # NaN reaches nothing, as in the reference: 1.
    first = tl.where(total >= 0, first, 1)
    tl.store(cutoff_ptr + image, tl.maximum(first, 1).to(tl.float32))


def energy_cutoff(spectrum: Tensor, width: int, tau: float = 0.9, include_dc: bool = True) -> Tensor:
    """Find ``min{k : sum_{j<=k} E(j) >= tau * sum_j E(j)}``, at least 1.

    Args:
        spectrum: (B, C, H, W//2+1), complex64, unscaled ``rfft2`` of the images.
        width: W of the images, pixels.
        tau: share of the energy, in (0, 1].
        include_dc: whether the DC coefficient counts.

    Returns:
        (B,) float32, whole numbers, cycles over the shorter side. Images without energy give 1.

    Raises:
        TypeError: ``spectrum`` is not complex64.
        ValueError: a side is longer than ``MAX_SIDE``.
    """
    if spectrum.dtype != torch.complex64:
        raise TypeError(f"the Triton kernel energy_cutoff takes a complex64 spectrum, got {spectrum.dtype}")
    batch, channels, height, half = spectrum.shape
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"energy_cutoff takes images of at most {MAX_SIDE} px a side, got {height} x {width}")
    parts = torch.view_as_real(spectrum.resolve_conj().contiguous()).view(torch.int64)
    tiles = triton.cdiv(height, ROWS) * triton.cdiv(half, COLUMNS)
    shells = _largest_shell(height, width) + 1
    tile_energy = torch.empty((batch, tiles, BINS), dtype=torch.float32, device=spectrum.device)
    lowest = torch.empty(tiles, dtype=torch.int32, device=spectrum.device)
    used = torch.empty_like(lowest)
    energy = torch.empty((batch, shells), dtype=torch.float64, device=spectrum.device)
    cutoff = torch.empty(batch, dtype=torch.float32, device=spectrum.device)
    launch(
        _tile_energy,
        batch * tiles,
        parts,
        tile_energy,
        lowest,
        used,
        channels,
        height,
        width,
        like=spectrum,
        warps=1,
        INCLUDE_DC=include_dc,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        BINS=BINS,
    )
    launch(
        _shell_energy,
        batch * triton.cdiv(shells, 32),
        tile_energy,
        lowest,
        used,
        energy,
        tiles,
        shells,
        like=spectrum,
        warps=4,
        BINS=BINS,
        TILES=32,
        SHELLS=32,
    )
    launch(
        _first_radius,
        batch,
        energy,
        cutoff,
        struct.unpack("<q", struct.pack("<d", tau))[0],
        shells,
        like=spectrum,
        warps=4,
        BLOCK=max(16, triton.next_power_of_2(shells)),
    )
    return cutoff


def _largest_shell(height: int, width: int) -> int:
    """Compute ``ceil(r)`` of the corner (H//2, W//2), in integers."""
    short, long = min(height, width), max(height, width)
    scaled = (short // 2 * long) ** 2 + (long // 2 * short) ** 2
    return -(-(math.isqrt(scaled - 1) + 1) // long) if scaled else 0
