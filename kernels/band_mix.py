"""Mix the bands in one kernel, with random numbers, symmetry and masks: read X, write Y, no other memory traffic.

Counted in sm_90 machine code (``benchmarks/kernels/compile_kernels.py``) the kernel is about as much arithmetic as it
is memory traffic, so every instruction per coefficient and sample counts. Three choices reduce their number:

- Everything that depends on the coefficient alone (frequencies, radius, Hermitian twin) is computed once per program,
  and what depends on the image besides (spectrum, masks, the six weights) once for each image that a program meets:
  it takes consecutive rows, which show one image or two where they come image by image. The loop over samples holds
  only the generator, four conversions, four fused multiply-adds and two multiplications.
- Beginning costs as much as two rows, so programs take many of them, as far as the GPU stays busy
  (``launch.rows_per_program``).
- The mix is rewritten for that: with ``base = g0 + L*aL + Hi*aH`` the gain is ``base + (L*bL)*xiL + (Hi*bH)*xiH``. It
  rounds less often than the reference and in other places: equal random words, values within a few ulp of the plane's
  largest.
- A complex number is loaded as one 64-bit integer, two of them in one 16-byte access. Only this layout, with the first
  axis of a block inside a thread, needs no exchange between threads; when H * (W//2+1) is odd every other plane
  starts 8 bytes off, and accesses are 8 bytes wide.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..checks import check_choice
from ..reference.radial_mask import SHAPES
from .bilinear import divide, inverse
from .launch import block_of, launch, rows_per_program, widest
from .packing import pack, unpack
from .philox import LOW_BYTE, UNIT, philox4x32, split_seed, to_integer
from .radial_mask import low_pass, mask_radius
from .radius import on_edge, signed_frequency


@triton.jit
def describe(row, column, height, width, noise_scale, own_scale, row_scale, column_scale, SHAPE: tl.constexpr):
    """Find whose words a coefficient takes, the scales of its noise's two parts, and its squared radius."""
    half = width // 2 + 1
    edge = on_edge(column, width)
    mirrored = edge & (2 * row > height)
    own_conjugate = edge & ((row == 0) | (2 * row == height))
    index = (tl.where(mirrored, height - row, row) * half + column).to(tl.uint32)
    scale_re = tl.where(own_conjugate, own_scale, noise_scale) * UNIT
    scale_im = tl.where(own_conjugate, 0.0, tl.where(mirrored, -noise_scale, noise_scale)) * UNIT
    squared = mask_radius(signed_frequency(row, height), column, height, width, row_scale, column_scale, SHAPE)
    return index, scale_re, scale_im, squared


@triton.jit
def gains(squared, cutoff, weights, height, width, SHARED: tl.constexpr, SHAPE: tl.constexpr):
    """Make of an image's masks and weights what the mix adds to its base, and multiplies the multipliers with."""
    low = low_pass(squared, cutoff, height, width, SHAPE)
    high = 1 - low
    base = tl.load(weights) + low * tl.load(weights + 1) + high * tl.load(weights + 3)
    low_gain = low * (tl.load(weights + 2) * UNIT)
    high_gain = high * (tl.load(weights + 4) * UNIT)
    if SHARED:
        low_gain += high_gain
    return base, low_gain, high_gain


@triton.jit
def mix(
    index, counter, step, name, k0, k1, mask,
    x_re, x_im, noise_re, noise_im, base, low_gain, high_gain, SHARED: tl.constexpr,
):  # fmt: skip
    """Draw a coefficient's words, and mix."""
    w0, w1, w2, w3 = philox4x32(index, counter, step, name, k0, k1)
    gain = tl.fma(low_gain, to_integer(w2, mask), base)
    if not SHARED:
        gain = tl.fma(high_gain, to_integer(w3, mask), gain)
    return tl.fma(noise_re, to_integer(w0, mask), x_re) * gain, tl.fma(noise_im, to_integer(w1, mask), x_im) * gain


