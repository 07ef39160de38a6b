"""The Triton kernels against the reference: on a GPU, or on the CPU through Triton's interpreter."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

triton = pytest.importorskip("triton", reason="the package triton is not installed")

import triton.language as tl  # noqa: E402

from fampe_fast.kernels import energy_cutoff as energy_cutoff_file  # noqa: E402
from fampe_fast.kernels.band_mix import band_mix  # noqa: E402
from fampe_fast.kernels.energy_cutoff import energy_cutoff  # noqa: E402
from fampe_fast.kernels.gradient_step import gradient_step  # noqa: E402
from fampe_fast.kernels.philox import ROUNDS, philox4x32, split_seed, to_uniform  # noqa: E402
from fampe_fast.kernels.pixel_mask import pixel_mask  # noqa: E402
from fampe_fast.kernels.radial_mask import radial_mask  # noqa: E402
from fampe_fast.kernels.radius import shell_index, signed_frequency  # noqa: E402
from fampe_fast.reference import band_mix as reference_band_mix  # noqa: E402
from fampe_fast.reference import energy_cutoff as reference_energy_cutoff  # noqa: E402
from fampe_fast.reference import gradient_step as reference_gradient_step  # noqa: E402
from fampe_fast.reference import philox as reference_philox  # noqa: E402
from fampe_fast.reference import pixel_mask as reference_pixel_mask  # noqa: E402
from fampe_fast.reference import radial_mask as reference_radial_mask  # noqa: E402
from fampe_fast.reference import radius as reference_radius  # noqa: E402

# Square, odd, wide, tall; 12 x 10 has even H and W with columns at Nyquist, 9 x 8 and 15 x 16 an odd H * (W//2+1).
SIZES = [(8, 8), (9, 9), (12, 20), (21, 10), (9, 8), (15, 16)]
EPSILON = torch.finfo(torch.float32).eps


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_as_accurate(got: Tensor, single: Tensor, exact: Tensor, ulps: float = 4) -> None:
    """The error of ``got`` is at most twice that of the float32 reference, or a few ulp where that is less.

    An ulp is that of the plane's largest value: what follows (an inverse transform, a mean over pixels) adds up the
    whole plane, so that is the scale on which an error counts; and an element's own error in the reference is anything
    from zero to an ulp by chance.
    """
    if exact.is_complex():
        got, single, exact = (torch.view_as_real(t).flatten(-2) for t in (got, single, exact))
    got, single, exact = (t.detach().cpu().double() for t in (got, single, exact))
    assert got.shape == exact.shape
    assert got.isfinite().all()
    dims = (-2, -1) if exact.ndim > 1 else (-1,)
    error, allowed = ((t - exact).abs().amax(dims) for t in (got, single))
    floor = ulps * EPSILON * exact.abs().amax(dims)
    bound = torch.maximum(2 * allowed, floor)
    assert (error <= bound).all(), f"error {error.max():.3g}, allowed {bound.min():.3g}"


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, or the most negative integer: whatever is not written shows."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor.fill_(math.nan)
        return tensor.fill_(torch.iinfo(tensor.dtype).min)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
        patch.setattr(torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs)))
        yield


# Random numbers -------------------------------------------------------------------------------------------------------


@triton.jit
def words_kernel(counter_ptr, seed_ptr, words_ptr, uniform_ptr, count, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    k = tl.arange(0, BLOCK)
    inside = k < count
    c0 = tl.load(counter_ptr + 4 * k, mask=inside, other=0).to(tl.uint32)
    c1 = tl.load(counter_ptr + 4 * k + 1, mask=inside, other=0).to(tl.uint32)
    c2 = tl.load(counter_ptr + 4 * k + 2, mask=inside, other=0).to(tl.uint32)
    c3 = tl.load(counter_ptr + 4 * k + 3, mask=inside, other=0).to(tl.uint32)
    k0, k1 = split_seed(tl.load(seed_ptr + k, mask=inside, other=0))
    w0, w1, w2, w3 = philox4x32(c0, c1, c2, c3, k0, k1, ROUNDS)
    tl.store(words_ptr + 4 * k, w0.to(tl.int64), mask=inside)
    tl.store(words_ptr + 4 * k + 1, w1.to(tl.int64), mask=inside)
    tl.store(words_ptr + 4 * k + 2, w2.to(tl.int64), mask=inside)
    tl.store(words_ptr + 4 * k + 3, w3.to(tl.int64), mask=inside)
    tl.store(uniform_ptr + k, to_uniform(w0), mask=inside)


@triton.jit
def uniform_kernel(words_ptr, uniform_ptr, count, BLOCK: tl.constexpr):
    k = tl.arange(0, BLOCK)
    tl.store(uniform_ptr + k, to_uniform(tl.load(words_ptr + k, mask=k < count).to(tl.uint32)), mask=k < count)


def words_of(counter: Tensor, seed: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    words, uniform = torch.empty_like(counter), torch.empty(len(counter), device=counter.device)
    block = triton.next_power_of_2(len(counter))
    words_kernel[(1,)](counter, seed, words, uniform, len(counter), ROUNDS=rounds, BLOCK=block)
    return words, uniform


# Random123 1.14.0, tests/kat_vectors: rounds, counter, key, words.
KNOWN = [
    (7, "00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, "00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize("rounds", [7, 10])
def test_philox_gives_the_published_words(rounds: int, device: torch.device) -> None:
    rows = [[[int(word, 16) for word in text.split()] for text in row[1:]] for row in KNOWN if row[0] == rounds]
    counter = torch.tensor([row[0] for row in rows], device=device)
    low, high = torch.tensor([row[1] for row in rows], device=device).unbind(1)
    words, _ = words_of(counter, low | (high << 32), rounds)  # the key as one signed 64-bit seed
    assert words.tolist() == [row[2] for row in rows]


def test_words_and_uniform_numbers_equal_the_reference_to_the_bit(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(1)
    counter = torch.randint(0, 2**32, (512, 4), generator=generator)
    counter[0], counter[1] = 0, 2**32 - 1
    seed = torch.randint(-(2**63), 2**63 - 1, (512,), generator=generator)
    seed[:4] = torch.tensor([0, -1, -(2**63), 2**63 - 1])
    words, uniform = words_of(counter.to(device), seed.to(device), reference_philox.ROUNDS)
    expected = torch.stack(reference_philox.philox4x32(counter.unbind(1), reference_philox.split_seed(seed)), 1)
    assert torch.equal(words.cpu(), expected)
    assert torch.equal(uniform.cpu(), reference_philox.to_uniform(expected[:, 0]))


def test_uniform_numbers_are_exact_at_the_ends_of_the_range(device: torch.device) -> None:
    words = torch.tensor([0, 255, 256, 2**31 - 1, 2**31, 2**32 - 256, 2**32 - 1], device=device)
    uniform = torch.empty(len(words), device=device)
    uniform_kernel[(1,)](words, uniform, len(words), BLOCK=8)
    assert uniform.double().tolist() == [2 * ((int(w) >> 8) * 2.0**-24 + 2.0**-25) - 1 for w in words]


# Radius ---------------------------------------------------------------------------------------------------------------


@triton.jit
def shell_kernel(row_ptr, column_ptr, out_ptr, count, height, width, BLOCK: tl.constexpr):
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_ptr + k, mask=k < count, other=0)
    column = tl.load(column_ptr + k, mask=k < count, other=0)
    tl.store(out_ptr + k, shell_index(signed_frequency(row, height), column, height, width), mask=k < count)


@pytest.mark.parametrize("size", [(224, 224), (224, 299), (299, 224), (2048, 2048), (2048, 1536), (40, 4096)])
def test_shells_are_exact_up_to_large_sizes(size: tuple[int, int], device: torch.device) -> None:
    expected = reference_radius.shell_index(*size)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.int32) for n in expected.shape), indexing="ij")
    # All but the rounding-prone ones thinned out: whole radii (where a rounded root slips), edges and corners stay.
    exactly = reference_radius.squared_radius(*size, dtype=torch.float64)
    keep = (exactly - exactly.sqrt().round() ** 2).abs() < 1e-6
    keep |= torch.rand(keep.shape, generator=torch.Generator().manual_seed(0)) < 1e5 / keep.numel()
    rows, columns, expected = (t[keep].to(device) for t in (rows, columns, expected))
    got = torch.full_like(rows, -1)
    shell_kernel[(triton.cdiv(len(got), 65536),)](rows, columns, got, len(got), *size, BLOCK=65536)
    assert torch.equal(got.long(), expected)


# Masks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_as_accurate_as_the_reference(size: tuple[int, int], device: torch.device) -> None:
    cutoff = torch.tensor([1e-3, 1.0, 2.5, 40.0, 1e6], device=device)
    with poisoned_memory():
        masks = radial_mask(cutoff, *size)
    exact = reference_radial_mask.radial_mask(cutoff.double(), *size)
    for got, single, want in zip(masks, reference_radial_mask.radial_mask(cutoff, *size), exact, strict=True):
        assert_as_accurate(got, single, want)
        assert got.min() >= 0
        assert got.max() <= 1
    assert torch.equal(masks[1], 1 - masks[0])


def test_masks_do_not_depend_on_blocks_batch_or_strides(device: torch.device) -> None:
    cutoff = torch.tensor([1.0, 9.0, 2.5, 9.0, 3.0, 9.0], device=device)[::2]
    low, high = radial_mask(cutoff, 12, 20)
    for block in (8, 64, 4096):
        assert all(map(torch.equal, radial_mask(cutoff, 12, 20, block=block), (low, high)))
    alone, _ = radial_mask(cutoff[1:2], 12, 20)
    assert torch.equal(alone[0], low[1])
    empty, _ = radial_mask(cutoff[:0], 12, 20)
    assert empty.shape == (0, 12, 11)


# Energy cut-off -------------------------------------------------------------------------------------------------------


def spectra(size: tuple[int, int], batch: int = 3, channels: int = 2) -> Tensor:
    return torch.fft.rfft2(random(batch, channels, *size))


@pytest.mark.parametrize("size", [*SIZES, (40, 70), (1, 9), (8, 1)])
def test_cutoffs_equal_the_reference(size: tuple[int, int], device: torch.device) -> None:
    spectrum = spectra(size).to(device)
    spectrum[2] *= 1 + 10 * reference_radius.squared_radius(*size).to(device)  # most energy far out
    for tau, include_dc in ((0.9, True), (0.99, False)):
        with poisoned_memory():
            got = energy_cutoff(spectrum, size[1], tau, include_dc)
        assert torch.equal(got, reference_energy_cutoff.energy_cutoff(spectrum, size[1], tau, include_dc)), tau


@pytest.mark.parametrize(("tau", "expected"), [(0.5, 2), (0.5000001, 5), (0.75, 5), (0.7500001, 6), (1.0, 6)])
def test_the_cutoff_is_exact_at_ties(tau: float, expected: int, device: torch.device) -> None:
    spectrum = torch.zeros(1, 1, 16, 9, dtype=torch.complex64, device=device)
    spectrum[0, 0, 0, 2] = 2  # counted twice: 8 of 16
    spectrum[0, 0, 3, 4] = 1 + 1j  # radius exactly 5: 4 of 16
    spectrum[0, 0, 6, 0] = 2  # in the DC column, once: 4 of 16
    assert energy_cutoff(spectrum, 16, tau).item() == expected


def test_every_share_that_a_shell_reaches_exactly_is_a_tie(device: torch.device) -> None:
    """Small whole energies are summed without rounding: at tau = the share of shell k the cut-off is k, never k + 1."""
    generator = torch.Generator().manual_seed(2)
    parts = torch.randint(-3, 4, (1, 1, 9, 7, 2), generator=generator).float()
    spectrum = torch.view_as_complex(parts)
    cumulative = reference_energy_cutoff.shell_energy(spectrum, 12).cumsum(1)[0]
    for k in range(1, len(cumulative)):
        tau = (cumulative[k] / cumulative[-1]).item()
        tau -= tau * cumulative[-1].item() > cumulative[k].item() and math.ulp(tau)  # the quotient may round up
        assert energy_cutoff(spectrum.to(device), 12, tau).item() == k
        above = math.nextafter(cumulative[k].item(), math.inf) / cumulative[-1].item()
        if k + 1 < len(cumulative) and above * cumulative[-1].item() > cumulative[k].item():
            assert energy_cutoff(spectrum.to(device), 12, above).item() == k + 1


@pytest.mark.parametrize("include_dc", [True, False])
def test_images_without_energy_have_cutoff_one(include_dc: bool, device: torch.device) -> None:
    images = torch.stack([torch.zeros(1, 9, 8), torch.full((1, 9, 8), 0.5)]).to(device)
    assert energy_cutoff(torch.fft.rfft2(images), 8, include_dc=include_dc).tolist() == [1, 1]
    one_pixel = torch.full((1, 1, 1, 1), 0.5, device=device)
    assert energy_cutoff(torch.fft.rfft2(one_pixel), 1, include_dc=include_dc).tolist() == [1]


def test_nan_gives_cutoff_one_to_its_own_image_only(device: torch.device) -> None:
    spectrum = spectra((12, 20)).to(device)
    clean = energy_cutoff(spectrum, 20, 0.95, False)
    spectrum[1, 0, 3, 3] = math.nan
    assert energy_cutoff(spectrum, 20, 0.95, False).tolist() == [clean[0].item(), 1, clean[2].item()]


def test_cutoffs_do_not_depend_on_batch_strides_or_run(device: torch.device) -> None:
    spectrum = spectra((21, 20)).to(device)
    once = energy_cutoff(spectrum, 20, 0.7, False)
    assert torch.equal(once, energy_cutoff(spectrum, 20, 0.7, False))
    assert torch.equal(once[1:2], energy_cutoff(spectrum[1:2], 20, 0.7, False))
    strided = spectrum.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert torch.equal(once, energy_cutoff(strided, 20, 0.7, False))
    assert torch.equal(once, energy_cutoff(spectrum.conj(), 20, 0.7, False))
    assert energy_cutoff(spectrum[:0], 20).shape == (0,)


@pytest.mark.parametrize("size", [(2048, 2048), (2047, 1025), (40, 4000), (4000, 40), (224, 224)])
def test_no_tile_has_more_shells_than_bins(size: tuple[int, int]) -> None:
    shells = reference_radius.shell_index(*size)
    assert int(shells.max()) == energy_cutoff_file._largest_shell(*size)
    for rows in shells.split(energy_cutoff_file.ROWS):
        for tile in rows.split(energy_cutoff_file.COLUMNS, dim=1):
            assert int(tile.max() - tile.min()) < energy_cutoff_file.BINS
            assert tile.min() == tile[:, 0].min()  # the kernel looks for the lowest shell in the first column


# Band mix -------------------------------------------------------------------------------------------------------------

ALPHA, RHO, SIGMA = 0.2, 0.5, 16 / 255
MODES = {
    "mix": ((0, ALPHA, ALPHA * RHO, 1 - ALPHA, (1 - ALPHA) * RHO, SIGMA), False),
    "modulate": ((1, 0, 2 * ALPHA * RHO, 0, 2 * (1 - ALPHA) * RHO, SIGMA), False),
    "allpass": ((1, 0, RHO, 0, RHO, SIGMA), True),
}


def mix_arguments(
    size: tuple[int, int], device: torch.device, mode: str = "mix", batch: int = 2, channels: int = 2, rows: int = 3
) -> dict[str, Any]:
    numbers, shared = MODES[mode]
    generator = torch.Generator().manual_seed(4)
    # The image runs fastest, as in the engine; the names are not positions, and reach the end of the range.
    return {
        "spectrum": spectra(size, batch, channels).to(device),
        "cutoff": torch.tensor([1.0, 2.5, 4.0])[:batch].to(device),
        "weights": torch.tensor([numbers], device=device).expand(batch, -1),
        "image_ids": torch.tensor([5, 2**32 - 1, 0])[:batch].to(device),
        "image_index": (torch.arange(rows) % batch).to(device),
        "samples": torch.randint(0, 2**32 // channels, (rows,), generator=generator).to(device),
        "seed": torch.tensor(-(2**62) - 12345, device=device),
        "step": torch.tensor(2**32 - 2, device=device),
        "width": size[1],
        "shared_multiplier": shared,
    }


def exactly(arguments: dict[str, Any]) -> dict[str, Any]:
    double = {"spectrum": torch.complex128, "cutoff": torch.float64, "weights": torch.float64}
    return {name: value.to(double[name]) if name in double else value for name, value in arguments.items()}


@pytest.mark.parametrize(
    ("size", "mode"),
    [*((size, "mix") for size in SIZES), *((size, mode) for size in SIZES[1:3] for mode in ("modulate", "allpass"))],
)
def test_the_mix_is_as_accurate_as_the_reference(size: tuple[int, int], mode: str, device: torch.device) -> None:
    arguments = mix_arguments(size, device, mode)
    with poisoned_memory():
        got = band_mix(**arguments)
    single = reference_band_mix.band_mix(**arguments)
    assert_as_accurate(got, single, reference_band_mix.band_mix(**exactly(arguments)))
    assert got.dtype == single.dtype
    assert got.is_contiguous()


@pytest.mark.parametrize("size", SIZES)
def test_noise_and_multipliers_equal_the_reference_to_the_bit(size: tuple[int, int], device: torch.device) -> None:
    """With weights and masks of 0 and 1 a float32 result shows the random numbers themselves, all four words."""
    arguments = mix_arguments(size, device, batch=3, channels=1)
    arguments["spectrum"] = torch.ones_like(arguments["spectrum"])
    arguments["spectrum"][0] = 0
    arguments["cutoff"] = torch.tensor([1, 1e6, 1e-3], device=device)
    numbers = [
        (1, 0, 0, 0, 0, 1),  # on zeros: the noise, real and imaginary
        (0, 0, 1, 0, 0, 0),  # on ones, and L = 1: xiL
        (0, 0, 0, 0, 1, 0),  # on ones, and L = 0 but for DC: xiH
    ]
    arguments["weights"] = torch.tensor(numbers, dtype=torch.float32, device=device)
    got, expected = band_mix(**arguments), reference_band_mix.band_mix(**arguments)
    assert torch.equal(got, expected)
    assert (got.abs().amax((1, 2, 3)) > 0.5).all()


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (12, 9)])
def test_pure_noise_is_the_transform_of_a_real_image(size: tuple[int, int], device: torch.device) -> None:
    arguments = mix_arguments(size, device, batch=1, rows=2)
    arguments["spectrum"] = torch.zeros_like(arguments["spectrum"])
    mixed = band_mix(**arguments)
    torch.testing.assert_close(torch.fft.rfft2(torch.fft.irfft2(mixed, s=size)), mixed, atol=1e-5, rtol=1e-5)
    for column in {0, size[1] // 2} if size[1] % 2 == 0 else {0}:
        mirrored = mixed[..., column].roll(-1, -1).flip(-1)  # row H-u
        assert torch.equal(mixed[..., column], mirrored.conj().resolve_conj())


def test_a_row_depends_on_neither_its_neighbours_nor_its_place(device: torch.device) -> None:
    arguments = mix_arguments((9, 12), device, batch=3, channels=1, rows=7)
    whole = band_mix(**arguments)
    order = torch.tensor([3, 3, 0, 6, 1], device=device)
    moved = {name: arguments[name][order] for name in ("image_index", "samples")}
    assert torch.equal(band_mix(**{**arguments, **moved}), whole[order])
    alone = {name: arguments[name][2:3] for name in ("spectrum", "cutoff", "weights", "image_ids")}
    rows = torch.tensor([2, 5], device=device)
    moved = {"image_index": torch.zeros_like(rows), "samples": arguments["samples"][rows]}
    assert torch.equal(band_mix(**{**arguments, **alone, **moved}), whole[rows])


@pytest.mark.parametrize("size", [(12, 20), (9, 8)])
def test_the_mix_does_not_depend_on_blocks_or_grid(size: tuple[int, int], device: torch.device) -> None:
    arguments = mix_arguments(size, device, channels=1)
    whole = band_mix(**arguments)
    assert torch.equal(band_mix(**arguments), whole)
    for block, run in ((64, 1), (1024, 99)):
        with poisoned_memory():
            assert torch.equal(band_mix(**arguments, block=block, run=run), whole), (block, run)


def test_the_mix_takes_any_strides(device: torch.device) -> None:
    arguments = mix_arguments((8, 10), device, rows=2)
    whole = band_mix(**arguments)
    spectrum = arguments["spectrum"]
    shifted = (
        torch.empty(spectrum.numel() + 1, dtype=spectrum.dtype, device=device)[1:].view_as(spectrum).copy_(spectrum)
    )
    for other in (
        {"spectrum": spectrum.transpose(-1, -2).contiguous().transpose(-1, -2)},
        {"spectrum": spectrum.conj().resolve_conj().conj()},  # lazily conjugated
        {"spectrum": shifted},  # 8 bytes off a 16-byte boundary
        {"weights": arguments["weights"].contiguous()},
        {"weights": arguments["weights"].t().contiguous().t()},
        {"image_index": arguments["image_index"].repeat_interleave(2)[::2]},
        {"samples": arguments["samples"].repeat_interleave(2)[::2]},
    ):
        assert torch.equal(band_mix(**{**arguments, **other}), whole), next(iter(other))


def test_the_mix_of_no_rows_is_empty(device: torch.device) -> None:
    arguments = mix_arguments((12, 20), device, rows=0)
    assert band_mix(**arguments).shape == (0, 2, 12, 11)


@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (1, 3)])
def test_the_mix_of_one_image(batch: int, channels: int, device: torch.device) -> None:
    arguments = mix_arguments((13, 17), device, batch=batch, channels=channels, rows=3)
    single = reference_band_mix.band_mix(**arguments)
    assert_as_accurate(band_mix(**arguments), single, reference_band_mix.band_mix(**exactly(arguments)))


def test_images_of_no_and_of_constant_value_give_no_nan(device: torch.device) -> None:
    arguments = mix_arguments((9, 9), device, channels=1)
    images = torch.stack([torch.zeros(1, 9, 9), torch.full((1, 9, 9), 0.5)]).to(device)
    arguments["spectrum"] = torch.fft.rfft2(images)
    single = reference_band_mix.band_mix(**arguments)
    assert_as_accurate(band_mix(**arguments), single, reference_band_mix.band_mix(**exactly(arguments)))


def test_the_mix_masks_are_those_of_radial_mask(device: torch.device) -> None:
    """One device function serves both: with one low weight and nothing else the mix of ones is L, bit for bit."""
    arguments = mix_arguments((21, 10), device, channels=1)
    arguments["spectrum"] = torch.ones_like(arguments["spectrum"])
    arguments["weights"] = torch.tensor([(0, 1, 0, 0, 0, 0)] * 2, dtype=torch.float32, device=device)
    low, _ = radial_mask(arguments["cutoff"], 21, 10)
    assert torch.equal(band_mix(**arguments).real, low[arguments["image_index"]][:, None])


# Gradient step --------------------------------------------------------------------------------------------------------


def gaussian(taps: int) -> Tensor:
    kernel = torch.exp(-((torch.arange(taps) - taps // 2) ** 2) / 2.0)
    return kernel / kernel.sum() if taps else kernel


def step_arguments(shape: tuple[int, ...], device: torch.device, taps: int = 3, **changes: Any) -> dict[str, Any]:
    origin = random(*shape, seed=1)
    arguments = {
        "images": (origin + 0.1 * normal(*shape, seed=2)).clamp(0, 1),
        "origin": origin,
        "gradient_sum": normal(*shape, seed=3),
        "momentum": normal(*shape, seed=4),
        "attribution": normal(*shape, seed=5),
        "kernel": gaussian(taps),
        "samples": 20,
        "decay": 0.9,
        "step_size": 0.01,
        "eps": 16 / 255,
        "lower": 0.0,
        "upper": 1.0,
        **changes,
    }
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def assert_step_as_accurate(arguments: dict[str, Any]) -> None:
    with poisoned_memory():
        got = gradient_step(**arguments)
    single = reference_gradient_step.gradient_step(**arguments)
    double = {name: value.double() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    for g, s, e in zip(got, single, reference_gradient_step.gradient_step(**double), strict=True):
        assert_as_accurate(g, s, e)
        assert g.is_contiguous()


@pytest.mark.parametrize(
    ("shape", "taps"),
    [
        ((2, 2, 8, 8), 0),
        ((1, 3, 9, 11), 0),
        ((1, 2, 9, 11), 3),
        ((1, 1, 8, 36), 3),
        ((1, 1, 8, 9), 7),
        ((1, 1, 20, 5), 1),
    ],
)
def test_the_step_is_as_accurate_as_the_reference(shape: tuple[int, ...], taps: int, device: torch.device) -> None:
    assert_step_as_accurate(step_arguments(shape, device, taps))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: takes the interpreter minutes")
@pytest.mark.parametrize(("shape", "taps"), [((3, 3, 65, 130), 7), ((2, 3, 224, 224), 7), ((2, 1, 100, 33), 15)])
def test_the_step_is_as_accurate_as_the_reference_at_size(
    shape: tuple[int, ...], taps: int, device: torch.device
) -> None:
    assert_step_as_accurate(step_arguments(shape, device, taps))


def test_ascending_bounds_and_a_smoothing_kernel_without_symmetry(device: torch.device) -> None:
    skewed = torch.tensor([0.5, 0.3, 0.2])  # tells correlation from convolution, and x from y by the shape
    assert_step_as_accurate(
        step_arguments(
            (1, 1, 9, 12), device, kernel=skewed, step_size=-0.02, lower=0.3, upper=0.6, samples=1, decay=0.0
        )
    )


@pytest.mark.parametrize("magnitude", [1e-41, 1e-30, 1e30])
def test_tiny_and_huge_gradients_are_normalised_all_the_same(magnitude: float, device: torch.device) -> None:
    shape = (1, 1, 8, 8)
    arguments = step_arguments(shape, device, taps=0, momentum=torch.zeros(shape), samples=1)
    arguments["gradient_sum"] *= magnitude
    got = gradient_step(**arguments)
    expected = reference_gradient_step.gradient_step(**arguments)
    torch.testing.assert_close(got.momentum, expected.momentum, atol=1e-6, rtol=1e-5)
    assert torch.equal(got.images, expected.images)
    assert got.momentum.abs().mean().item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_an_unusable_gradient_costs_its_own_image_only(bad: float, device: torch.device) -> None:
    arguments = step_arguments((3, 1, 8, 8), device, taps=1)
    clean = gradient_step(**arguments)
    spoiled = arguments["gradient_sum"].clone()
    if bad:
        spoiled[1, 0, 3, 4] = bad
    else:
        spoiled[1] = 0
    got = gradient_step(**{**arguments, "gradient_sum": spoiled})
    expected = reference_gradient_step.gradient_step(**{**arguments, "gradient_sum": spoiled})
    assert torch.equal(got.momentum[1], arguments["momentum"][1] * arguments["decay"])
    assert torch.equal(got.images[1], expected.images[1])
    assert torch.equal(got.attribution[1], expected.attribution[1])
    assert not (math.isfinite(got.scale[1].item()) and got.scale[1].item() > 0)
    for image in (0, 2):
        assert all(torch.equal(a[image], b[image]) for a, b in zip(got, clean, strict=True))


def test_at_rest_nothing_moves(device: torch.device) -> None:
    shape = (1, 1, 8, 8)
    arguments = step_arguments(shape, device, 1, gradient_sum=torch.zeros(shape), momentum=torch.zeros(shape))
    arguments["images"] = arguments["origin"]
    got = gradient_step(**arguments)
    assert torch.equal(got.images, arguments["images"])
    assert torch.equal(got.attribution, arguments["attribution"])
    assert got.scale.tolist() == [0]


def test_the_step_does_not_depend_on_strips_or_batch(device: torch.device) -> None:
    arguments = step_arguments((2, 1, 5, 34), device)
    whole = gradient_step(**arguments)
    for columns, chunks in ((32, 1), (64, 8)):
        cut = gradient_step(**arguments, columns=columns, chunks=chunks)
        assert all(map(torch.equal, cut, whole)), (columns, chunks)
    second = {name: value[1:] for name, value in arguments.items() if isinstance(value, Tensor) and value.ndim == 4}
    alone = gradient_step(**{**arguments, **second})
    assert all(torch.equal(a, b[1:]) for a, b in zip(alone, whole, strict=True))


def test_the_step_takes_any_strides(device: torch.device) -> None:
    arguments = step_arguments((2, 3, 8, 9), device, taps=0)
    whole = gradient_step(**arguments)
    other = dict(arguments)
    for name in ("images", "gradient_sum", "momentum"):
        other[name] = arguments[name].contiguous(memory_format=torch.channels_last)
    other["attribution"] = arguments["attribution"].transpose(2, 3).contiguous().transpose(2, 3)
    assert all(map(torch.equal, gradient_step(**other), whole))


def test_a_step_for_no_image_is_empty(device: torch.device) -> None:
    assert gradient_step(**step_arguments((0, 3, 8, 8), device)).images.shape == (0, 3, 8, 8)


# Pixel mask -----------------------------------------------------------------------------------------------------------


def mask_arguments(size: tuple[int, int], device: torch.device, channels: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(6)
    arguments = {
        "start": random(3, channels, *size, seed=1),
        "finish": random(3, channels, *size, seed=2),
        "first_step": torch.randint(0, 9, (3, *size), generator=generator, dtype=torch.int32),
        "image_index": torch.tensor([0, 0, 0, 2, 2, 1, 0]),
        "step": torch.tensor([0, 3, 2**40, 4, -(2**40), 8, 5]),
    }
    return {name: value.to(device) for name, value in arguments.items()}


def assert_same_masks(arguments: dict[str, Tensor], **choices: int) -> None:
    expected = reference_pixel_mask.pixel_mask(**arguments)
    with poisoned_memory():
        got = pixel_mask(**arguments, **choices)
    assert torch.equal(got, expected)
    assert got.dtype == expected.dtype
    for layout in (torch.channels_last, torch.contiguous_format):
        assert got.is_contiguous(memory_format=layout) == expected.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(8, 8), (9, 7), (12, 20)])
def test_masked_images_equal_the_reference(size: tuple[int, int], channels: int, device: torch.device) -> None:
    assert_same_masks(mask_arguments(size, device, channels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_masked_images_keep_their_dtype(dtype: torch.dtype, device: torch.device) -> None:
    arguments = mask_arguments((9, 8), device)
    assert_same_masks({**arguments, "start": arguments["start"].to(dtype), "finish": arguments["finish"].to(dtype)})


def test_masked_images_from_any_strides(device: torch.device) -> None:
    arguments = mask_arguments((9, 8), device)
    colour = random(1, 3, 1, 1, seed=3).to(device).expand(3, 3, 9, 8)
    last = arguments["start"].contiguous(memory_format=torch.channels_last)
    flipped = arguments["finish"].transpose(2, 3).contiguous().transpose(2, 3)
    steps = arguments["first_step"].transpose(1, 2).contiguous().transpose(1, 2)
    for other in ({"start": colour}, {"start": last}, {"start": last, "finish": colour}, {"finish": flipped}):
        assert_same_masks({**arguments, **other})
    assert_same_masks(
        {**arguments, "first_step": steps, "finish": arguments["finish"].repeat_interleave(2, 3)[..., ::2]}
    )


def test_masked_images_do_not_depend_on_blocks_or_grid(device: torch.device) -> None:
    arguments = mask_arguments((12, 20), device)
    for block, run in ((64, 1), (256, 3), (4096, 99)):
        assert_same_masks(arguments, block=block, run=run)
    none = {name: arguments[name][:0] for name in ("image_index", "step")}
    assert pixel_mask(**{**arguments, **none}).shape == (0, 3, 12, 20)


# Wrong arguments ------------------------------------------------------------------------------------------------------


def test_wrong_types_are_named(device: torch.device) -> None:
    with pytest.raises(TypeError, match="float64"):
        radial_mask(torch.ones(1, dtype=torch.float64, device=device), 8, 8)
    with pytest.raises(TypeError, match="complex128"):
        energy_cutoff(spectra((8, 8)).to(torch.complex128), 8)
    with pytest.raises(TypeError, match="complex128"):
        band_mix(**exactly(mix_arguments((8, 8), device)))
    with pytest.raises(TypeError, match="float16"):
        gradient_step(**step_arguments((1, 1, 8, 8), device, momentum=torch.zeros(1, 1, 8, 8, dtype=torch.float16)))
    with pytest.raises(ValueError, match="odd length of at most 15"):
        gradient_step(**step_arguments((1, 1, 8, 8), device, taps=17))
    with pytest.raises(ValueError, match="odd length"):
        gradient_step(**step_arguments((1, 1, 8, 8), device, taps=4))
    arguments = mask_arguments((8, 8), device)
    with pytest.raises(TypeError, match="int64"):
        pixel_mask(**{**arguments, "first_step": arguments["first_step"].long()})


def test_images_too_large_for_exact_shells_are_refused() -> None:
    spectrum = torch.empty((1, 1, 1, 20001), dtype=torch.complex64, device="meta")
    with pytest.raises(ValueError, match="at most 32768 px a side, got 1 x 40000"):
        energy_cutoff(spectrum, 40000)


def test_tensors_on_two_devices_are_refused(device: torch.device) -> None:
    arguments = mix_arguments((8, 8), device)
    arguments["samples"] = arguments["samples"].to("meta")
    with pytest.raises(ValueError, match="one device"):
        band_mix(**arguments)


def test_the_rounds_are_those_of_the_reference() -> None:
    assert ROUNDS.value == reference_philox.ROUNDS
