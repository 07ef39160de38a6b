"""Maps in the dtype that they are stored in."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fampe_fast.answers.result import scaled_map

SHAPE = (2, 6, 7)
ATTRIBUTIONS = [
    np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32) * 10.0**power for power in (-9, -3, 0, 3, 9)
]


def test_a_map_in_half_precision_is_divided_by_a_power_of_two_and_by_nothing_else() -> None:
    for attribution in ATTRIBUTIONS:
        stored, scale = scaled_map(attribution, "float16")
        assert stored.dtype == np.float16
        assert math.frexp(scale)[0] == 0.5
        assert 0.5 <= float(np.abs(stored).max()) <= 1
        # Half precision has 11 bits, down to 2^-14; below, its steps are 2^-24.
        error = np.abs(stored.astype(np.float64) * scale - attribution)
        assert (error <= np.maximum(np.abs(attribution) * 2.0**-11, scale * 2.0**-25)).all()


@pytest.mark.parametrize("value", [0.0, 1e-45, 2.0**-130, 1.0, 2.0**127, 3.4e38])
def test_maps_at_the_ends_of_single_precision_come_back(value: float) -> None:
    attribution = np.full(SHAPE, value, np.float32)
    stored, scale = scaled_map(attribution, "float16")
    assert np.float32(scale) == scale
    back = stored.astype(np.float64) * scale
    np.testing.assert_allclose(back, attribution, rtol=2.0**-11)


def test_what_is_not_finite_stays() -> None:
    attribution = np.ones(SHAPE, np.float32) * 3
    attribution[0, 0, :3] = [np.nan, np.inf, -np.inf]
    stored, scale = scaled_map(attribution, "float16")
    np.testing.assert_array_equal(stored.astype(np.float32) * scale, attribution)
