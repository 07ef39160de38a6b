"""What the kernels say of their memory traffic, counted on the machine that executes their compiled code."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

if "FAMPE_FAST_PTX" not in os.environ:
    pytest.skip("test_compiled_code runs this, on the machine", allow_module_level=True)

from benchmarks.kernels.launches import record
from benchmarks.kernels.primitives import primitive
from benchmarks.kernels.sizes import Size
from fampe_fast.testing import Case
from fampe_fast.testing.arguments import example_arguments
from fampe_fast.testing.checks.combine_layers import layers_of
from fampe_fast.testing.checks.layer_evidence import as_tokens

from ..ptx.traffic import SECTOR, Counts, counting

SIDE = 96
SIZE = Size(2, 4, SIDE, SIDE)
PIXELS = 2 * 3 * SIDE * SIDE * 4
"""Bytes of the images."""
SPECTRA = 2 * 3 * SIDE * (SIDE // 2 + 1) * 8


NUMBERS = 2 * 3 * SIDE * SIDE // 512 * 2 * SECTOR + 6 * SECTOR
"""Bytes of eight rows' image numbers, which every program of 512 elements reads, and of what begins within a sector."""


def traffic(name: str, **changes: object) -> Counts:
    entry = primitive(name)
    arguments = entry.arguments(entry.fitted(SIZE), torch.device("cpu"))
    with counting() as counts:
        entry.kernel()(**arguments, **changes)
    return counts


