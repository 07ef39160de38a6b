"""The reference against analytic facts and independent formulas, in float64 where the fact is exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fampe_fast.reference.band_mix import band_mix
from fampe_fast.reference.combine_layers import combine_layers
from fampe_fast.reference.dct_mix import dct_matrix, dct_mix
from fampe_fast.reference.energy_cutoff import energy_cutoff, shell_energy
from fampe_fast.reference.gradient_step import gradient_step, smooth
from fampe_fast.reference.philox import philox4x32, to_uniform
from fampe_fast.reference.radial_mask import radial_mask
from fampe_fast.reference.radius import multiplicity, shell_index, squared_radius
from fampe_fast.reference.spectral_noise import hermitian_grid, spectral_draw
from fampe_fast.testing.known_answers import PHILOX, PhiloxVector

SIZES = [(8, 8), (9, 9), (12, 20), (21, 10), (15, 32), (17, 13)]


@pytest.mark.parametrize("vector", PHILOX)
def test_philox_gives_the_published_words(vector: PhiloxVector) -> None:
    counter, key = (tuple(torch.tensor([word]) for word in words) for words in (vector.counter, vector.key))
    assert tuple(int(word) for word in philox4x32(counter, key, vector.rounds)) == vector.words


def test_uniform_numbers_are_the_formula_exactly_and_stay_inside_the_open_interval() -> None:
    word = torch.tensor([0, 255, 256, 2**31, 2**32 - 256, 2**32 - 1])
    exact = [2 * ((int(w) >> 8) * 2.0**-24 + 2.0**-25) - 1 for w in word]  # Python floats hold it exactly
    assert to_uniform(word).double().tolist() == exact
    assert to_uniform(word).abs().max() < 1


def test_uniform_numbers_have_the_moments_of_the_uniform_distribution() -> None:
    index = torch.arange(2**18)
    zero = torch.tensor(0)
    values = to_uniform(torch.stack(philox4x32((index, zero, zero, zero), (zero + 5, zero))), torch.float64)
    count = values.numel()
    assert abs(values.mean()) < 4 * math.sqrt(1 / 3 / count)
    assert abs((values**2).mean() - 1 / 3) < 4 * math.sqrt((1 / 5 - 1 / 9) / count)
    correlation = torch.corrcoef(values)
    assert (correlation - torch.eye(4)).abs().max() < 4 / math.sqrt(2**18)


@pytest.mark.parametrize("size", SIZES)
def test_radius_agrees_with_fftfreq(size: tuple[int, int]) -> None:
    height, width = size
    rows, columns = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.rfftfreq(width, dtype=torch.float64)
    expected = min(size) ** 2 * (rows[:, None] ** 2 + columns**2)
    torch.testing.assert_close(squared_radius(height, width, dtype=torch.float64), expected)


@pytest.mark.parametrize("size", [*SIZES, (224, 224), (224, 299), (2048, 1536)])
def test_shells_are_exact_where_square_roots_round(size: tuple[int, int]) -> None:
    height, width = size
    shells = shell_index(height, width)
    rows = [u if u <= height // 2 else u - height for u in range(height)]
    short, long = min(size), max(size)
    for u in {0, 1, 3, height // 2, height - 3, height - 1}:
        for v in {0, 1, 3, 4, width // 2}:
            along_short, along_long = (rows[u], v) if height <= width else (v, rows[u])
            scaled = (along_short * long) ** 2 + (along_long * short) ** 2
            root = math.isqrt(scaled - 1) + 1 if scaled else 0  # ceil of the square root, in integers
            assert int(shells[u, v]) == -(-root // long), (u, v)


@pytest.mark.parametrize("size", SIZES)
def test_shell_energy_is_that_of_the_full_spectrum_and_of_the_pixels(size: tuple[int, int]) -> None:
    height, width = size
    images = torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    energy = shell_energy(torch.fft.rfft2(images), width)
    full = torch.fft.fft2(images).abs() ** 2
    u, v = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.fftfreq(width, dtype=torch.float64)
    radius = min(size) * (u[:, None] ** 2 + v**2).sqrt()
    for shell in range(energy.shape[1]):
        inside = (radius <= shell + 1e-9) & (radius > shell - 1 + 1e-9)
        torch.testing.assert_close(energy[:, shell], (full * inside).sum((1, 2, 3)))
    torch.testing.assert_close(energy.sum(1), (images**2).sum((1, 2, 3)) * height * width)  # Parseval


@pytest.mark.parametrize("radius", [1, 3, 7, 11])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_sine_at_radius_k_gives_cutoff_k(radius: int, axis: int) -> None:
    phase = 2 * math.pi * radius * torch.arange(24, dtype=torch.float64) / 24
    wave = torch.sin(phase + 0.3)
    image = (wave[:, None] if axis == 0 else wave[None, :]).expand(24, 24)[None, None]
    assert energy_cutoff(torch.fft.rfft2(image.contiguous()), 24, tau=0.9).item() == radius


def test_the_cutoff_counts_cycles_over_the_shorter_side() -> None:
    wave = torch.sin(2 * math.pi * 10 * torch.arange(40, dtype=torch.float64) / 40)
    image = wave.expand(1, 1, 20, 40)  # 10 cycles along 40 pixels are 5 along 20
    assert energy_cutoff(torch.fft.rfft2(image.contiguous()), 40).item() == 5


@pytest.mark.parametrize(("tau", "expected"), [(0.5, 2), (0.5000001, 5), (0.75, 5), (0.7500001, 6), (1.0, 6)])
def test_the_cutoff_is_exact_at_ties(tau: float, expected: int) -> None:
    spectrum = torch.zeros(1, 1, 16, 9, dtype=torch.complex128)
    spectrum[0, 0, 0, 2] = 2  # counted twice: 8 of 16
    spectrum[0, 0, 3, 4] = 1 + 1j  # radius exactly 5: 4 of 16
    spectrum[0, 0, 6, 0] = 2  # in the DC column, once: 4 of 16
    assert energy_cutoff(spectrum, 16, tau).item() == expected


def test_the_cutoff_can_leave_dc_out() -> None:
    wave = torch.sin(2 * math.pi * 4 * torch.arange(16) / 16)
    image = (10 + wave).expand(1, 1, 16, 16)
    spectrum = torch.fft.rfft2(image.contiguous())
    assert energy_cutoff(spectrum, 16).item() == 1
    assert energy_cutoff(spectrum, 16, include_dc=False).item() == 4


@pytest.mark.parametrize("include_dc", [True, False])
def test_images_without_energy_have_cutoff_one(include_dc: bool) -> None:
    images = torch.stack([torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.5)])
    assert energy_cutoff(torch.fft.rfft2(images), 8, include_dc=include_dc).tolist() == [1, 1]
    one_pixel = torch.full((1, 1, 1, 1), 0.5)
    assert energy_cutoff(torch.fft.rfft2(one_pixel), 1, include_dc=include_dc).tolist() == [1]


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_the_gaussian_and_its_complement(size: tuple[int, int]) -> None:
    cutoff = torch.tensor([1.0, 3.5], dtype=torch.float64)
    low, high = radial_mask(cutoff, *size)
    torch.testing.assert_close(low + high, torch.ones_like(low))
    assert (low[:, 0, 0] == 1).all()
    radius = squared_radius(*size, dtype=torch.float64).sqrt()
    for b, cf in enumerate(cutoff.tolist()):
        for u, v in ((0, 1), (1, 0), (size[0] - 1, 2)):
            assert low[b, u, v].item() == pytest.approx(math.exp(-(float(radius[u, v]) ** 2) / (2 * cf**2)), rel=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_masks_are_the_disc_and_the_butterworth(size: tuple[int, int]) -> None:
    cutoff = torch.tensor([1.0, 3.5, 4.0], dtype=torch.float64)
    disc, outside = radial_mask(cutoff, *size, "disc")
    smooth, rest = radial_mask(cutoff, *size, "butterworth")
    assert disc.dtype == smooth.dtype == torch.float64
    for low, high in ((disc, outside), (smooth, rest)):
        assert torch.equal(high, 1 - low)
        assert (low[:, 0, 0] == 1).all()
    shells = shell_index(*size)
    radius = squared_radius(*size, dtype=torch.float64).sqrt()
    for b, cf in enumerate(cutoff.tolist()):
        if cf.is_integer():
            assert torch.equal(disc[b], (shells <= cf).double())
        for u, v in ((0, 1), (1, 0), (size[0] - 1, 2)):
            ratio = float(radius[u, v]) / cf
            assert smooth[b, u, v].item() == pytest.approx(1 / (1 + ratio**4), rel=1e-12)
            assert disc[b, u, v].item() == (ratio < 1 + 1e-12)


def test_the_disc_of_the_energy_cutoff_holds_the_energy() -> None:
    """The disc's edge and the energy's are one: tau of the energy is inside, less is inside the next smaller disc."""
    images = torch.rand(4, 2, 21, 14, generator=torch.Generator().manual_seed(2))
    spectrum = torch.fft.rfft2(images.double())
    energy = spectrum.abs().square().sum(1) * multiplicity(14)
    cutoff = energy_cutoff(spectrum, 14, 0.9)
    assert (cutoff > 1).all()
    held = [(energy * radial_mask(c, 21, 14, "disc")[0]).sum((1, 2)) / energy.sum((1, 2)) for c in (cutoff, cutoff - 1)]
    assert (held[0] >= 0.9).all()
    assert (held[1] < 0.9).all()


def draw(size: tuple[int, int], rows: int, channels: int = 2, seed: int = 3, dtype: torch.dtype = torch.float64):
    grid = hermitian_grid(*size, dtype=dtype)
    return spectral_draw(
        grid, torch.zeros(rows, dtype=torch.long), torch.arange(rows), torch.tensor(seed), torch.tensor(0), channels
    )


def half(values: Tensor, size: tuple[int, int]) -> Tensor:
    return values.unflatten(-1, (size[0], size[1] // 2 + 1))


@pytest.mark.parametrize("size", SIZES)
def test_noise_and_multipliers_have_exact_hermitian_symmetry(size: tuple[int, int]) -> None:
    width = size[1]
    noise = draw(size, 3)
    spectrum = half(torch.complex(noise.noise_re, noise.noise_im), size)
    for column in {0, width // 2} if width % 2 == 0 else {0}:
        mirrored = spectrum[..., column].roll(-1, -1).flip(-1)  # row H-u
        assert torch.equal(spectrum[..., column], mirrored.conj().resolve_conj())
        for multiplier in (noise.low, noise.high):
            values = half(multiplier, size)[..., column]
            assert torch.equal(values, values.roll(-1, -1).flip(-1))
    # The real image of this spectrum transforms back to it: nothing was lost in parts that irfft2 ignores.
    image = torch.fft.irfft2(spectrum, s=size)
    torch.testing.assert_close(torch.fft.rfft2(image.contiguous()), spectrum, atol=1e-9, rtol=1e-9)
    # ...and it is the real image of the full complex spectrum that the symmetry defines.
    torch.testing.assert_close(torch.fft.fft2(image)[..., : width // 2 + 1], spectrum, atol=1e-9, rtol=1e-9)
    assert torch.fft.ifft2(torch.fft.fft2(image)).imag.abs().max() < 1e-12


@pytest.mark.parametrize("size", [(16, 16), (15, 12), (12, 15)])
def test_noise_in_the_pixels_is_white_gaussian_of_unit_variance(size: tuple[int, int]) -> None:
    rows = 3000
    noise = draw(size, rows, channels=1)
    pixels = torch.fft.irfft2(half(torch.complex(noise.noise_re, noise.noise_im), size), s=size)[:, 0]
    count = pixels.numel()
    assert abs(pixels.mean()) < 4 / math.sqrt(count)
    variance = pixels.var(0)
    assert (variance - 1).abs().max() < 5 * math.sqrt(2 / rows)  # at every pixel, the self-conjugate points included
    assert abs(variance.mean() - 1) < 4 * math.sqrt(2 / count)
    for shift in ((0, 1), (1, 0), (1, 1), (3, 2)):
        assert abs((pixels * pixels.roll(shift, (1, 2))).mean()) < 4 / math.sqrt(count)
    kurtosis = (pixels**4).mean() / (pixels**2).mean() ** 2 - 3
    expected = -1.2 / (size[0] * size[1])
    assert abs(kurtosis - expected) < 4 * math.sqrt(24 / count) + abs(expected)


def test_streams_differ_by_seed_step_sample_channel_and_image() -> None:
    grid = hermitian_grid(8, 8)

    def real(image: int = 0, sample: int = 0, seed: int = 0, step: int = 0) -> Tensor:
        ids, samples = torch.tensor([image]), torch.tensor([sample])
        return spectral_draw(grid, ids, samples, torch.tensor(seed), torch.tensor(step), 3).noise_re[0]

    base = real()
    others = [real(image=1), real(sample=1), real(seed=1), real(seed=2**32), real(seed=-1), real(step=1)]
    for k, other in enumerate(others):
        assert not torch.isclose(base, other).any(), k
    assert not torch.isclose(base[0], base[1]).any()


def mix(images: Tensor, cutoff: float, weights: tuple[float, ...], shared: bool = False, rows: int = 1) -> Tensor:
    batch, _, _, width = images.shape
    index = torch.arange(batch).repeat(rows)
    mixed = band_mix(
        torch.fft.rfft2(images),
        torch.full((batch,), cutoff),
        torch.tensor([weights] * batch, dtype=images.dtype),
        torch.arange(batch),
        index,
        torch.arange(rows).repeat_interleave(batch),
        torch.tensor(11),
        torch.tensor(2),
        width,
        shared,
    )
    return torch.fft.irfft2(mixed, s=images.shape[-2:])


@pytest.fixture(params=SIZES, ids=str)
def images(request: pytest.FixtureRequest) -> Tensor:
    return torch.rand(2, 3, *request.param, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_mix_at_one_half_without_randomness_is_half_the_image(images: Tensor) -> None:
    torch.testing.assert_close(mix(images, 3, (0, 0.5, 0, 0.5, 0, 0)), images / 2)


def test_mix_without_randomness_is_the_filter(images: Tensor) -> None:
    alpha, cutoff = 0.2, 2.5
    size = images.shape[-2:]
    u, v = torch.fft.fftfreq(size[0], dtype=torch.float64), torch.fft.fftfreq(size[1], dtype=torch.float64)
    squared = min(size) ** 2 * (u[:, None] ** 2 + v**2)
    low = torch.exp(-squared / (2 * cutoff**2))
    expected = torch.fft.ifft2(torch.fft.fft2(images) * (alpha * low + (1 - alpha) * (1 - low))).real
    torch.testing.assert_close(mix(images, cutoff, (0, alpha, 0, 1 - alpha, 0, 0)), expected)


def test_modulate_and_allpass_without_randomness_are_the_identity(images: Tensor) -> None:
    torch.testing.assert_close(mix(images, 3, (1, 0, 0, 0, 0, 0)), images)


def test_noise_alone_has_standard_deviation_sigma() -> None:
    still = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    noise = mix(still, 3, (1, 0, 0, 0, 0, 0.1), rows=200)
    assert noise.std().item() == pytest.approx(0.1, rel=4 / math.sqrt(2 * noise.numel()))


def test_multipliers_act_on_their_own_band(images: Tensor) -> None:
    """With a tiny cut-off the low band is DC alone: low-band multipliers then change nothing but the mean."""
    changed = mix(images, 1e-3, (1, 0, 1, 0, 0, 0)) - images
    flat = changed.mean((-2, -1), keepdim=True)
    torch.testing.assert_close(changed, flat.expand_as(changed), atol=1e-12, rtol=0)
    assert flat.abs().min() > 1e-6
    changed = mix(images, 1e-3, (1, 0, 0, 0, 1, 0)) - images
    assert changed.mean((-2, -1)).abs().max() < 1e-12
    assert changed.abs().max() > 1e-3


def test_a_shared_multiplier_makes_the_cutoff_irrelevant(images: Tensor) -> None:
    weights = (1, 0, 0.5, 0, 0.5, 0.1)
    torch.testing.assert_close(mix(images, 2, weights, shared=True), mix(images, 5, weights, shared=True))
    assert not torch.allclose(mix(images, 2, weights), mix(images, 5, weights))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    images = torch.rand(3, 2, 10, 12)
    args = (torch.tensor([2.0, 3.0, 4.0]), torch.tensor([[0, 0.1, 0.05, 0.9, 0.45, 0.1]] * 3), torch.tensor([7, 5, 9]))
    spectrum = torch.fft.rfft2(images)
    seed, step = torch.tensor(1), torch.tensor(4)
    all_rows = band_mix(spectrum, *args, torch.tensor([0, 1, 2, 1]), torch.tensor([0, 0, 0, 3]), seed, step, 12)
    alone = band_mix(spectrum[1:2], *(a[1:2] for a in args), torch.tensor([0]), torch.tensor([3]), seed, step, 12)
    assert torch.equal(all_rows[3], alone[0])


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_the_dct_matrix_is_orthonormal_and_the_textbook_sum(size: int) -> None:
    matrix = dct_matrix(size, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    for k in range(size):
        for n in range(size):
            norm = math.sqrt((1 if k == 0 else 2) / size)
            assert matrix[k, n].item() == pytest.approx(
                norm * math.cos(math.pi * k * (2 * n + 1) / (2 * size)), abs=1e-12
            )


def test_the_dct_mix_is_noise_times_multiplier() -> None:
    spectrum = torch.randn(1, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ids, seed = torch.zeros(1, dtype=torch.long), torch.tensor(0)

    def sample(rho: float, sigma: float) -> Tensor:
        return dct_mix(spectrum, torch.tensor([[rho, sigma]]), ids, ids, ids, seed, seed)

    assert torch.equal(sample(0, 0), spectrum)
    noise = sample(0, 0.2) - spectrum
    assert noise.std().item() == pytest.approx(0.2, rel=4 / math.sqrt(2 * noise.numel()))
    ratio = sample(0.5, 0) / spectrum
    assert ratio.min() > 0.5
    assert ratio.max() < 1.5
    assert ratio.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.03)


KERNEL = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64)


def step(gradient: Tensor, **changes: object):
    images = torch.full_like(gradient, 0.5)
    arguments: dict[str, object] = {
        "images": images,
        "origin": images,
        "gradient_sum": gradient,
        "momentum": torch.zeros_like(gradient),
        "attribution": torch.zeros_like(gradient),
        "kernel": torch.zeros(0),
        "samples": 1,
        "decay": 1.0,
        "step_size": 0.01,
        "eps": 0.1,
        "lower": 0.0,
        "upper": 1.0,
    }
    return gradient_step(**{**arguments, **changes})


def test_a_free_step_moves_against_the_sign_and_attributes_step_times_magnitude() -> None:
    gradient = torch.tensor([[[[3.0, -1.0], [0.0, -4.0]]]], dtype=torch.float64)
    result = step(gradient)
    assert result.scale.item() == 2
    torch.testing.assert_close(result.images, 0.5 - 0.01 * gradient.sign())
    torch.testing.assert_close(result.momentum, gradient / 2)
    torch.testing.assert_close(result.attribution, 0.01 * gradient.abs() / 2)


def test_ascending_mirrors_the_path_and_keeps_the_attribution() -> None:
    gradient = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    down, up = step(gradient), step(gradient, step_size=-0.01)
    torch.testing.assert_close(up.images - 0.5, 0.5 - down.images)
    torch.testing.assert_close(up.attribution, down.attribution)


def test_the_mean_is_over_the_samples_and_the_scale_cancels() -> None:
    gradient = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    one, many = step(gradient), step(gradient * 7, samples=7)
    torch.testing.assert_close(one.attribution, many.attribution)
    torch.testing.assert_close(one.scale, many.scale)


def test_momentum_adds_up() -> None:
    gradient = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    first = step(gradient)
    second = step(gradient, momentum=first.momentum, decay=0.5)
    torch.testing.assert_close(second.momentum, 1.5 * first.momentum)


def test_projection_and_bounds_hold() -> None:
    gradient = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    origin = torch.full_like(gradient, 0.5)
    at_the_edge = origin - 0.1
    result = step(gradient, images=at_the_edge)
    torch.testing.assert_close(result.images, at_the_edge)
    assert (result.attribution == 0).all()  # nothing moved, nothing is attributed
    dark = torch.zeros_like(gradient)
    assert (step(gradient, images=dark, origin=dark).images == 0).all()


def test_smoothing_is_the_separable_convolution_with_zero_padding() -> None:
    impulse = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    impulse[0, 0, 4, 4] = 1
    impulse[0, 1, 0, 0] = 1
    smoothed = smooth(impulse, KERNEL)
    torch.testing.assert_close(smoothed[0, 0, 3:6, 3:6], torch.outer(KERNEL, KERNEL))
    torch.testing.assert_close(smoothed[0, 1, :2, :2], torch.outer(KERNEL[1:], KERNEL[1:]))
    assert smoothed.sum(dim=(2, 3))[0, 0].item() == pytest.approx(1)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_an_unusable_gradient_costs_its_own_image_only(bad: float) -> None:
    gradient = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    clean = step(gradient)
    spoiled = gradient.clone()
    spoiled[0] = bad
    result = step(spoiled)
    assert (result.attribution[0] == 0).all()
    assert (result.momentum[0] == 0).all()
    assert torch.equal(result.images[0], torch.full_like(gradient[0], 0.5))
    assert torch.equal(result.attribution[1], clean.attribution[1])
    assert not (result.scale[0] > 0) or not math.isfinite(result.scale[0])


def test_multiplicities_count_the_full_spectrum() -> None:
    for width in (8, 9, 10, 11):
        assert int(multiplicity(width).sum()) == width


# Layers ---------------------------------------------------------------------------------------------------------------


def hat_functions(size: int, resized: int) -> Tensor:
    """Linear interpolation, a matrix (resized, size): a row's share of a cell falls as its centre is further away."""
    place = ((torch.arange(resized, dtype=torch.float64) + 0.5) * size / resized - 0.5).clamp(0, size - 1)
    return (1 - (place[:, None] - torch.arange(size)).abs()).clamp(min=0)


@pytest.mark.parametrize("layers", [[], [(3, 5)], [(7, 2), (1, 1), (9, 8), (40, 3), (4, 30)]])
def test_layers_are_combined_as_the_formula_says(layers: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(5)
    levels = [torch.rand(2, *size, generator=generator, dtype=torch.float64) for size in [(9, 8), *layers]]
    weights, gates = torch.rand(2, len(levels), generator=generator, dtype=torch.float64).tolist()
    total, gate = torch.zeros(2, 9, 8).double(), torch.full((2, 9, 8), 0.2).double()
    for level, weight, share in zip(levels, weights, gates, strict=True):
        down, across = (hat_functions(*pair) for pair in zip(level.shape[1:], (9, 8), strict=True))
        resized = torch.einsum("yi,bij,xj->byx", down, level / level.mean((1, 2), keepdim=True), across)
        total, gate = total + weight * resized, gate + share * resized
    evidence = torch.cat([torch.empty(2, 0, dtype=torch.float64), *(level.flatten(1) for level in levels[1:])], 1)
    sizes = [side for size in layers for side in size]
    got = combine_layers(levels[0], evidence, sizes, weights, gates, 0.2)
    torch.testing.assert_close(got, total * gate)
