"""Draw samples of even width: mix the bands straight into the spectrum of half as many complex numbers, and transform.

A real image of even width W is W/2 complex numbers, ``z[m] = x[2m] + i x[2m+1]``, whose spectrum follows from the
image's, Y, coefficient by coefficient:

    Z(u, v) = Y(u, v) + conj Y(-u, W/2 - v) + i exp(2 pi i v / W) (Y(u, v) - conj Y(-u, W/2 - v)),   v = 0 .. W/2 - 1,

and ``z`` is the inverse transform of Z. (Transforms to real numbers begin with this.) torch copies nothing before a
transform from complex to complex numbers, where it copies all before one to real numbers, which may overwrite what it
reads; and the result needs no rearrangement. (Two samples in one complex transform would save that copy too, but need
another one to separate them, and make a sample's last bits depend on its partner's.)

A program's lanes are pairs of coefficients that are each other's partners, (u, v) and (-u, W/2 - v) with v <= W/4: they
are drawn and mixed as in ``band_mix``, to the same bits, and make the two numbers of their places. Both lie in memory
in a warp's order or against it, so accesses of 8 bytes fill whole sectors but at the ends of rows.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.band_samples import to_pixels
from .band_mix import band_mix, check_mix, describe, gains, mix, mix_inputs, mix_scales
from .bilinear import divide, inverse
from .launch import block_of, launch, rows_per_program
from .packing import pack, unpack
from .philox import split_seed


@triton.jit
def turned(column, width, eighth):
    """Compute ``i exp(2 pi i v / W)`` for 0 <= v <= W/4, to some ulp: Cephes' polynomials for an eighth of a turn."""
    far = 8 * column > width
    angle = tl.where(far, width - 4 * column, 4 * column).to(tl.float32) * eighth
    square = angle * angle
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * angle + angle
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = cosine * square * square - 0.5 * square + 1.0
    return -tl.where(far, cosine, sine), tl.where(far, sine, cosine)


