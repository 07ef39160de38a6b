"""Textures have the spectra that are said of them, and the medical-like pictures look like what they are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fampe_fast.images.medical import chest_radiograph, head_slice
from fampe_fast.images.textures import textures

SIZE = 64
NAMES = [texture.name for texture in textures(SIZE)]


def power_of(image: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.rfft2(image)) ** 2


@pytest.mark.parametrize("name", NAMES)
def test_the_power_is_what_is_expected(name: str) -> None:
    (texture,) = (texture for texture in textures(SIZE) if texture.name == name)
    rng = np.random.default_rng(0)
    images = [texture.draw(rng) for _ in range(200)]
    assert images[0].shape == (SIZE, SIZE)
    assert min(image.min() for image in images) >= 0
    assert max(image.max() for image in images) <= 1
    assert not np.array_equal(images[0], images[1])
    if "noise" not in name:  # the place alone is random, which the power does not see
        for image in images[:10]:
            np.testing.assert_allclose(power_of(image), texture.power, atol=1e-6 * SIZE**4)
        return
    mean = np.mean([power_of(image) for image in images], axis=0)
    assert mean[0, 0] == pytest.approx(texture.power[0, 0], rel=0.01)
    ratio = mean[texture.power > 0] / texture.power[texture.power > 0]
    assert ratio.mean() == pytest.approx(1, abs=0.02)
    assert 0.6 < ratio.min() < ratio.max() < 1.5  # 200 draws of an exponential: 0.07 each way, of 2,000 coefficients


def test_the_names_have_the_frequencies() -> None:
    assert NAMES[2:] == [
        "grating, 2 cycles", "grating, 8 cycles", "grating, 10 cycles", "checkerboard, 2 x 2 cycles",
        "checkerboard, 8 x 8 cycles",
    ]  # fmt: skip
    for texture in textures(SIZE)[2:5]:
        energy = texture.power.copy()
        energy[0, 0] = 0
        rows, columns = np.nonzero(energy)
        rows = np.where(rows > SIZE // 2, rows - SIZE, rows)
        assert {f"grating, {math.hypot(u, v):g} cycles" for u, v in zip(rows, columns, strict=True)} == {texture.name}


def test_a_checkerboard_has_squares_of_two_values() -> None:
    board = textures(SIZE)[-1].draw(np.random.default_rng(0))
    assert np.unique(board.round(9)).tolist() == [0.2, 0.8]
    np.testing.assert_allclose(board, 1 - np.roll(board, 4, 0))
    np.testing.assert_allclose(board, np.roll(np.roll(board, 4, 0), 4, 1))


@pytest.mark.parametrize("size", [0, 32, 65, 100])
def test_sizes_without_whole_periods_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 32, at least 64, .*got {size}"):
        textures(size)


def test_the_head_has_a_skull_a_brain_and_ventricles() -> None:
    # Turned, moved and scaled a little at random: the mean of many has soft borders, and its insides where they belong.
    rng = np.random.default_rng(0)
    head = np.mean([head_slice(rng, 128) for _ in range(40)], axis=0)
    at = {"corner": (2, 2), "brain": (90, 64), "left ventricle": (62, 49), "right ventricle": (62, 78)}
    corner, brain, left, right = (head[place] for place in at.values())
    assert corner < 0.02
    assert brain == pytest.approx(0.2, abs=0.02)
    assert left < 0.1
    assert right < 0.1
    assert head[:16].max() > 0.5  # the skull
    # Of the grain of 0.03, clipped outside of the head and stronger at high frequencies than at low ones.
    assert 0.03**2 / 2 < power_of(head_slice(np.random.default_rng(1), 128))[56:72, 56:].mean() / 128**2 < 2 * 0.03**2


def test_the_chest_has_dark_lungs_beside_a_bright_middle_in_low_contrast() -> None:
    rng = np.random.default_rng(0)
    chest = np.mean([chest_radiograph(rng, 128) for _ in range(40)], axis=0)
    assert chest[60, 64] > chest[60, 37] + 0.07
    assert chest[60, 64] > chest[60, 91] + 0.07
    one = chest_radiograph(np.random.default_rng(1), 128)
    assert 0.05 < one.std() < 0.12
    assert 0.3 < one.min() < one.max() < 0.95
    # The noise of counted photons: its variance is the mean over their number.
    assert power_of(one)[56:72, 56:].mean() / 128**2 == pytest.approx(one.mean() / 900, rel=0.25)


@pytest.mark.parametrize("draw", [head_slice, chest_radiograph])
def test_a_seed_draws_one_picture(draw) -> None:
    first, second = (draw(np.random.default_rng(7), 64) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (64, 64)
    assert 0 <= first.min() <= first.max() <= 1
