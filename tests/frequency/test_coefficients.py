"""Values per frequency: what is real and signed of conjugate pairs, and the sectors and rings that share it out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fampe_fast.frequency import centred, octave_bands, orientation_sectors, product_per_frequency, three_bands

SIZES = [(16, 16), (15, 15), (12, 20), (21, 10), (9, 30), (8, 33), (1, 8)]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def wave(height: int, width: int, down: int, across: int) -> Tensor:
    rows = torch.arange(height, dtype=torch.float64)[:, None] / height
    columns = torch.arange(width, dtype=torch.float64) / width
    return torch.cos(2 * math.pi * (down * rows + across * columns) + 0.3)


@pytest.mark.parametrize("size", SIZES)
def test_a_scalar_product_is_shared_out_over_the_frequencies(size: tuple[int, int]) -> None:
    """Against the complex transform: pairs joined, real, and nothing lost."""
    a, b = noise(2, 3, *size), noise(2, 3, *size, seed=1)
    found = product_per_frequency(a, b)
    torch.testing.assert_close(found.sum((1, 2)), (a * b).sum((1, 2, 3)))
    whole = (torch.fft.fft2(a).conj() * torch.fft.fft2(b)).real.sum(1) / (size[0] * size[1])
    plane = centred(found, size[1])
    assert plane.shape == (2, size[0] // 2 * 2 + 1, size[1] // 2 * 2 + 1)
    torch.testing.assert_close(plane, plane.flip((1, 2)))  # of real images
    torch.testing.assert_close(plane.sum((1, 2)), (a * b).sum((1, 2, 3)))
    for down in range(-((size[0] - 1) // 2), (size[0] - 1) // 2 + 1):  # but for the highest, which stands at both ends
        for across in range(-((size[1] - 1) // 2), (size[1] - 1) // 2 + 1):
            value = plane[:, down + size[0] // 2, across + size[1] // 2]
            torch.testing.assert_close(value, whole[:, down % size[0], across % size[1]])


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (12, 20), (9, 30)])
def test_a_quarter_turn_of_the_image_turns_the_plane_and_moves_the_sectors(size: tuple[int, int]) -> None:
    a, b = noise(1, 2, *size), noise(1, 2, *size, seed=1)
    values, turned = (
        product_per_frequency(first, second) for first, second in ((a, b), (a.rot90(dims=(2, 3)), b.rot90(dims=(2, 3))))
    )
    torch.testing.assert_close(centred(turned, size[0]), centred(values, size[1]).rot90(dims=(1, 2)))
    for count in (2, 4, 6, 12):
        before = orientation_sectors(*size, count).sums(values)
        after = orientation_sectors(*size[::-1], count).sums(turned)
        torch.testing.assert_close(after, before.roll(count // 2, 1))


@pytest.mark.parametrize("size", [(16, 16), (15, 15), (12, 20), (21, 10)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_sectors_share_out_all_frequencies_but_dc(size: tuple[int, int], count: int) -> None:
    sectors = orientation_sectors(*size, count)
    whole = torch.ones(size[0], size[1] // 2 + 1, dtype=torch.float64)
    whole[0, 0] = 0
    torch.testing.assert_close(sectors.weights.sum(0), whole)
    assert sectors.edges().tolist() == pytest.approx([(k - 0.5) * 180 / count for k in range(count + 1)])


@pytest.mark.parametrize(
    ("down", "across", "sector"), [(0, 3, 0), (-3, 3, 1), (5, 0, 2), (3, 3, 3), (1, 6, 0), (-6, 1, 2)]
)
def test_a_wave_is_in_the_sector_of_its_direction(down: int, across: int, sector: int) -> None:
    """Of four: across, rising to the right, upright, falling to the right."""
    image = wave(24, 24, down, across)[None, None]
    found = orientation_sectors(24, 24, 4).sums(product_per_frequency(image, image))[0]
    expected = torch.zeros(4, dtype=torch.float64)
    expected[sector] = 24 * 24 / 2
    torch.testing.assert_close(found, expected)


def test_a_wave_on_an_edge_and_one_at_the_highest_frequency_belong_to_two_sectors() -> None:
    half = [144.0, 144.0]
    falling = wave(24, 24, 4, 4)[None, None]
    found = orientation_sectors(24, 24, 2).sums(product_per_frequency(falling, falling))
    assert found[0].tolist() == pytest.approx(half)
    highest = wave(24, 24, 12, 6)[None, None]  # the same pixels as (-12, 6)
    found = orientation_sectors(24, 24, 3).sums(product_per_frequency(highest, highest))
    assert found[0].tolist() == pytest.approx([0.0, *half], abs=1e-9)


def test_octaves_end_at_powers_of_two_and_three_bands_are_low_middle_and_high() -> None:
    assert octave_bands(224, 224).edges[0].tolist() == pytest.approx([0, 2, 4, 8, 16, 32, 64, 112 * math.sqrt(2)])
    assert octave_bands(24, 30).edges[0, :-1].tolist() == [0, 2, 4, 8]
    assert three_bands(224, 224).edges[0].tolist() == pytest.approx([0, 14, 224 / 6, 112 * math.sqrt(2)])
    assert three_bands(64, 96, (5, 9)).edges[0, :3].tolist() == [0, 5, 9]
    for size in ((8, 8), (9, 8), (8, 40), (15, 15), (24, 24)):
        bands = three_bands(*size)
        assert bands.count == 3
        assert bands.coefficients().sum() == size[0] * size[1]  # with DC
        assert orientation_sectors(*size, 12).count == 12


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: product_per_frequency(noise(1, 3, 8, 8), noise(1, 1, 8, 8)), ValueError, "must have one shape"),
        (lambda: product_per_frequency(noise(3, 8, 8), noise(3, 8, 8)), ValueError, r"first must be \(B, C, H, W\)"),
        (lambda: centred(noise(1, 8, 5), 12), ValueError, r"must be \(B, 8, 7\), got shape \(1, 8, 5\)"),
        (lambda: three_bands(24, 24).sums(noise(1, 24, 12)), ValueError, r"must be \(B, 24, 13\)"),
        (lambda: orientation_sectors(24, 24, 4).sums(noise(24, 13)), ValueError, r"must be \(B, 24, 13\)"),
        (lambda: orientation_sectors(8, 8, 0), ValueError, "sectors must be at least 1, got 0"),
        (lambda: orientation_sectors(8, 8, 99), ValueError, "99 sectors are too many for 8 x 8 pixels: sector 1 would"),
        (lambda: orientation_sectors(1, 1, 1), ValueError, "1 sectors are too many for 1 x 1 pixels"),
        (lambda: three_bands(32, 32, (5, 23)), ValueError, "the high band, radii from 23 to 22.6274, would hold no"),
        (lambda: three_bands(32, 32, (5.2, 5.3)), ValueError, "the middle band, radii from 5.2 to 5.3, would hold no"),
        (lambda: three_bands(32, 32, (0.5, 9)), ValueError, "the low band, radii from 0 to 0.5, would hold no freq"),
        (lambda: three_bands(1, 1), ValueError, "would hold no frequency of 1 x 1 pixels"),
        (lambda: three_bands(32, 32, (9, 5)), ValueError, "edges must be ascending radii above 0"),
    ],
)
def test_bad_arguments_are_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