@triton.jit(do_not_specialize=["rows", "run", "low_byte", "weight_stride", "channels", "height", "width"])
def _band_samples(
    spectrum_ptr,  # (B, C, H, W//2+1) complex64 as int64
    out_ptr,  # (P, C, H, W//2) complex64 as int64
    cutoff_ptr,  # (B,) float32
    weights_ptr,  # (B, 6) float32
    image_ids_ptr,  # (B,) int64
    image_index_ptr,  # (P,) int64
    samples_ptr,  # (P,) int64
    seed_ptr,  # () int64
    step_ptr,  # () int64
    rows,  # P
    run,  # rows per program
    low_byte,  # LOW_BYTE, explained in philox.py
    weight_stride,
    channels,
    height,
    width,
    noise_scale,  # sqrt(1.5 * H * W)
    own_scale,  # sqrt(3 * H * W), for coefficients that are their own conjugates
    row_scale,  # short / H
    column_scale,  # short / W
    eighth,  # pi / 2 / W
    SHARED: tl.constexpr,
    SHAPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    long = width // 2  # of a row of the result
    quarter = width // 4 + 1
    blocks = tl.cdiv(height * quarter, BLOCK)
    program = tl.program_id(0)
    channel = program // blocks % channels
    first = program // blocks // channels * run

    # Once per program: the pairs, [BLOCK].
    lane = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = lane < height * quarter
    row, column = divide(lane, quarter, inverse(quarter))
    twin_row = tl.where(row == 0, 0, height - row)
    twin_column = long - column
    place = row * (long + 1) + column
    twin_place = twin_row * (long + 1) + twin_column
    index, scale_re, scale_im, squared = describe(
        row, column, height, width, noise_scale, own_scale, row_scale, column_scale, SHAPE
    )
    twin_index, twin_scale_re, twin_scale_im, twin_squared = describe(
        twin_row, twin_column, height, width, noise_scale, own_scale, row_scale, column_scale, SHAPE
    )
    turn_re, turn_im = turned(column, width, eighth)
    goal = row * long + column
    twin_goal = twin_row * long + twin_column
    # The twin of column 0 is beyond the result, and column W/4 has its twins among its own.
    has_twin = inside & (column > 0) & (4 * column < width)
    # Scalars.
    k0, k1 = split_seed(tl.load(seed_ptr))
    step = tl.load(step_ptr).to(tl.uint32)
    mask = low_byte.to(tl.uint32, bitcast=True)

    image = tl.full((), -1, tl.int32)
    name = tl.full((), 0, tl.uint32)
    # [BLOCK]
    x_re = tl.zeros((BLOCK,), tl.float32)
    x_im = x_re
    noise_re = x_re
    noise_im = x_re
    base = x_re
    low_gain = x_re
    high_gain = x_re
    twin_x_re = x_re
    twin_x_im = x_re
    twin_noise_re = x_re
    twin_noise_im = x_re
    twin_base = x_re
    twin_low_gain = x_re
    twin_high_gain = x_re
    image_index_ptr += first
    samples_ptr += first
    out_ptr += (first.to(tl.int64) * channels + channel) * height * long
    jump = channels.to(tl.int64) * height * long
    for _ in range(tl.minimum(run, rows - first)):
        wanted = tl.load(image_index_ptr).to(tl.int32)
        if wanted != image:
            # Once per image: the spectrum, and the weights times the masks.
            image = wanted
            where = image.to(tl.int64)
            name = tl.load(image_ids_ptr + where).to(tl.uint32)
            plane = spectrum_ptr + (where * channels + channel) * height * (long + 1)
            weights = weights_ptr + where * weight_stride
            cutoff = tl.load(cutoff_ptr + where)
            sigma = tl.load(weights + 5)
            # [BLOCK]
            x_re, x_im = unpack(tl.load(plane + place, mask=inside, other=0))
            twin_x_re, twin_x_im = unpack(tl.load(plane + twin_place, mask=inside, other=0))
            base, low_gain, high_gain = gains(squared, cutoff, weights, height, width, SHARED, SHAPE)
            twin_base, twin_low_gain, twin_high_gain = gains(
                twin_squared, cutoff, weights, height, width, SHARED, SHAPE
            )
            noise_re = sigma * scale_re
            noise_im = sigma * scale_im
            twin_noise_re = sigma * twin_scale_re
            twin_noise_im = sigma * twin_scale_im
        # Once per row: the counter is a scalar, all that follows is [BLOCK].
        counter = (channel + channels * tl.load(samples_ptr)).to(tl.uint32)
        y_re, y_im = mix(
            index, counter, step, name, k0, k1, mask,
            x_re, x_im, noise_re, noise_im, base, low_gain, high_gain, SHARED,
        )  # fmt: skip
        twin_re, twin_im = mix(
            twin_index, counter, step, name, k0, k1, mask,
            twin_x_re, twin_x_im, twin_noise_re, twin_noise_im, twin_base, twin_low_gain, twin_high_gain, SHARED,
        )  # fmt: skip
        sum_re = y_re + twin_re
        sum_im = y_im - twin_im
        less_re = y_re - twin_re
        less_im = y_im + twin_im
        turned_re = tl.fma(turn_re, less_re, -(turn_im * less_im))
        turned_im = tl.fma(turn_re, less_im, turn_im * less_re)
        tl.store(out_ptr + goal, pack(sum_re + turned_re, sum_im + turned_im), mask=inside)
        tl.store(out_ptr + twin_goal, pack(sum_re - turned_re, turned_im - sum_im), mask=has_twin)
        image_index_ptr += 1
        samples_ptr += 1
        out_ptr += jump


def band_samples(
    spectrum: Tensor,
    cutoff: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
    width: int,
    shared_multiplier: bool = False,
    shape: str = "gaussian",
    *,
    block: int | None = None,
    run: int | None = None,
) -> Tensor:
    """Compute ``irfft2(band_mix(...), norm="forward")``, of an odd width by these two steps.

    Args:
        spectrum: X, (B, C, H, W//2+1), complex64, unscaled ``rfft2`` of real images.
        cutoff: (B,) float32.
        weights: (B, 6) float32.
        image_ids: (B,) int64.
        image_index: (P,) int64 in [0, B).
        samples: (P,) int64.
        seed: () int64.
        step: () int64.
        width: W of the images.
        shared_multiplier: use xiL for both bands.
        shape: of L.
        block: pairs of coefficients per program (of an odd width, coefficients); changes no bit of the result.
        run: rows per program; changes no bit of the result.

    Returns:
        (P, C, H, W), float32, contiguous.

    Raises:
        TypeError: as ``band_mix``.
        ValueError: an unknown shape.
    """
    check_mix(spectrum, cutoff, weights, shape)
    if width % 2:
        named = (image_ids, image_index, samples, seed, step)
        return to_pixels(
            band_mix(spectrum, cutoff, weights, *named, width, shared_multiplier, shape, block=block, run=run), width
        )
    _, channels, height, _ = spectrum.shape
    rows = len(image_index)
    parts = torch.view_as_real(spectrum.resolve_conj().contiguous()).view(torch.int64)
    out = torch.empty((rows, channels, height, width // 2), dtype=spectrum.dtype, device=spectrum.device)
    block = block or block_of(1, 4) // 2
    blocks = triton.cdiv(height * (width // 4 + 1), block)
    if run is None:
        run = rows_per_program(rows, blocks * channels)
    launch(
        _band_samples,
        blocks * channels * triton.cdiv(rows, run),
        parts,
        torch.view_as_real(out).view(torch.int64),
        *mix_inputs(cutoff, weights, image_ids, image_index, samples, seed, step, run, channels, height, width),
        *mix_scales(height, width),
        math.pi / 2 / width,
        like=spectrum,
        warps=4,
        SHARED=shared_multiplier,
        SHAPE=shape,
        BLOCK=block,
    )
    if not out.numel():
        return out.new_empty((rows, channels, height, width), dtype=torch.float32)
    return torch.view_as_real(torch.fft.ifft2(out, norm="forward")).flatten(-2)
