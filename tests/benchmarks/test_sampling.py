"""The sampling schemes of benchmarks/quality/sampling.py are what they are called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.quality import sampling
from fampe_fast import FAMPEConfig


@pytest.fixture
def multipliers(monkeypatch: pytest.MonkeyPatch):
    """The random multipliers of a scheme's samples, (N, K): an impulse has a spectrum of ones, and L is 1.

    The weights hold the inverse transform's factor, here a power of two.
    """
    monkeypatch.setattr(sampling.Sampled, "_gradients", lambda self, mixed: mixed.detach())
    impulse = torch.zeros(1, 1, 16, 16)
    impulse[..., 0, 0] = 1
    config = FAMPEConfig(alpha=1, rho=0.25, sigma=0, cutoff=1e6)
    sampled = sampling.Sampled(None, impulse, 0, config)

    def of(mixed: Tensor) -> Tensor:
        return ((16 * 16 * mixed.real.flatten(1) - 1) / (2 * 0.25)).double()

    return sampled, of


def test_a_mirror_image_has_the_opposite_numbers(multipliers) -> None:
    sampled, of = multipliers
    plain = of(sampled.plain(5, 9))
    assert plain.std() > 0.4
    torch.testing.assert_close(of(sampled.plain(5, 9, mirrored=True)), -plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(of(sampled.plain(7, 2)), plain[2:4], rtol=0, atol=0)


@pytest.mark.parametrize("count", [2, 8, 11])
def test_a_hypercube_has_one_number_in_every_stratum(multipliers, count: int) -> None:
    sampled, of = multipliers
    found = of(sampled.hypercube(count, seed=3))
    strata = ((found + 1) / 2 * count).floor().sort(0).values
    assert torch.equal(strata, torch.arange(count, dtype=torch.float64)[:, None].expand_as(strata))
    assert not torch.equal(found[0].argsort(), found[-1].argsort())


def test_correlations_are_of_the_maps() -> None:
    gradient = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = sampling.maps_of(gradient)
    assert sampling.correlation(maps["as shown"], sampling.maps_of(3 * gradient)["as shown"]) == pytest.approx(1)
    assert abs(sampling.correlation(maps["as collected"], torch.randn(256))) < 0.3
