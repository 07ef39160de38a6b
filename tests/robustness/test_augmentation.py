"""Frequency augmentations: exact where nothing is random, statistics where it is, and the same for the same seed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fampe_fast.frequency.low_pass import low_pass
from fampe_fast.reference.radial_mask import radial_mask
from fampe_fast.robustness import BandMixAugmentation, LowPassAugmentation

from ..models_for_tests import some_images

BOTH = [lambda **options: LowPassAugmentation((2, 6), **options), lambda **options: BandMixAugmentation(**options)]


@pytest.mark.parametrize("make", BOTH)
def test_only_training_images_are_augmented_and_the_input_stays(make) -> None:
    images = some_images(8)
    before = images.clone()
    augmentation = make(probability=1.0)
    assert (augmentation(images) != images).flatten(1).any(1).all()
    assert torch.equal(images, before)
    assert torch.equal(augmentation.eval()(images), images)
    assert torch.equal(make(probability=0.0)(images), images)
    assert augmentation.train()(images[:0]).shape == (0, 3, 24, 24)
    assert isinstance(nn.Sequential(augmentation, nn.Flatten())(images), Tensor)
    for dtype in (torch.float16, torch.float64):
        assert augmentation(images.to(dtype)).dtype == dtype


@pytest.mark.parametrize("make", BOTH)
def test_the_share_of_augmented_images_is_the_probability(make) -> None:
    """600 images at 0.3: within four standard deviations."""
    images = some_images(600, channels=1, height=8, width=8)
    changed = (make(probability=0.3)(images) != images).flatten(1).any(1).float().mean()
    assert abs(float(changed) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 600)


@pytest.mark.parametrize("make", BOTH)
def test_the_same_seed_gives_the_same_batches_and_another_one_others(make) -> None:
    images = some_images(6)

    def two(**options: object) -> list[Tensor]:
        augmentation = make(**options)
        return [augmentation(images), augmentation(images)]

    first, again, other = two(seed=3), two(seed=3), two(seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    given = two(generator=torch.Generator().manual_seed(3))
    assert torch.equal(given[0], first[0])
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator is left alone


@pytest.mark.parametrize("make", BOTH)
def test_what_an_image_gets_does_not_depend_on_its_neighbours(make) -> None:
    """Neither on their pixels nor on which of them are augmented."""
    images = some_images(6)
    others = torch.cat([images[:3], 1 - images[3:]])
    assert torch.equal(make(seed=1)(images)[:3], make(seed=1)(others)[:3])
    half, all_of_them = make(seed=1, probability=0.5)(images), make(seed=1, probability=1.0)(images)
    changed = (half != images).flatten(1).any(1)
    assert changed.any()
    assert not changed.all()
    torch.testing.assert_close(half[changed], all_of_them[changed])


@pytest.mark.parametrize("make", BOTH)
def test_results_stay_in_range_unless_told_otherwise(make) -> None:
    images = (some_images(20) > 0.5).float()
    clamped = make(probability=1.0)(images)
    assert 0 <= float(clamped.min()) <= float(clamped.max()) <= 1
    free = make(probability=1.0, clamp=False)(images)
    assert float(free.min()) < 0
    torch.testing.assert_close(free.clamp(0, 1), clamped)
    with pytest.raises(ValueError, match=r"got values from -2 to 2; augment before normalisation, or set clamp=False"):
        make(probability=1.0)(images * 4 - 2)
    assert float(make(probability=1.0, clamp=False)(images * 4 - 2).min()) < -1
    assert torch.equal(make(probability=1.0).eval()(images * 4 - 2), images * 4 - 2)


@pytest.mark.parametrize("size", [(24, 24), (15, 22)])
def test_a_fixed_radius_is_the_package_s_low_pass(size: tuple[int, int]) -> None:
    images = some_images(3, height=size[0], width=size[1])
    augmented = LowPassAugmentation(4, probability=1.0, clamp=False)(images)
    torch.testing.assert_close(augmented, low_pass(images, 4))


def test_random_radii_are_uniform_in_their_interval() -> None:
    """Read off the spectra: the highest frequency that is left, of white noise at 64 x 64."""
    images = torch.rand(300, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    augmented = LowPassAugmentation((5, 25), probability=1.0, clamp=False)(images)
    frequency = torch.fft.fftfreq(64) * 64
    radius = torch.hypot(frequency[:, None], frequency)
    left = (torch.fft.fft2(augmented[:, 0]).abs() > 1e-2) * radius
    found = left.flatten(1).amax(1).sort().values
    assert 5 - 1 <= float(found[0]) <= float(found[-1]) <= 25
    expected = 5 + 20 * (torch.arange(300) + 0.5) / 300
    # The largest lattice radius lies at most some 0.5 below; Kolmogorov's bound at 0.1 % is 1.95 / sqrt(300).
    assert float((found - expected).abs().max()) < 20 * 1.95 / math.sqrt(300) + 0.5


def test_half_alpha_without_randomness_leaves_images_and_other_alphas_weigh_the_bands() -> None:
    images = some_images(2)
    still = {"rho": 0.0, "sigma": 0.0, "probability": 1.0, "clamp": False, "cutoff": 5.0}
    torch.testing.assert_close(BandMixAugmentation(0.5, **still)(images), images)
    low, high = radial_mask(torch.tensor([5.0]), 24, 24)
    spectrum = torch.fft.rfft2(images)
    expected = torch.fft.irfft2(spectrum * (2 * 0.8 * low + 2 * 0.2 * high)[:, None], s=(24, 24))
    expected = expected - expected.mean((2, 3), keepdim=True) + images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(BandMixAugmentation(0.8, **still)(images), expected)
    loose = BandMixAugmentation(0.8, keep_mean=False, **still)(images)
    torch.testing.assert_close(loose.mean((2, 3)), 1.6 * images.mean((2, 3)))


def test_the_mix_has_the_mean_and_the_spread_of_its_formula() -> None:
    """Over 400 draws of a wave in the high band: E = 2(1-alpha), Var of the amplitude (2(1-alpha) rho)^2 / 3 ...

    ... the noise comes on top, of standard deviation sigma * 2(1-alpha) sqrt(1 + rho^2/3) where L is 0.
    """
    size, count, alpha, rho = 32, 400, 0.7, 0.5
    columns = torch.arange(size) / size
    across = 0.2 * torch.cos(2 * math.pi * 12 * columns).expand(count, 1, size, size)
    still = {"probability": 1.0, "clamp": False, "cutoff": 1.0, "rho": rho}
    mixed = BandMixAugmentation(alpha, sigma=0.0, **still)(0.5 + across)
    amplitude = torch.fft.rfft2(mixed[:, 0])[:, 0, 12].real / (size * size) * 2 / 0.2
    expected, spread = 2 * (1 - alpha), 2 * (1 - alpha) * rho / math.sqrt(3)
    assert abs(float(amplitude.mean()) - expected) < 4 * spread / math.sqrt(count)
    assert float(amplitude.std()) == pytest.approx(spread, rel=0.1)
    assert float(amplitude.max()) <= 2 * (1 - alpha) * (1 + rho) + 1e-4
    noisy = BandMixAugmentation(alpha, sigma=0.05, **still)(torch.full((50, 1, size, size), 0.5)) - 0.5
    high = noisy - low_pass(noisy, 6.0)
    share = 1 - int((torch.hypot(*torch.meshgrid(*[torch.fft.fftfreq(size) * size] * 2, indexing="ij")) <= 6).sum()) / (
        size * size
    )
    assert float(high.std()) == pytest.approx(0.05 * 2 * (1 - alpha) * math.sqrt((1 + rho**2 / 3) * share), rel=0.02)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: LowPassAugmentation(-1), ValueError, "not negative"),
        (lambda: LowPassAugmentation((5, 2)), ValueError, r"\(lowest, highest\)"),
        (lambda: LowPassAugmentation("5"), TypeError, "a number or two"),
        (lambda: LowPassAugmentation(5, probability=1.5), ValueError, r"probability must be in \[0, 1\]"),
        (lambda: BandMixAugmentation((0.2, 1.5)), ValueError, r"alpha must be in \[0, 1\]"),
        (lambda: BandMixAugmentation(rho=2), ValueError, "rho must be in"),
        (lambda: BandMixAugmentation(sigma=-1), ValueError, "not negative"),
        (lambda: BandMixAugmentation(cutoff=0), ValueError, "cutoff must be above 0"),
        (lambda: BandMixAugmentation(tau=0), ValueError, "tau must be above 0"),
        (lambda: LowPassAugmentation(5)(torch.ones(2, 3, 8, 8).int()), TypeError, "got torch.int32"),
        (lambda: LowPassAugmentation(5)(torch.ones(3, 8, 8)), ValueError, r"\(B, C, H, W\)"),
    ],
)
def test_bad_arguments_are_named(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
