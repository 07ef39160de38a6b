"""What is special to the Triton kernels: their device functions, blocks and grids, tiles, and refusals.

That they compute what the reference computes is the business of ``test_equivalence``. On a GPU, or on the CPU through
Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton", reason="the package triton is not installed")
pytestmark = pytest.mark.usefixtures("triton_runs")

import triton.language as tl  # noqa: E402

from fampe_fast.checks import LARGEST_CUTOFF, SMALLEST_CUTOFF  # noqa: E402
from fampe_fast.kernels import energy_cutoff as energy_cutoff_file  # noqa: E402
from fampe_fast.kernels.band_mix import band_mix  # noqa: E402
from fampe_fast.kernels.band_samples import band_samples  # noqa: E402
from fampe_fast.kernels.bilinear import divide, inverse, reciprocal, source_pixels  # noqa: E402
from fampe_fast.kernels.combine_layers import combine_layers  # noqa: E402
from fampe_fast.kernels.energy_cutoff import energy_cutoff  # noqa: E402
from fampe_fast.kernels.fused import fma  # noqa: E402
from fampe_fast.kernels.gradient_step import gradient_step  # noqa: E402
from fampe_fast.kernels.launch import rows_per_program  # noqa: E402
from fampe_fast.kernels.layer_evidence import layer_evidence  # noqa: E402
from fampe_fast.kernels.philox import ROUNDS, philox4x32, split_seed, to_uniform  # noqa: E402
from fampe_fast.kernels.pixel_mask import pixel_mask  # noqa: E402
from fampe_fast.kernels.radial_mask import radial_mask  # noqa: E402
from fampe_fast.kernels.radius import shell_index, signed_frequency  # noqa: E402
from fampe_fast.reference import combine_layers as reference_layers  # noqa: E402
from fampe_fast.reference import layer_evidence as reference_evidence  # noqa: E402
from fampe_fast.reference import philox as reference_philox  # noqa: E402
from fampe_fast.reference import radial_mask as reference_masks  # noqa: E402
from fampe_fast.reference import radius as reference_radius  # noqa: E402
from fampe_fast.testing import Case, poisoned_memory  # noqa: E402
from fampe_fast.testing.arguments import exactly, example_arguments, moved, spectra  # noqa: E402
from fampe_fast.testing.known_answers import PHILOX, UNIFORM_WORDS, uniform_of  # noqa: E402

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


@pytest.mark.parametrize("rounds", [7, 10])
def test_philox_gives_the_published_words(rounds: int, device: torch.device) -> None:
    vectors = [vector for vector in PHILOX if vector.rounds == rounds]
    counter = torch.tensor([vector.counter for vector in vectors], device=device)
    low, high = torch.tensor([vector.key for vector in vectors], device=device).unbind(1)
    words, _ = words_of(counter, low | (high << 32), rounds)  # the key as one signed 64-bit seed
    assert words.tolist() == [list(vector.words) for vector in vectors]


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
    words = torch.tensor(UNIFORM_WORDS, device=device)
    uniform = torch.empty(len(words), device=device)
    uniform_kernel[(1,)](words, uniform, len(words), BLOCK=8)
    assert uniform.double().tolist() == [uniform_of(word) for word in UNIFORM_WORDS]


# Radius ---------------------------------------------------------------------------------------------------------------


@triton.jit
def shell_kernel(row_ptr, column_ptr, out_ptr, count, height, width, BLOCK: tl.constexpr):
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(row_ptr + k, mask=k < count, other=0)
    column = tl.load(column_ptr + k, mask=k < count, other=0)
    tl.store(out_ptr + k, shell_index(signed_frequency(row, height), column, height, width), mask=k < count)


@pytest.mark.parametrize("size", [(224, 224), (224, 299), (299, 224), (2048, 2048), (2048, 1536), (40, 4096)])
def test_shells_are_exact_up_to_large_sizes(size: tuple[int, int], device: torch.device, interpreted: bool) -> None:
    expected = reference_radius.shell_index(*size)
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.int32) for n in expected.shape), indexing="ij")
    # All but the rounding-prone ones thinned out: whole radii (where a rounded root slips), edges and corners stay.
    exactly = reference_radius.squared_radius(*size, dtype=torch.float64)
    keep = (exactly - exactly.sqrt().round() ** 2).abs() < 1e-6
    keep |= torch.rand(keep.shape, generator=torch.Generator().manual_seed(0)) < 1e5 / keep.numel()
    rows, columns, expected = (t[keep].to(device) for t in (rows, columns, expected))
    got = torch.full_like(rows, -1)
    block = 65536 if interpreted else 1024  # fewer programs for the interpreter, few registers for a GPU
    shell_kernel[(triton.cdiv(len(got), block),)](rows, columns, got, len(got), *size, BLOCK=block)
    assert torch.equal(got.long(), expected)


# Input diversity ------------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["size", "resized"])
def source_kernel(first_ptr, second_ptr, weight_ptr, size, resized, BLOCK: tl.constexpr):
    target = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    first, second, weight = source_pixels(target, size, resized, inverse(2 * resized), reciprocal(2 * resized))
    tl.store(first_ptr + target, first, mask=target < resized)
    tl.store(second_ptr + target, second, mask=target < resized)
    tl.store(weight_ptr + target, weight, mask=target < resized)


@pytest.mark.parametrize(
    ("size", "resized"),
    [(1, 1), (1, 9), (9, 1), (8, 8), (224, 224), (224, 257), (299, 343), (2048, 2355), (4093, 4096)],
)
def test_source_pixels_are_exact_and_their_weights_rounded_once(size: int, resized: int, device: torch.device) -> None:
    first, second = (torch.full((resized,), -1, dtype=torch.int32, device=device) for _ in range(2))
    weight = torch.full((resized,), -1.0, device=device)
    source_kernel[(triton.cdiv(resized, 1024),)](first, second, weight, size, resized, BLOCK=1024)
    position = torch.clamp((2 * torch.arange(resized) + 1) * size - resized, min=0)
    whole = position // (2 * resized)
    assert torch.equal(first.cpu().long(), whole)
    assert torch.equal(second.cpu().long(), torch.clamp(whole + 1, max=size - 1))
    assert torch.equal(weight.cpu(), (position - whole * 2 * resized).float() / (2 * resized))


@triton.jit
def fma_kernel(x_ptr, y_ptr, z_ptr, out_ptr, BLOCK: tl.constexpr):
    k = tl.arange(0, BLOCK)
    tl.store(out_ptr + k, fma(tl.load(x_ptr + k), tl.load(y_ptr + k), tl.load(z_ptr + k)))


def test_a_fused_multiplication_and_addition_rounds_once(device: torch.device) -> None:
    """What is left of a dividend is a float32 itself, and a product and a sum lose it; in general, the nearest one."""
    generator = torch.Generator().manual_seed(3)
    dividend = torch.randint(1, 2**24, (1024,), generator=generator).float()
    divisor = torch.randint(1, 2**13, (1024,), generator=generator).float()
    quotient = dividend / divisor
    arbitrary = torch.randn(3, 1024, generator=generator)
    for x, y, z in ((-quotient, divisor, dividend), arbitrary):
        out = torch.full((1024,), -1.0, device=device)
        fma_kernel[(1,)](x.to(device), y.to(device), z.to(device), out, BLOCK=1024)
        exact = x.double() * y.double() + z.double()
        assert torch.equal(out.cpu(), exact.float())
        assert not torch.equal(x * y + z, exact.float())


@triton.jit
def divide_kernel(number_ptr, divisor_ptr, quotient_ptr, rest_ptr, BLOCK: tl.constexpr):
    divisor = tl.load(divisor_ptr + tl.program_id(0))
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    quotient, rest = divide(tl.load(number_ptr + k), divisor, inverse(divisor))
    tl.store(quotient_ptr + k, quotient)
    tl.store(rest_ptr + k, rest)


def test_division_by_multiplication_is_exact(device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    divisors = torch.tensor([1, 2, 3, 7, 448, 514, 50176, 65537, 2**24 - 1, 2**30, 2**31 - 1])
    numbers = torch.randint(0, 2**31, (len(divisors), 64), generator=generator)
    multiples = numbers[:, :20] // divisors[:, None] * divisors[:, None]
    numbers[:, :20], numbers[:, 20:40] = multiples, (multiples - 1).clamp(min=0)
    numbers[:, 40], numbers[:, 41], numbers[:, 42] = 0, 2**31 - 1, divisors
    quotient, rest = (torch.empty(numbers.shape, dtype=torch.int32, device=device) for _ in range(2))
    arguments = (numbers.to(device, torch.int32), divisors.to(device, torch.int32), quotient, rest)
    divide_kernel[(len(divisors),)](*arguments, BLOCK=64)
    assert torch.equal(quotient.cpu().long(), numbers // divisors[:, None])
    assert torch.equal(rest.cpu().long(), numbers % divisors[:, None])


# Blocks, grids and tiles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", reference_masks.SHAPES)
@pytest.mark.parametrize("size", [(8, 9), (3, 40)])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # numpy's, in the interpreter
def test_masks_are_right_to_the_ends_of_the_cutoffs_that_are_taken(
    size: tuple[int, int], shape: str, device: torch.device
) -> None:
    cutoff = torch.tensor([SMALLEST_CUTOFF, 1e-12, 1e12, LARGEST_CUTOFF])
    low, high = radial_mask(cutoff.to(device), *size, shape)
    expected, _ = reference_masks.radial_mask(cutoff.double(), *size, shape)
    assert torch.equal(low.cpu().double(), expected.round(decimals=12))
    assert torch.equal(high, 1 - low)


@pytest.mark.parametrize("shape", ["disc", "butterworth"])
@pytest.mark.parametrize("size", [(8, 8), (14, 26), (225, 30)])
def test_masks_without_an_exponential_are_the_reference_s_to_the_bit(
    size: tuple[int, int], shape: str, device: torch.device
) -> None:
    cutoff = torch.tensor([1e-7, 0.7, 1, 2.5, 4, 13, 1e9])
    for got, expected in zip(
        radial_mask(cutoff.to(device), *size, shape), reference_masks.radial_mask(cutoff, *size, shape), strict=True
    ):
        assert torch.equal(got.cpu(), expected)


@pytest.mark.slow
def test_masks_do_not_depend_on_blocks(device: torch.device) -> None:
    cutoff = torch.tensor([1.0, 2.5, 3.0], device=device)
    whole = radial_mask(cutoff, 12, 20)
    for block in (8, 64, 4096):
        with poisoned_memory():
            assert all(map(torch.equal, radial_mask(cutoff, 12, 20, block=block), whole)), block


@pytest.mark.parametrize("mix", [band_mix, band_samples])
@pytest.mark.parametrize("size", [(12, 20), (9, 8)])
def test_the_mix_does_not_depend_on_blocks_or_grid(
    mix: Callable[..., Tensor], size: tuple[int, int], device: torch.device
) -> None:
    arguments = example_arguments(mix.__name__, Case(*size, channels=1), device)
    whole = mix(**arguments)
    for block, run in ((64, 1), (1024, 99)):  # a program of 99 rows meets images again and again
        with poisoned_memory():
            assert torch.equal(mix(**arguments, block=block, run=run), whole), (block, run)


@pytest.mark.parametrize(
    ("rows", "per_row", "run"),
    [
        (64, 150, 16),  # a chunk at 224 px: 600 programs, five at most on a multiprocessor, none waits for another
        (20, 150, 5),  # one image's samples
        (640, 150, 92),
        (64, 3, 1),  # too little work to keep a GPU busy
        (1, 150, 1),
        (0, 150, 1),
    ],
)
def test_programs_take_the_rows_that_end_soonest(rows: int, per_row: int, run: int) -> None:
    assert rows_per_program(rows, per_row) == run


@pytest.mark.parametrize("shape", reference_masks.SHAPES)
def test_the_mix_masks_are_those_of_radial_mask(shape: str, device: torch.device) -> None:
    """One device function serves both: with one low weight and nothing else the mix of ones is L, bit for bit."""
    arguments = example_arguments("band_mix", Case(21, 10, channels=1, mask=shape), device)
    arguments["spectrum"] = torch.ones_like(arguments["spectrum"])
    arguments["weights"] = torch.tensor([(0, 1, 0, 0, 0, 0)] * 2, dtype=torch.float32, device=device)
    low, _ = radial_mask(arguments["cutoff"], 21, 10, shape)
    assert torch.equal(band_mix(**arguments).real, low[arguments["image_index"]][:, None])


def test_the_step_does_not_depend_on_strips(device: torch.device) -> None:
    arguments = example_arguments("gradient_step", Case(5, 34, 1, 1, taps=3), device)
    whole = gradient_step(**arguments)
    for columns, chunks in ((32, 1), (64, 8)):
        with poisoned_memory():
            cut = gradient_step(**arguments, columns=columns, chunks=chunks)
        assert all(map(torch.equal, cut, whole)), (columns, chunks)


def test_masked_images_do_not_depend_on_blocks_or_grid(device: torch.device) -> None:
    rows = {"image_index": torch.tensor([0, 0, 0, 2, 2, 1, 0]), "step": torch.tensor([0, 3, 2**40, 4, -(2**40), 8, 5])}
    arguments = example_arguments("pixel_mask", Case(12, 20, batch=3, rows=7), device, **rows)
    whole = pixel_mask(**arguments)
    for block, run in ((64, 1), (256, 3), (4096, 99)):
        with poisoned_memory():
            assert torch.equal(pixel_mask(**arguments, block=block, run=run), whole), (block, run)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 40, 520])
def test_evidence_is_the_reference_s_to_the_bit_whatever_the_block(
    channels: int, channels_last: bool, device: torch.device
) -> None:
    arguments = example_arguments("layer_evidence", Case(3, 7, channels=channels), "cpu")
    expected = reference_evidence.layer_evidence(**arguments)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    arguments = {name: values.to(device, memory_format=memory_format) for name, values in arguments.items()}
    for block in (None, 1, 4, 32):
        with poisoned_memory():
            assert torch.equal(layer_evidence(**arguments, block=block).cpu(), expected), block


def test_a_pixel_s_channels_are_dealt_to_at_most_256_sums() -> None:
    counts = [reference_evidence.running_sums(channels) for channels in (0, 1, 3, 24, 96, 320, 1024, 1280, 2048, 10**5)]
    assert counts == [1, 1, 4, 32, 32, 64, 128, 256, 256, 256]


@pytest.mark.slow
def test_combined_layers_do_not_depend_on_tiles_or_chunks(device: torch.device) -> None:
    arguments = example_arguments("combine_layers", Case(21, 70), device)
    whole = combine_layers(**arguments)
    for columns, chunk in ((32, 64), (128, 1024), (4, 256)):
        with poisoned_memory():
            assert torch.equal(combine_layers(**arguments, columns=columns, chunk=chunk), whole), (columns, chunk)


@pytest.mark.parametrize("size", [(2048, 2048), (2047, 1025), (40, 4000), (4000, 40), (224, 224)])
def test_no_tile_has_more_shells_than_bins(size: tuple[int, int]) -> None:
    shells = reference_radius.shell_index(*size)
    assert int(shells.max()) == energy_cutoff_file._largest_shell(*size)
    for rows in shells.split(energy_cutoff_file.ROWS):
        for tile in rows.split(energy_cutoff_file.COLUMNS, dim=1):
            assert int(tile.max() - tile.min()) < energy_cutoff_file.BINS
            assert tile.min() == tile[:, 0].min()  # the kernel looks for the lowest shell in the first column


# Wrong arguments ------------------------------------------------------------------------------------------------------


def test_wrong_types_are_named(device: torch.device) -> None:
    with pytest.raises(TypeError, match="float64"):
        radial_mask(torch.ones(1, dtype=torch.float64, device=device), 8, 8)
    with pytest.raises(TypeError, match="complex128"):
        energy_cutoff(spectra(Case(8, 8)).to(device, torch.complex128), 8)
    with pytest.raises(TypeError, match="complex128"):
        band_mix(**moved(exactly(example_arguments("band_mix", Case(8, 8), device)), device))
    with pytest.raises(ValueError, match="shape must be one of gaussian, disc, butterworth; got 'box'"):
        radial_mask(torch.ones(1, device=device), 8, 8, "box")
    with pytest.raises(ValueError, match="shape must be one of gaussian, disc, butterworth; got 'box'"):
        band_mix(**example_arguments("band_mix", Case(8, 8), device, shape="box"))
    with pytest.raises(TypeError, match="float16"):
        gradient_step(
            **example_arguments(
                "gradient_step", Case(8, 8, 1, 1), device, momentum=torch.zeros(1, 1, 8, 8, dtype=torch.float16)
            )
        )
    with pytest.raises(ValueError, match="odd length of at most 15"):
        gradient_step(**example_arguments("gradient_step", Case(8, 8, 1, 1, taps=17), device))
    with pytest.raises(ValueError, match="odd length"):
        gradient_step(**example_arguments("gradient_step", Case(8, 8, 1, 1, taps=4), device))
    arguments = example_arguments("pixel_mask", Case(8, 8), device)
    with pytest.raises(TypeError, match="int64"):
        pixel_mask(**{**arguments, "first_step": arguments["first_step"].long()})
    with pytest.raises(TypeError, match="float64"):
        combine_layers(**moved(exactly(example_arguments("combine_layers", Case(8, 8), device)), device))
    layer = torch.zeros(1, 2, 3, 4, device=device)
    with pytest.raises(TypeError, match="got torch.float32 and torch.int64"):
        layer_evidence(layer, layer.long())
    with pytest.raises(ValueError, match=r"got shapes \(1, 2, 3, 4\) and \(1, 2, 3\)"):
        layer_evidence(layer, layer[..., 0])
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got shapes \(2, 3, 4\) and \(2, 3, 4\)"):
        layer_evidence(layer[0], layer[0])


@pytest.mark.parametrize("function", [combine_layers, reference_layers.combine_layers])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"evidence": torch.zeros(2, 5).long()}, TypeError, "got torch.float32 and torch.int64"),
        ({"pixels": torch.zeros(2, 1, 4, 6)}, ValueError, r"pixels must be \(B, H, W\), .* got shape \(2, 1, 4, 6\)"),
        ({"pixels": torch.zeros(2, 4, 0)}, ValueError, r"got shape \(2, 4, 0\)"),
        ({"sizes": [2, 2, 1]}, ValueError, r"sizes must be height and width, .* got \[2, 2, 1\]"),
        ({"sizes": [2, 2, 1, 0]}, ValueError, r"at least 1 each, .* got \[2, 2, 1, 0\]"),
        ({"sizes": [1] * 18}, ValueError, "of at most 8 layers"),
        ({"weights": [1.0, 1.0]}, ValueError, "weights must be 3 numbers, .* 2 layers, got 2"),
        ({"gates": [1.0] * 4}, ValueError, "gates must be 3 numbers, .* 2 layers, got 4"),
        ({"evidence": torch.zeros(2, 6)}, ValueError, r"evidence must have shape \(2, 5\), .* got \(2, 6\)"),
        ({"evidence": torch.zeros(3, 5)}, ValueError, r"evidence must have shape \(2, 5\), .* got \(3, 5\)"),
    ],
)
def test_layers_that_do_not_fit_are_named(
    function: Callable[..., Tensor],
    change: dict[str, object],
    error: type[Exception],
    message: str,
    device: torch.device,
) -> None:
    fitting = {
        "pixels": torch.zeros(2, 4, 6),
        "evidence": torch.zeros(2, 5),
        "sizes": [2, 2, 1, 1],
        "weights": [1.0] * 3,
        "gates": [0.0] * 3,
        "floor": 0.1,
    }
    with pytest.raises(error, match=message):
        function(**moved({**fitting, **change}, device))


def test_images_too_large_for_exact_shells_are_refused() -> None:
    spectrum = torch.empty((1, 1, 1, 20001), dtype=torch.complex64, device="meta")
    with pytest.raises(ValueError, match="at most 32768 px a side, got 1 x 40000"):
        energy_cutoff(spectrum, 40000)


def test_tensors_on_two_devices_are_refused(device: torch.device) -> None:
    arguments = example_arguments("band_mix", Case(8, 8), device)
    arguments["samples"] = arguments["samples"].to("meta")
    with pytest.raises(ValueError, match="one device"):
        band_mix(**arguments)


def test_the_rounds_are_those_of_the_reference() -> None:
    assert ROUNDS.value == reference_philox.ROUNDS
