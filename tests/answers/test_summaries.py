"""The summaries of a map, of maps whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fampe_fast.answers.summaries import HIGH, LOW, summarise


def wave(radius: float, size: int = 128) -> np.ndarray:
    place = np.arange(size) / size
    return np.cos(2 * np.pi * radius * place)[None, None, :].repeat(size, 1).astype(np.float32)


def test_a_waves_energy_is_in_the_band_of_its_frequency() -> None:
    for radius, band in ((LOW, 0), (LOW + 1, 1), (HIGH, 1), (HIGH + 1, 2)):
        shares = summarise(wave(radius))[:3]
        assert shares[band] == pytest.approx(1, abs=1e-6), radius
    mixed = summarise(np.concatenate([wave(2), 2 * wave(40)]))
    assert (mixed.energy_low, mixed.energy_high) == pytest.approx((0.2, 0.8), abs=1e-6)


def test_a_pixel_and_an_even_map_have_the_centre_and_entropy_of_their_kind() -> None:
    point = np.zeros((1, 10, 20), np.float32)
    point[0, 2, 14] = 1e-30
    found = summarise(point)
    assert (found.centre_row, found.centre_column) == pytest.approx((0.25, 0.725))
    assert found.entropy == 0
    even = summarise(np.ones((3, 10, 20), np.float32))
    assert (even.centre_row, even.centre_column) == pytest.approx((0.5, 0.5))
    assert even.entropy == pytest.approx(math.log(200))
    assert all(math.isnan(share) for share in even[:3])


def test_evidence_against_a_class_has_no_place_and_a_map_without_any_no_summary() -> None:
    mixed = np.zeros((1, 10, 10), np.float32)
    mixed[0, 0, 0], mixed[0, 9, 9] = -5, 1
    assert summarise(mixed).centre_row == pytest.approx(0.95)
    assert all(math.isnan(value) for value in summarise(np.zeros((1, 8, 8), np.float32)))
    assert all(math.isnan(value) for value in summarise(np.full((1, 8, 8), np.nan, np.float32)))
    assert math.isnan(summarise(-np.ones((1, 8, 8), np.float32)).entropy)