@triton.jit(do_not_specialize=["rows", "run", "low_byte", "weight_stride", "channels", "height", "width", "groups"])
def _band_mix(
    spectrum_ptr,  # (B, C, K) complex64 as int64, K = H * (W//2+1)
    out_ptr,  # (P, C, K) complex64 as int64
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
    groups,  # K / GROUP
    noise_scale,  # sqrt(1.5 * H * W)
    own_scale,  # sqrt(3 * H * W), for coefficients that are their own conjugates
    row_scale,  # short / H
    column_scale,  # short / W
    SHARED: tl.constexpr,
    SHAPE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    half = width // 2 + 1
    count = groups * GROUP  # tells the compiler what K is divisible by, hence how wide it may load and store
    blocks = tl.cdiv(count, BLOCK)
    program = tl.program_id(0)
    channel = program // blocks % channels
    first = program // blocks // channels * run

    # Once per program: the coefficients, [GROUP, BLOCK // GROUP].
    lane = tl.arange(0, GROUP)[:, None] + GROUP * tl.arange(0, BLOCK // GROUP)[None, :]
    k = program % blocks * BLOCK + lane
    inside = k < count
    row, column = divide(k, half, inverse(half))
    index, scale_re, scale_im, squared = describe(
        row, column, height, width, noise_scale, own_scale, row_scale, column_scale, SHAPE
    )
    # Scalars.
    k0, k1 = split_seed(tl.load(seed_ptr))
    step = tl.load(step_ptr).to(tl.uint32)
    mask = low_byte.to(tl.uint32, bitcast=True)

    image = tl.full((), -1, tl.int32)
    name = tl.full((), 0, tl.uint32)
    # [GROUP, BLOCK // GROUP]
    x_re = tl.zeros((GROUP, BLOCK // GROUP), tl.float32)
    x_im = x_re
    noise_re = x_re
    noise_im = x_re
    base = x_re
    low_gain = x_re
    high_gain = x_re
    image_index_ptr += first
    samples_ptr += first
    out_ptr += (first.to(tl.int64) * channels + channel) * count
    jump = channels.to(tl.int64) * count
    for _ in range(tl.minimum(run, rows - first)):
        wanted = tl.load(image_index_ptr).to(tl.int32)
        if wanted != image:
            # Once per image: the spectrum, and the weights times the masks.
            image = wanted
            where = image.to(tl.int64)
            name = tl.load(image_ids_ptr + where).to(tl.uint32)
            plane = spectrum_ptr + (where * channels + channel) * count
            # [GROUP, BLOCK // GROUP]
            x_re, x_im = unpack(tl.load(plane + k, mask=inside, other=0))
            weights = weights_ptr + where * weight_stride
            base, low_gain, high_gain = gains(
                squared, tl.load(cutoff_ptr + where), weights, height, width, SHARED, SHAPE
            )
            sigma = tl.load(weights + 5)
            noise_re = sigma * scale_re
            noise_im = sigma * scale_im
        # Once per row: the counter is a scalar, the words and all that follows are [GROUP, BLOCK // GROUP].
        counter = (channel + channels * tl.load(samples_ptr)).to(tl.uint32)
        real, imaginary = mix(
            index, counter, step, name, k0, k1, mask,
            x_re, x_im, noise_re, noise_im, base, low_gain, high_gain, SHARED,
        )  # fmt: skip
        tl.store(out_ptr + k, pack(real, imaginary), mask=inside)
        image_index_ptr += 1
        samples_ptr += 1
        out_ptr += jump


def check_mix(spectrum: Tensor, cutoff: Tensor, weights: Tensor, shape: str) -> None:
    """Refuse what the kernels cannot mix: see ``band_mix``."""
    check_choice("shape", shape, SHAPES)
    if spectrum.dtype != torch.complex64 or cutoff.dtype != torch.float32 or weights.dtype != torch.float32:
        raise TypeError(
            "the Triton kernel band_mix takes a complex64 spectrum and float32 cut-offs and weights, "
            f"got {spectrum.dtype}, {cutoff.dtype} and {weights.dtype}"
        )


def mix_inputs(
    cutoff: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
    run: int,
    channels: int,
    height: int,
    width: int,
) -> tuple[Tensor | int, ...]:
    """List what kernels that mix take behind the spectra: the tensors, and the numbers up to the width."""
    if weights.stride(1) != 1:
        weights = weights.contiguous()
    rows, row_tensors = len(image_index), (image_ids.contiguous(), image_index.contiguous(), samples.contiguous())
    numbers = rows, run, LOW_BYTE, weights.stride(0), channels, height, width
    return cutoff.contiguous(), weights, *row_tensors, seed, step, *numbers


def mix_scales(height: int, width: int) -> tuple[float, ...]:
    """Compute the scales of the noise and of the two frequencies."""
    noise, short = math.sqrt(1.5 * height * width), min(height, width)
    return noise, noise * math.sqrt(2), short / height, short / width  # as in the reference: equal to the bit


def band_mix(
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
    """Compute ``Y = (X + sigma*N) * (g0 + L*(aL + bL*xiL) + Hi*(aH + bH*xiH))`` for P rows, (image, sample) pairs.

    Fastest when rows of one image follow each other; correct for any order.

    Args:
        spectrum: X, (B, C, H, W//2+1), complex64, unscaled ``rfft2`` of the current images.
        cutoff: (B,) float32, cut-off of the mask L in cycles over the shorter side, 1e-15 to 1e15.
        weights: (B, 6) float32, g0, aL, bL, aH, bH, sigma.
        image_ids: (B,) int64 in [0, 2^32): the images' names in the random stream.
        image_index: (P,) int64 in [0, B): the image of each row.
        samples: (P,) int64 in [0, 2^32/C): the sample number of each row.
        seed: () int64.
        step: () int64 in [0, 2^32).
        width: W of the images.
        shared_multiplier: use xiL for both bands (mode ``allpass``).
        shape: of L, as of ``radial_mask``.
        block: coefficients per program; changes no bit of the result.
        run: rows per program; changes no bit of the result.

    Returns:
        Y, (P, C, H, W//2+1), complex64, contiguous; its ``irfft2`` is the perturbed images.

    Raises:
        TypeError: ``spectrum`` is not complex64, or ``cutoff`` or ``weights`` not float32.
        ValueError: an unknown shape.
    """
    check_mix(spectrum, cutoff, weights, shape)
    _, channels, height, half = spectrum.shape
    rows, count = len(image_index), height * half
    parts = torch.view_as_real(spectrum.resolve_conj().contiguous()).view(torch.int64)
    out = torch.empty((rows, channels, height, half), dtype=spectrum.dtype, device=spectrum.device)
    out_parts = torch.view_as_real(out).view(torch.int64)
    group = widest(count, out_parts)
    block = block or block_of(group, 4)
    blocks = triton.cdiv(count, block)
    if run is None:
        run = rows_per_program(rows, blocks * channels)
    launch(
        _band_mix,
        blocks * channels * triton.cdiv(rows, run),
        parts,
        out_parts,
        *mix_inputs(cutoff, weights, image_ids, image_index, samples, seed, step, run, channels, height, width),
        count // group,
        *mix_scales(height, width),
        like=spectrum,
        warps=4,
        SHARED=shared_multiplier,
        SHAPE=shape,
        GROUP=group,
        BLOCK=block,
    )
    return out
