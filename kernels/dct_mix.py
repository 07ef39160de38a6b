"""Simulate spectra as AttEXplore does, in one kernel: read D from cache, write Y, no other memory traffic.

The baseline that FAMPE is compared with also runs on a kernel. It has no symmetry and no mask, so most of it is the
generator, of whose four words two are used, so that the numbers are those of the reference.
"""

# No `from __future__ import annotations` in kernel files: old Tritons do not know `tl.constexpr` written as a string.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block_of, launch, rows_per_program, widest
from .philox import philox4x32, split_seed, to_uniform


@triton.jit(do_not_specialize=["rows", "run", "weight_stride", "channels", "groups"])
def _dct_mix(
    spectrum_ptr,  # (B, C, K) float32, K = H * W
    out_ptr,  # (P, C, K) float32
    weights_ptr,  # (B, 2) float32: rho, sigma
    image_ids_ptr,  # (B,) int64
    image_index_ptr,  # (P,) int64
    samples_ptr,  # (P,) int64
    seed_ptr,  # () int64
    step_ptr,  # () int64
    rows,  # P
    run,  # rows per program
    weight_stride,
    channels,
    groups,  # K / GROUP
    deviation,  # sqrt(3): a U(-1, 1) has variance 1/3
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    count = groups * GROUP  # tells the compiler what K is divisible by, hence how wide it may load and store
    blocks = tl.cdiv(count, BLOCK)
    program = tl.program_id(0)
    channel = program // blocks % channels
    first = program // blocks // channels * run
    # [GROUP, BLOCK // GROUP]
    lane = tl.arange(0, GROUP)[:, None] + GROUP * tl.arange(0, BLOCK // GROUP)[None, :]
    k = program % blocks * BLOCK + lane
    inside = k < count
    index = k.to(tl.uint32)
    # Scalars.
    k0, k1 = split_seed(tl.load(seed_ptr))
    step = tl.load(step_ptr).to(tl.uint32)

    image = tl.full((), -1, tl.int32)
    name = tl.full((), 0, tl.uint32)
    rho = tl.full((), 0, tl.float32)
    scale = rho
    values = tl.zeros((GROUP, BLOCK // GROUP), tl.float32)  # [GROUP, BLOCK // GROUP]
    image_index_ptr += first
    samples_ptr += first
    out_ptr += (first.to(tl.int64) * channels + channel) * count
    jump = channels.to(tl.int64) * count
    for _ in range(tl.minimum(run, rows - first)):
        wanted = tl.load(image_index_ptr).to(tl.int32)
        if wanted != image:
            image = wanted
            where = image.to(tl.int64)
            name = tl.load(image_ids_ptr + where).to(tl.uint32)
            values = tl.load(spectrum_ptr + (where * channels + channel) * count + k, mask=inside, other=0.0)
            rho = tl.load(weights_ptr + where * weight_stride)
            scale = tl.load(weights_ptr + where * weight_stride + 1) * deviation
        counter = (channel + channels * tl.load(samples_ptr)).to(tl.uint32)
        # [GROUP, BLOCK // GROUP]
        w0, _w1, w2, _w3 = philox4x32(index, counter, step, name, k0, k1)
        mixed = tl.fma(to_uniform(w0), scale, values) * tl.fma(to_uniform(w2), rho, 1.0)
        tl.store(out_ptr + k, mixed, mask=inside)
        image_index_ptr += 1
        samples_ptr += 1
        out_ptr += jump


def dct_mix(
    spectrum: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
    *,
    block: int | None = None,
    run: int | None = None,
) -> Tensor:
    """Compute ``Y = (D + sigma*N) * (1 + rho*xi)`` for P rows, N white noise of unit variance, xi ~ U(-1, 1).

    Fastest when rows of one image follow each other; correct for any order.

    Args:
        spectrum: D, (B, C, H, W), float32, orthonormal DCT-II of the current images.
        weights: (B, 2), float32, rho and sigma.
        image_ids: (B,) int64 in [0, 2^32): the images' names in the random stream.
        image_index: (P,) int64 in [0, B): the image of each row.
        samples: (P,) int64 in [0, 2^32/C): the sample number of each row.
        seed: () int64.
        step: () int64 in [0, 2^32).
        block: coefficients per program; changes no bit of the result.
        run: rows per program; changes no bit of the result.

    Returns:
        Y, (P, C, H, W), float32, contiguous.

    Raises:
        TypeError: ``spectrum`` or ``weights`` is not float32.
    """
    if spectrum.dtype != torch.float32 or weights.dtype != torch.float32:
        raise TypeError(
            f"the Triton kernel dct_mix takes a float32 spectrum and weights, got {spectrum.dtype} and {weights.dtype}"
        )
    _, channels, height, width = spectrum.shape
    rows, count = len(image_index), height * width
    spectrum = spectrum.contiguous()
    if weights.stride(1) != 1:
        weights = weights.contiguous()
    out = torch.empty((rows, channels, height, width), dtype=spectrum.dtype, device=spectrum.device)
    group = widest(count, out)
    block = block or block_of(group, 4)
    blocks = triton.cdiv(count, block)
    if run is None:
        run = rows_per_program(rows, blocks * channels)
    launch(
        _dct_mix,
        blocks * channels * triton.cdiv(rows, run),
        spectrum,
        out,
        weights,
        image_ids.contiguous(),
        image_index.contiguous(),
        samples.contiguous(),
        seed,
        step,
        rows,
        run,
        weights.stride(0),
        channels,
        count // group,
        math.sqrt(3),
        like=spectrum,
        warps=4,
        GROUP=group,
        BLOCK=block,
    )
    return out