@pytest.mark.parametrize(
    ("name", "kernel", "written"),
    [
        ("band_mix", "band_mix", 4 * SPECTRA),
        ("dct_mix", "dct_mix", 4 * PIXELS),
        ("gradient_step", "step", 3 * PIXELS),
        ("accumulate", "accumulate", PIXELS),
        ("pixel_mask", "pixel_mask", 4 * PIXELS),
        ("radial_mask", "radial_mask", SPECTRA // 3),
        ("diversify_adjoint", "diversify_adjoint", 4 * PIXELS),
        ("combine_layers", "combine_layers", PIXELS // 3),
    ],
)
def test_results_are_written_once_in_whole_sectors(name: str, kernel: str, written: int) -> None:
    stores = traffic(name)[kernel, "st"]
    assert stores.moved == stores.footprint
    assert written <= stores.moved <= written + 2 * 3 * SECTOR  # a tensor may begin in the middle of a sector


def test_packed_spectra_are_written_once_and_in_runs_of_a_row() -> None:
    """A row's quarter of 25 pairs makes 25 numbers of 8 bytes, and 23 or 24 against their order."""
    stores = traffic("band_samples")["band_samples", "st"]
    assert 4 * PIXELS <= stores.footprint <= 4 * PIXELS + 2 * 3 * SECTOR
    runs = 4 * 2 * 3 * SIDE * (2 + 2)  # a warp holds parts of two rows, and each run begins and ends within a sector
    assert 4 * PIXELS <= stores.moved <= 4 * PIXELS + runs * SECTOR


@pytest.mark.parametrize(
    ("name", "source"),
    [("band_mix", SPECTRA), ("dct_mix", PIXELS)],
)
def test_a_mix_reads_a_spectrum_once_for_all_samples_of_a_program(name: str, source: int) -> None:
    loads = {run: traffic(name, run=run)[name, "ld"].moved for run in (1, 4)}
    spare = 2 * 3 * SECTOR
    assert 4 * source <= loads[1] <= 4 * (source + spare)  # once per sample, which is the most
    assert source <= loads[4] <= source + spare


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_sum_of_gradients_reads_each_once(channels_last: bool) -> None:
    entry = primitive("accumulate")
    arguments = entry.arguments(SIZE, torch.device("cpu"))
    if channels_last:
        arguments["gradient"] = arguments["gradient"].to(memory_format=torch.channels_last)
    with counting() as counts:
        entry.kernel()(**arguments)
    loads = counts["accumulate", "ld"]
    # Four gradients of every image, and the sum so far, which lies otherwise than channels-last gradients do: a warp's
    # accesses of four bytes meet up to five sectors where they would fill one.
    sums = PIXELS * (5 if channels_last else 1)
    assert 5 * PIXELS <= loads.moved <= 4 * PIXELS + sums + NUMBERS
    assert loads.footprint <= 5 * PIXELS + 6 * SECTOR


def test_the_sum_of_gradients_touches_no_image_without_rows() -> None:
    arguments = primitive("accumulate").arguments(SIZE, torch.device("cpu"))
    arguments["image_index"] = torch.ones_like(arguments["image_index"])
    with counting() as counts:
        primitive("accumulate").kernel()(**arguments)
    least = 4 * PIXELS + PIXELS // 2  # all gradients, and one image of two
    assert least <= counts["accumulate", "ld"].moved <= least + NUMBERS
    assert counts["accumulate", "st"].moved == PIXELS // 2


@pytest.mark.parametrize("channels_last", [False, True])
def test_masking_reads_images_once_for_all_rows_of_a_program(channels_last: bool) -> None:
    """Both images, and the steps: once if contiguous; a pixel's three channels share one, which stretches may part."""
    entry = primitive("pixel_mask")
    arguments = entry.arguments(SIZE, torch.device("cpu"))
    if channels_last:
        arguments |= {name: arguments[name].to(memory_format=torch.channels_last) for name in ("start", "finish")}
    with counting() as counts:
        entry.kernel()(**arguments, run=4)
    loads, stores = counts["pixel_mask", "ld"], counts["pixel_mask", "st"]
    images, steps = 2 * PIXELS, PIXELS if not channels_last else PIXELS // 3
    assert images + steps <= loads.moved
    # Channels last, the four elements of a thread are read one by one, so up to four times the steps' sectors.
    assert loads.moved <= images + (steps if not channels_last else 4 * PIXELS // 2)
    assert stores.moved == 4 * PIXELS


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda values: values,
    "channels last": lambda values: values.to(memory_format=torch.channels_last),
    "tokens": as_tokens,
}


def evidence_of(case: Case, layout: str, dtype: torch.dtype) -> dict[str, Tensor]:
    arguments = example_arguments("layer_evidence", case, "cpu")
    return {name: LAYOUTS[layout](values.to(dtype)) for name, values in arguments.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_evidence_reads_a_layer_once_and_writes_each_pixel_once(layout: str, dtype: torch.dtype) -> None:
    """Whole sectors: 8 x 8 pixels, and 96 channels, of any dtype fill some."""
    arguments = evidence_of(Case(8, 8, channels=96), layout, dtype)
    with counting() as counts:
        primitive("layer_evidence").kernel()(**arguments)
    loads, stores = counts["layer_evidence", "ld"], counts["layer_evidence", "st"]
    layer = 2 * 96 * 64 * dtype.itemsize
    # Tokens begin in the middle of a sector: a stretch of them touches one more.
    assert 2 * layer <= loads.moved <= 2 * layer + 2 * 2 * SECTOR * (layout == "tokens")
    assert stores.moved == stores.footprint == 2 * 64 * 4


@pytest.mark.parametrize(
    ("case", "layout", "dtype", "width"),
    [
        (Case(14, 14, channels=256), "contiguous", torch.float32, 16),
        (Case(14, 14, channels=256), "contiguous", torch.bfloat16, 8),  # planes begin at multiples of 8 bytes
        (Case(56, 56, channels=64), "contiguous", torch.float16, 16),
        (Case(7, 7, channels=512), "contiguous", torch.float32, 4),  # ... of an element
        (Case(7, 7, channels=512), "channels last", torch.float32, 16),
        (Case(7, 7, channels=512), "channels last", torch.bfloat16, 16),
        (Case(14, 14, channels=192), "tokens", torch.float32, 16),
        (Case(14, 14, channels=192), "tokens", torch.bfloat16, 16),
    ],
    ids=str,
)
def test_evidence_loads_as_wide_as_a_layer_s_sizes_allow(
    case: Case, layout: str, dtype: torch.dtype, width: int
) -> None:
    arguments = evidence_of(case, layout, dtype)
    (launch,) = record(lambda: primitive("layer_evidence").kernel()(**arguments))
    loads = re.findall(r"ld\.global(?:\.v(\d))?\.b(\d+)", launch.compile().asm["ptx"])
    assert {int(count or 1) * int(bits) // 8 for count, bits in loads} == {width}


def test_combined_levels_are_read_once_for_their_means_and_once_for_the_result() -> None:
    """Layers begin anywhere in a sector, and a pixel's cells are read again, from the cache."""
    counts = traffic("combine_layers")
    pixels, cells = PIXELS // 3, 2 * 4 * sum(height * width for height, width in layers_of(SIDE, SIDE))
    spare = 2 * 4 * 2 * SECTOR
    sums, result = counts["level_sums", "ld"], counts["combine_layers", "ld"]
    # A layer's elements are read one by one, four of each thread, so up to four times its sectors, from the cache.
    assert pixels + cells <= sums.moved <= pixels + 4 * (cells + spare)
    assert pixels + cells <= sums.footprint <= pixels + cells + spare
    assert pixels + cells <= result.footprint <= pixels + cells + spare + 2 * 8 * 8  # ... and the sums


def test_the_cut_off_reads_the_spectrum_once() -> None:
    """Rows of 49 coefficients begin anywhere in a sector: a stretch of them touches one sector more than it fills."""
    loads = traffic("energy_cutoff")["tile_energy", "ld"]
    assert SPECTRA <= loads.footprint <= SPECTRA + 2 * SECTOR
    stretches = 2 * 3 * SIDE * 2  # a row lies in two tiles
    assert SPECTRA <= loads.moved <= SPECTRA + stretches * SECTOR


def test_the_step_reads_and_writes_what_its_file_says() -> None:
    """36 bytes per pixel and channel: gradients in two passes, four inputs, three results."""
    counts = traffic("gradient_step")
    least = sum(counts[key].footprint for key in (("magnitude", "ld"), ("step", "ld"), ("step", "st")))
    assert 9 * PIXELS <= least <= 9 * PIXELS + 20 * SECTOR
