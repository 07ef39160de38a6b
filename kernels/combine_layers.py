"""Combine evidence of several sizes in two launches: first the levels' sums, then every pixel of the result.

Per pixel 4 bytes are read for the mean, 4 again for the result (from the L2 cache, where the images fit), and 4
written; the layers are small, and a pixel's four cells of each come from the L1 cache. Pixels are read and written in
16 bytes where the width is a multiple of 4.

A program owns a tile. Its rows and columns lie in one dimension, so that compilers cannot choose one layout for pixels
and another for cells; a thread has few of either, and finds where each of them reads, and with which weight, once.

Every tile needs its image's means. The first launch sums layers and chunks of the pixels, in float64, and every tile
adds its image's few sums: to wait for a launch of its own would take longer. The layers' sizes and weights are
arguments, not a tensor, which would have to be copied to the device: ``MOST_LAYERS`` of each, the last ones unused. A
tile walks the layers in a loop, not unrolled: that takes 80 registers on sm_90 in place of 168, and one form serves any
number of layers.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.combine_layers import MOST_LAYERS, MOVE, SMALL, layer_sizes
from .bilinear import inverse, reciprocal, source_pixels
from .launch import launch, widest

CHUNK = 4096
"""Pixels that a program of the first launch sums, and cells of a layer that it sums at a time."""

TILE = 1024
"""Pixels of a tile of the second launch."""

_LAYERS = range(1, MOST_LAYERS + 1)
_SMALL, _LARGE = tl.constexpr(SMALL), tl.constexpr(1 / SMALL)
_UP, _DOWN = tl.constexpr(1 / MOVE), tl.constexpr(MOVE)


@triton.jit
def _pick(k, a0, a1, a2, a3, a4, a5, a6, a7):
    """Choose the k-th of eight scalars."""
    low = tl.where(k < 2, tl.where(k < 1, a0, a1), tl.where(k < 3, a2, a3))
    high = tl.where(k < 6, tl.where(k < 5, a4, a5), tl.where(k < 7, a6, a7))
    return tl.where(k < 4, low, high)


@triton.jit(do_not_specialize=["groups", "cells", "chunks", "layers", *(f"end_{k}" for k in _LAYERS)])
def _level_sums(
    pixels_ptr,  # (B, H * W) float32
    evidence_ptr,  # (B, K) float32
    sums_ptr,  # (B, chunks + layers) float64
    groups,  # H * W / GROUP
    cells,  # K
    chunks,  # of the pixels
    layers,
    end_1,  # of the layers' cells, running; 0 where there is none
    end_2,
    end_3,
    end_4,
    end_5,
    end_6,
    end_7,
    end_8,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
):
    pixels = groups * GROUP  # tells the compiler how wide it may load
    image = (tl.program_id(0) // (chunks + layers)).to(tl.int64)
    part = tl.program_id(0) % (chunks + layers)
    lane = tl.arange(0, CHUNK)  # [CHUNK]
    # Summed in float64: rounded to float32 in the end, the sum does not show in which order it was formed.
    total = tl.zeros((CHUNK,), tl.float64)
    if part < chunks:
        place = part * CHUNK + lane
        total += tl.load(pixels_ptr + image * pixels + place, mask=place < pixels, other=0.0).to(tl.float64)
    else:
        first = _pick(part - chunks, 0, end_1, end_2, end_3, end_4, end_5, end_6, end_7)
        end = _pick(part - chunks, end_1, end_2, end_3, end_4, end_5, end_6, end_7, end_8)
        for start in range(first, end, CHUNK):
            place = start + lane
            total += tl.load(evidence_ptr + image * cells + place, mask=place < end, other=0.0).to(tl.float64)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(total))


@triton.jit
def _over_mean(total, cells):
    """Find a power of two and a factor that, multiplied in turn, divide a level by its mean ``total / cells``."""
    power = tl.where(total < _SMALL, _UP, tl.where(total > _LARGE, _DOWN, 1.0))
    moved = tl.where(total == 0, 1.0, (total * power.to(tl.float64)).to(tl.float32))
    factor = tl.where(total == 0, 0.0, tl.div_rn(cells.to(tl.float32), moved))
    return power, tl.where(total < float("inf"), factor, float("nan"))  # NaN is not less either


@triton.jit(
    do_not_specialize=[
        "height",
        "groups",
        "cells",
        "chunks",
        "layers",
        *(f"{side}_{k}" for side in "hw" for k in _LAYERS),
    ]
)
def _combine_layers(
    pixels_ptr,  # (B, H, W) float32
    evidence_ptr,  # (B, K) float32
    sums_ptr,  # (B, chunks + layers) float64
    out_ptr,  # (B, H, W) float32
    height,
    groups,  # W / GROUP
    cells,  # K
    chunks,
    layers,
    floor,
    h_1,  # of the layers; 0 where there is none, as in the following
    h_2,
    h_3,
    h_4,
    h_5,
    h_6,
    h_7,
    h_8,
    w_1,
    w_2,
    w_3,
    w_4,
    w_5,
    w_6,
    w_7,
    w_8,
    weight_0,  # of the pixels
    weight_1,
    weight_2,
    weight_3,
    weight_4,
    weight_5,
    weight_6,
    weight_7,
    weight_8,
    gate_0,  # likewise
    gate_1,
    gate_2,
    gate_3,
    gate_4,
    gate_5,
    gate_6,
    gate_7,
    gate_8,
    PARTS: tl.constexpr,  # power of two, not less than chunks
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    width = groups * GROUP  # tells the compiler how wide it may load and store
    abreast = tl.cdiv(width, COLUMNS)
    tiles = abreast * tl.cdiv(height, TILE // COLUMNS)
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    lane = tl.arange(0, TILE)
    # From here on [TILE].
    y = tile // abreast * (TILE // COLUMNS) + lane // COLUMNS
    x = tile % abreast * COLUMNS + lane % COLUMNS
    inside = (y < height) & (x < width)
    place = y * width + x
    base = image * height * width
    level = tl.load(pixels_ptr + base + place, mask=inside, other=0.0)

    sums_ptr += image * (chunks + layers)
    part = tl.arange(0, PARTS)  # [PARTS]
    power, factor = _over_mean(tl.sum(tl.load(sums_ptr + part, mask=part < chunks, other=0.0)), height * width)
    level = level * power * factor
    total = weight_0 * level
    gate = floor + gate_0 * level

    # Positions outside read the last row or column.
    y = tl.minimum(y, height - 1)
    x = tl.minimum(x, width - 1)
    inverse_height = inverse(2 * height)
    inverse_width = inverse(2 * width)
    reciprocal_height = reciprocal(2 * height)
    reciprocal_width = reciprocal(2 * width)
    layer_ptr = evidence_ptr + image * cells
    sums_ptr += chunks
    for k in range(layers):
        h = _pick(k, h_1, h_2, h_3, h_4, h_5, h_6, h_7, h_8)
        w = _pick(k, w_1, w_2, w_3, w_4, w_5, w_6, w_7, w_8)
        weight = _pick(k, weight_1, weight_2, weight_3, weight_4, weight_5, weight_6, weight_7, weight_8)
        share = _pick(k, gate_1, gate_2, gate_3, gate_4, gate_5, gate_6, gate_7, gate_8)
        power, factor = _over_mean(tl.load(sums_ptr + k), h * w)
        y0, y1, down = source_pixels(y, h, height, inverse_height, reciprocal_height)
        x0, x1, across = source_pixels(x, w, width, inverse_width, reciprocal_width)
        # Power before, factor after the sum over a row's two cells: no product is too large or too small.
        left = (1 - across) * power
        right = across * power
        upper = (1 - down) * factor
        lower = down * factor
        above = tl.load(layer_ptr + y0 * w + x0) * left
        above = tl.fma(tl.load(layer_ptr + y0 * w + x1), right, above)
        below = tl.load(layer_ptr + y1 * w + x0) * left
        below = tl.fma(tl.load(layer_ptr + y1 * w + x1), right, below)
        level = tl.fma(below, lower, above * upper)
        total = tl.fma(level, weight, total)
        gate = tl.fma(level, share, gate)
        layer_ptr += h * w
    tl.store(out_ptr + base + place, total * gate, mask=inside)


def combine_layers(
    pixels: Tensor,
    evidence: Tensor,
    sizes: Sequence[int],
    weights: Sequence[float],
    gates: Sequence[float],
    floor: float,
    *,
    columns: int | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Compute ``(sum_l weights[l] * up(n_l)) * (floor + sum_l gates[l] * up(n_l))``; as the reference, in float32.

    Args:
        pixels: (B, H, W), float32, not negative: the evidence at the image's own size.
        evidence: (B, K), float32, not negative: the layers' evidence, row by row, one layer behind the other.
        sizes: h_1, w_1, h_2, w_2, ... of the layers, at most ``MOST_LAYERS`` of them, possibly none.
        weights: the weights in the sum, of the pixels and then of each layer.
        gates: the weights in the gate, likewise.
        floor: constant added to the gate.
        columns: of a tile, a power of two.
        chunk: pixels per program of the first launch, a power of two. Neither changes a bit of the result, except that
            the last bit of a mean, a float64 sum rounded, may do so once in some 10^8 images.

    Returns:
        (B, H, W), contiguous, float32.

    Raises:
        TypeError: a tensor is not float32.
        ValueError: shapes and lengths do not fit together.
    """
    layers = layer_sizes(pixels, evidence, sizes, weights, gates)
    if pixels.dtype != torch.float32:
        raise TypeError(f"the Triton kernel combine_layers takes float32 tensors, got {pixels.dtype}")
    pixels, evidence = pixels.contiguous(), evidence.contiguous()
    batch, height, width = pixels.shape
    cells = evidence.shape[1]
    chunks = triton.cdiv(height * width, chunk)
    sums = torch.empty((batch, chunks + len(layers)), dtype=torch.float64, device=pixels.device)
    spare = [0] * (MOST_LAYERS - len(layers))
    group = widest(height * width, pixels)
    launch(
        _level_sums,
        batch * (chunks + len(layers)),
        pixels,
        evidence,
        sums,
        height * width // group,
        cells,
        chunks,
        len(layers),
        *(sum(h * w for h, w in layers[:k]) for k in range(1, 1 + len(layers))),
        *spare,
        like=pixels,
        warps=8,
        GROUP=group,
        CHUNK=chunk,
    )
    out = torch.empty_like(pixels)
    group = widest(width, pixels)
    columns = columns or _columns(width)
    rows = TILE // columns
    launch(
        _combine_layers,
        batch * triton.cdiv(height, rows) * triton.cdiv(width, columns),
        pixels,
        evidence,
        sums,
        out,
        height,
        width // group,
        cells,
        chunks,
        len(layers),
        float(floor),
        *(height for height, _ in layers),
        *spare,
        *(width for _, width in layers),
        *spare,
        *map(float, weights),
        *map(float, spare),
        *map(float, gates),
        *map(float, spare),
        like=pixels,
        warps=4,
        PARTS=triton.next_power_of_2(chunks),
        GROUP=group,
        TILE=TILE,
        COLUMNS=columns,
    )
    return out


def _columns(width: int) -> int:
    """Choose the columns of a tile: those that waste fewest lanes, the widest on a tie."""
    return min((128, 64, 32), key=lambda columns: int(triton.cdiv(width, columns)) * columns)
