"""FAMPE, AttEXplore and the engine below them."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from fampe_fast import FAMPE, AttEXplore, AttEXploreConfig, FAMPEConfig, FORGrad, create_method
from fampe_fast.engine.aggregation import objective
from fampe_fast.engine.config import PathConfig
from fampe_fast.engine.placements import Placement, draw_placements, padded_size
from fampe_fast.engine.samplers import BandMixSampler, Batch, Chunk, DCTSampler
from fampe_fast.engine.schedule import Schedule
from fampe_fast.engine.targets import Targets
from fampe_fast.errors import FampeWarning
from fampe_fast.frequency import two_scale_map
from fampe_fast.reference.band_mix import band_mix
from fampe_fast.reference.philox import philox4x32, split_seed, to_uniform
from fampe_fast.reference.radial_mask import SHAPES
from fampe_fast.testing import assert_as_accurate

from ..models_for_tests import Constant, Smooth, TwoClassLinear, published, some_images

METHODS = [FAMPE, published, AttEXplore]
PLAIN = {"smoothing": False, "input_diversity": False, "views": 0}


@pytest.fixture(params=["reference", "compiled"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", request.param)
    monkeypatch.setattr("fampe_fast.ops.compiled.COMPILE_AFTER", 0)
    return request.param


def placed(image: Tensor, place: Placement) -> Tensor:
    """(1, C, H, W) resized and padded by the published formulas, with torch's own resizing."""
    height, width = image.shape[-2:]
    right = padded_size(width) - place.left - place.width
    bottom = padded_size(height) - place.top - place.height
    resized = nn.functional.interpolate(image, size=place[:2], mode="bilinear", align_corners=False)
    return nn.functional.pad(resized, (place.left, right, place.top, bottom))


def pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


# --- known answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_linear_model_is_attributed_its_weights(decay: float) -> None:
    """Its gradient never changes: g_t = ghat * (1 + decay + ... + decay^t), and A = eps/T * sum_t |g_t|."""
    weight = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(1)) * 0.01
    identity = {"mode": "mix", "alpha": 0.5, "gain": 2.0, "rho": 0.0, "sigma": 0.0}
    method = FAMPE(TwoClassLinear(weight), steps=4, samples=3, eps=0.1, decay=decay, **identity, **PLAIN)
    shown, details = method.attribute(some_images(), target=0, return_details=True)
    maps = details.attribution
    assert torch.equal(shown, two_scale_map(maps, 6.0).expand_as(maps))
    assert torch.equal(FAMPE(method.forward_func, method.config, area_cutoff=None).attribute(some_images(), 0), maps)
    growth = sum(sum(decay**k for k in range(t + 1)) for t in range(4))
    expected = 0.1 / 4 * growth * weight.abs() / weight.abs().mean()
    torch.testing.assert_close(maps, expected.expand_as(maps), rtol=2e-4, atol=1e-6)


def test_descending_raises_the_targets_probability_and_ascending_lowers_it() -> None:
    model, images = Smooth(), some_images()
    before = model(images).softmax(1)[:, 2]
    ends = {}
    for direction in ("descend", "ascend"):
        method = published(model, direction=direction, steps=5, samples=4)
        maps, details = method.attribute(images, target=2, return_details=True)
        ends[direction] = model(details.perturbed).softmax(1)[:, 2]
        assert maps.sum() > 0
    assert (ends["descend"] > before).all()
    assert (ends["ascend"] < before).all()


@pytest.mark.parametrize("method", METHODS)
def test_away_from_the_clamps_maps_are_not_negative_and_the_path_stays_in_its_ball(method: type) -> None:
    images = some_images()
    maps, details = method(Smooth(), steps=3, samples=2, views=0, eps=0.1).attribute(images, return_details=True)
    assert (maps >= 0).all()
    assert (details.perturbed - images).abs().max() <= 0.1 + 1e-6
    assert details.model_passes == 6
    assert details.gradient_scale.shape == (3, 2)


def test_the_path_respects_the_bounds() -> None:
    images = torch.rand(2, 3, 16, 16).round()
    _, details = FAMPE(Smooth(), steps=3, samples=2).attribute(images, return_details=True)
    assert details.perturbed.min() >= 0
    assert details.perturbed.max() <= 1


def test_losses_are_the_written_formulas() -> None:
    logits = torch.randn(4, 6, dtype=torch.float64)
    classes = torch.tensor([0, 5, 2, 2])
    picked = torch.arange(4), classes
    value, factor = objective(logits, classes, PathConfig())
    torch.testing.assert_close(value, -logits.softmax(1).log()[picked].sum())
    assert factor is None
    twice = logits.softmax(1).softmax(1).softmax(1)
    value, factor = objective(logits, classes, PathConfig(loss="softmax_twice"))
    torch.testing.assert_close(value, -twice.log()[picked].sum())
    assert factor is None


# --- AttEXplore against its formulas ---------------------------------------------------------------------------------


def transcription(model: nn.Module, image: Tensor, target: int, image_id: int, config: AttEXploreConfig) -> Tensor:
    """AttEXplore for one image, from its formulas: pixel noise, scipy's DCT, one sample at a time, a 2-D kernel."""
    from scipy.fft import dctn, idctn
    from scipy.stats import norm

    channels, height, width = image.shape
    index = torch.arange(height * width).view(height, width)
    line = norm.pdf([-3, -2, -1, 0, 1, 2, 3])
    kernel = torch.from_numpy(line[:, None] * line / line.sum() ** 2)
    x, g, attribution = image.double(), torch.zeros(channels, height, width, dtype=torch.float64), 0
    for t in range(config.steps):
        places = draw_placements(config.seed, config.steps, config.samples, height, width)[t]
        mean = torch.zeros_like(g)
        for n in range(config.samples):
            key = split_seed(torch.tensor(config.seed))
            channel = torch.arange(channels)[:, None, None] + channels * n
            words = philox4x32((index, channel, torch.tensor(t), torch.tensor(image_id)), key)
            white, xi = (to_uniform(words[k], torch.float64) for k in (0, 2))
            noise = torch.from_numpy(idctn(white.numpy() * 3**0.5, axes=(1, 2), norm="ortho"))
            spectrum = dctn((x + config.sigma * noise).numpy(), axes=(1, 2), norm="ortho") * (
                1 + config.rho * xi.numpy()
            )
            sample = torch.from_numpy(idctn(spectrum, axes=(1, 2), norm="ortho")).float().requires_grad_()
            place = places[n] if config.input_diversity else None
            shown = sample[None] if place is None else placed(sample[None], place)
            loss = -model(shown)[0].softmax(0)[target].log()
            mean += torch.autograd.grad(loss, sample)[0].double() / config.samples
        mean = nn.functional.conv2d(mean[:, None], kernel[None, None], padding=3)[:, 0]
        g = config.decay * g + mean / mean.abs().mean()
        moved = (x - config.eps / config.steps * g.sign() - image).clamp(-config.eps, config.eps)
        following = (image + moved).clamp(0, 1)
        attribution = attribution - (following - x) * g
        x = following
    return attribution


@pytest.mark.parametrize("diversity", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_attexplore_is_its_published_algorithm(steps: int, diversity: bool) -> None:
    """After 1, 2 and 4 steps of the same length, so that a difference shows at the step where it enters."""
    model, images = Smooth(), torch.cat([some_images(1), torch.rand(1, 3, 24, 24)])  # the second one meets the clamps
    config = AttEXploreConfig(steps=steps, samples=3, eps=0.02 * steps, seed=5, input_diversity=diversity)
    maps = AttEXplore(model, config).attribute(images, target=[1, 3], image_ids=[4, 9])
    for k, (target, name) in enumerate([(1, 4), (3, 9)]):
        expected = transcription(model, images[k], target, name, config)
        # A sign that rounding turns over moves one pixel by two steps; its attribution is near zero by construction.
        assert (maps[k] - expected).abs().max() < 1e-3 * expected.abs().max()
        assert pearson(maps[k].double(), expected) > 1 - 1e-6


# --- determinism -----------------------------------------------------------------------------------------------------

SAMPLERS = [
    BandMixSampler(FAMPEConfig(mode="mix")),
    BandMixSampler(FAMPEConfig(mode="modulate")),
    BandMixSampler(FAMPEConfig(mode="allpass")),
    BandMixSampler(FAMPEConfig(mask_shape="disc")),
    BandMixSampler(FAMPEConfig(mode="mix", mask_shape="butterworth")),
    DCTSampler(AttEXploreConfig()),
]


def draw(
    sampler, images: Tensor, ids: list[int], pairs: list[tuple[int, int]], chunk: int
) -> dict[tuple[int, int], Tensor]:
    """Samples by (image id, sample number)."""
    spectrum = sampler.transform(images)
    targets = Targets(torch.zeros(len(ids), dtype=torch.long), None)
    batch = Batch(
        spectrum,
        sampler.prepare(images, spectrum),
        torch.tensor(3),
        torch.tensor(2),
        torch.tensor(ids),
        targets,
        *images.shape[-2:],
    )
    drawn = {}
    for first in range(0, len(pairs), chunk):
        part = pairs[first : first + chunk]
        rows = Chunk(torch.tensor([p[0] for p in part]), torch.tensor([p[1] for p in part]))
        samples = sampler.draw(batch, rows)
        drawn.update({(ids[image], number): sample for (image, number), sample in zip(part, samples, strict=True)})
    return drawn


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["mix", "modulate", "allpass", "disc", "butterworth", "dct"])
@pytest.mark.parametrize("size", [(32, 32), (31, 45), (96, 128)])
def test_samples_are_the_same_to_the_bit_however_they_are_batched(sampler, size: tuple[int, int], backend: str) -> None:
    images = some_images(5, 3, *size)
    ids = [11, 12, 13, 14, 15]
    every = [(image, number) for number in range(3) for image in range(5)]
    together = draw(sampler, images, ids, every, chunk=15)
    for chunk in (1, 4, 7):
        for key, sample in draw(sampler, images, ids, every, chunk).items():
            assert torch.equal(sample, together[key]), (chunk, key)
    order = [3, 0, 4, 1, 2]
    shuffled = draw(sampler, images[order], [ids[k] for k in order], every[::-1], chunk=4)
    for key, sample in shuffled.items():
        assert torch.equal(sample, together[key]), key
    for k in range(5):
        alone = draw(sampler, images[k : k + 1], ids[k : k + 1], [(0, number) for number in range(3)], chunk=2)
        for key, sample in alone.items():
            assert torch.equal(sample, together[key]), key


def test_the_two_cpu_backends_give_the_same_samples_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fampe_fast.ops.compiled.COMPILE_AFTER", 0)
    images = some_images(2, 3, 30, 33)
    for sampler in SAMPLERS:
        drawn = []
        for name in ("reference", "compiled"):
            monkeypatch.setenv("FAMPE_FAST_BACKEND", name)
            drawn.append(draw(sampler, images, [0, 1], [(0, 0), (1, 5)], 2))
        assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0])


@pytest.mark.parametrize("size", [(31, 45), (224, 224)])
def test_samples_are_as_accurate_as_those_divided_after_the_transform(size: tuple[int, int], backend: str) -> None:
    """The error rule: against the mix and its transform in double precision, the factor 1/HW in its usual place."""
    images, config = some_images(2, 3, *size), FAMPEConfig()
    sampler = BandMixSampler(config)
    drawn = torch.stack(list(draw(sampler, images, [7, 8], [(0, 0), (1, 1)], 2).values()))
    rows = torch.arange(2)
    weights = torch.tensor([[*config.band_weights(), config.sigma]]).expand(2, -1)
    cutoff = sampler.prepare(images, torch.fft.rfft2(images)).cutoff

    def divided_after(spectrum: Tensor) -> Tensor:
        mixed = band_mix(spectrum, cutoff, weights, rows + 7, rows, rows, torch.tensor(3), torch.tensor(2), size[1])
        return torch.fft.irfft2(mixed, s=size)

    assert_as_accurate(drawn, divided_after(torch.fft.rfft2(images)), divided_after(torch.fft.rfft2(images.double())))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_parts_the_bands_of_an_image(shape: str, backend: str) -> None:
    """Mixed without randomness at alpha = 1 and gain 1, samples are the image's low band, by the formula."""
    images = some_images(2, 3, 20, 30)
    config = FAMPEConfig(mode="mix", alpha=1, rho=0, sigma=0, cutoff=3, mask_shape=shape)
    drawn = draw(BandMixSampler(config), images, [0, 1], [(0, 0), (1, 0)], 2)
    down, across = torch.meshgrid(torch.fft.fftfreq(20, 1 / 20), torch.fft.fftfreq(30, 1 / 20), indexing="ij")
    ratio = torch.hypot(down.double(), across.double()) / 3
    low = {"gaussian": (-(ratio**2) / 2).exp(), "disc": ratio < 1.001, "butterworth": 1 / (1 + ratio**4)}[shape]
    expected = torch.fft.ifft2(torch.fft.fft2(images.double()) * low).real
    torch.testing.assert_close(torch.stack([drawn[0, 0], drawn[1, 0]]).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("diversity", [False, True])
def test_chunks_cover_every_pair_once_in_order(diversity: bool) -> None:
    config = FAMPEConfig(steps=3, samples=6, seed=2, input_diversity=diversity)
    for batch in (1, 3, 8):
        schedule = Schedule(config, batch, 32, 40, torch.device("cpu"))
        for step in range(3):
            places = draw_placements(2, step + 1, 6, 32, 40)[step] if diversity else [None] * 6
            assert int(schedule.step_number(step)) == step
            assert schedule.step_number(step).data_ptr() % 16 == 0  # other addresses cost a GPU another compilation
            plain, diverse = ([n for n in range(6) if (places[n] is None) == wanted] for wanted in (True, False))
            for size in (1, 2, 4, 5, 100):
                seen = []
                for image_index, samples, placements in schedule.chunks(step, size):
                    assert 0 < len(samples) <= size
                    for rows in (image_index, samples) if size % 2 == 0 else ():
                        assert rows.data_ptr() % 16 == 0  # as above
                    for p, number in enumerate(samples.tolist()):
                        place = places[number]
                        assert place == (None if placements is None else tuple(placements[p].tolist()))
                    seen += list(zip(samples.tolist(), image_index.tolist(), strict=True))
                assert seen == [(n, image) for kind in (plain, diverse) for image in range(batch) for n in kind]


@pytest.mark.parametrize("method", METHODS)
def test_maps_depend_on_seed_and_id_and_not_on_the_run(method: type) -> None:
    model, images = Smooth(), some_images(3)
    options = {"steps": 2, "samples": 3}
    base = method(model, **options).attribute(images)
    assert torch.equal(base, method(model, **options).attribute(images))
    assert not torch.equal(base, method(model, seed=1, **options).attribute(images))
    assert not torch.equal(base, method(model, **options).attribute(images, image_ids=[5, 6, 7]))
    for chunk in (1, 2, 100):
        again = method(model, **options).attribute(images, internal_batch_size=chunk)
        assert min(pearson(a, b) for a, b in zip(base, again, strict=True)) > 0.999
    flipped = method(model, **options).attribute(images.flip(0), image_ids=[2, 1, 0]).flip(0)
    assert min(pearson(a, b) for a, b in zip(base, flipped, strict=True)) > 0.999


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("method", METHODS)
def test_maps_of_the_real_model_agree_across_batches_chunks_and_order(method: type, mobilenet, photographs) -> None:
    """What limits it: the model's gradients differ in their last bits between batch sizes (other convolution
    algorithms), and the sign step turns the difference of a gradient near zero into two steps of that pixel."""
    images, labels = photographs(2)
    run = method(mobilenet, steps=3, samples=4)
    base = run.attribute(images, labels)
    others = {
        "chunk 3": run.attribute(images, labels, internal_batch_size=3),
        "chunk 6": run.attribute(images, labels, internal_batch_size=6),
        "reversed": run.attribute(images.flip(0), labels.flip(0), image_ids=[1, 0]).flip(0),
        "alone": torch.cat([run.attribute(images[k : k + 1], labels[k : k + 1], image_ids=[k]) for k in range(2)]),
    }
    for name, maps in others.items():
        for k in range(2):
            assert pearson(base[k], maps[k]) > 0.999, (name, k)


# --- input diversity -------------------------------------------------------------------------------------------------


def test_placements_follow_the_published_ranges() -> None:
    places = draw_placements(0, 1, 4000, 224, 224)[0]
    drawn = [place for place in places if place is not None]
    assert abs(len(drawn) / 4000 - 0.5) < 4 * 0.5 / math.sqrt(4000)
    assert {place.width for place in drawn} == set(range(224, 257))
    assert padded_size(224) == 257
    for place in drawn:
        assert place.height == place.width
        assert 0 <= place.top < 257 - place.height
        assert 0 <= place.left < 257 - place.width
    first, second = draw_placements(0, 2, 10, 224, 224)
    assert first == places[:10] != second
    assert draw_placements(1, 1, 10, 224, 224)[0] != places[:10]


@pytest.mark.parametrize("size", [(8, 8), (9, 30), (30, 9)])
def test_placements_fit_small_and_oblong_images(size: tuple[int, int]) -> None:
    for place in draw_placements(0, 1, 200, *size)[0]:
        if place is not None:
            assert size[0] <= place.height <= padded_size(size[0]) - place.top
            assert size[1] <= place.width <= padded_size(size[1]) - place.left


def test_diversity_feeds_both_sizes_and_can_be_left_out() -> None:
    class Recorder(Smooth):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: set[int] = set()

        def forward(self, pixels: Tensor) -> Tensor:
            self.sizes.add(pixels.shape[-1])
            return super().forward(pixels)

    for diversity, sizes in ((True, {24, 27}), (False, {24})):
        model = Recorder()
        AttEXplore(model, steps=2, samples=8, input_diversity=diversity).attribute(some_images(), target=0)
        assert model.sizes == sizes


# --- care for the model, memory --------------------------------------------------------------------------------------


def test_parameters_get_no_gradients_and_their_flags_come_back() -> None:
    model = Smooth()
    model.head.bias.requires_grad_(False)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}

    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = model, 0
            self.eval()

        def forward(self, pixels: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("out of order")
            return self.inner(pixels)

    FAMPE(model, steps=1, samples=2).attribute(some_images(), target=0)
    with pytest.raises(RuntimeError, match="out of order"):
        FAMPE(Fails(), steps=2, samples=2, input_diversity=False).attribute(some_images(), target=0)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
def test_it_works_inside_no_grad(inference) -> None:
    method = FAMPE(Smooth(), steps=1, samples=2)
    with inference():
        maps = method.attribute(some_images(), target=torch.tensor([1, 2]))
    assert maps.abs().sum() > 0
    assert not maps.requires_grad


# --- targets ---------------------------------------------------------------------------------------------------------


def test_targets_in_every_form_mean_the_same() -> None:
    images, method = some_images(2), FAMPE(Smooth(), steps=1, samples=2)
    base = method.attribute(images, target=torch.tensor([3, 3]))
    for target in (3, [3, 3], torch.tensor(3), torch.tensor([3]), (3,), torch.tensor([3, 3], dtype=torch.int32)):
        assert torch.equal(base, method.attribute(images, target=target)), target
    own = Smooth()(images).argmax(1)
    assert torch.equal(method.attribute(images), method.attribute(images, target=own.tolist()))


def test_a_tuple_reads_a_model_with_several_output_dimensions() -> None:
    inner = Smooth()

    class Grid(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            logits = inner(pixels)
            return torch.stack([torch.zeros_like(logits), logits], 2)[..., None].expand(-1, -1, -1, 3)

    images = some_images(2)
    options = {"steps": 1, "samples": 2}
    grid = published(Grid().eval(), **options).attribute(images, target=(4, 1, 2))
    torch.testing.assert_close(grid, published(inner, **options).attribute(images, target=4))
    with pytest.raises(ValueError, match="tuple"):
        published(Grid().eval(), **options).attribute(images)
    with pytest.raises(ValueError, match="expected a tuple of 3"):
        published(Grid().eval(), **options).attribute(images, target=4)
    with pytest.raises(ValueError, match="out of range"):
        published(Grid().eval(), **options).attribute(images, target=(4, 1, 3))


# --- bad input -------------------------------------------------------------------------------------------------------


def spoiled(value: float) -> Tensor:
    images = some_images(3)
    images[1, 0, 2, 2] = value
    return images


BAD_INPUTS = [
    ([[1]], TypeError, "must be a torch.Tensor .*got list"),
    (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), TypeError, "torch.uint8 .*divide 8-bit images by 255"),
    (torch.zeros(3, 16, 16), ValueError, r"\(B, C, H, W\), got shape \(3, 16, 16\)"),
    (torch.zeros(1, 0, 16, 16), ValueError, "at least one channel"),
    (torch.zeros(1, 3, 7, 16), ValueError, "at least 8 pixels high and wide, got 7 x 16"),
    (spoiled(math.nan), ValueError, "NaN or infinity in image.s. 1"),
    (spoiled(math.inf), ValueError, "NaN or infinity in image.s. 1"),
    (spoiled(1.5), ValueError, r"lie in \[0, 1\], got values from .* to 1.5 \(image\(s\) 1\)"),
    (spoiled(-0.1), ValueError, r"lie in \[0, 1\]"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), BAD_INPUTS, ids=[case[2][:25] for case in BAD_INPUTS])
def test_bad_images_are_named_before_work_starts(inputs: object, error: type[Exception], message: str) -> None:
    calls = []

    def model(pixels: Tensor) -> Tensor:
        calls.append(len(pixels))
        return pixels.mean((2, 3))

    for method in METHODS:
        with pytest.raises(error, match=message):
            method(model).attribute(inputs, target=0)
    assert not calls


BAD_TARGETS = [
    (5, ValueError, "target 5 .* 5 classes, expected 0 to 4"),
    (-1, ValueError, "target -1 .*expected 0 to 4"),
    ([0, 9], ValueError, r"target 9 \(image 1\)"),
    ([0, 1, 2], ValueError, r"one entry per image, \(2,\), got shape \(3,\)"),
    (torch.zeros(2, 2, dtype=torch.long), ValueError, "one entry per image"),
    (torch.zeros(2), TypeError, "integers, got a tensor of torch.float32"),
    ("cat", TypeError, "got 'cat'"),
    ([0.5, 1.0], TypeError, "must be None, an int"),
    ((0, 1), ValueError, "expected an index"),
    ((), TypeError, "tuple target"),
]


@pytest.mark.parametrize(("target", "error", "message"), BAD_TARGETS, ids=[repr(case[0])[:20] for case in BAD_TARGETS])
def test_bad_targets_are_named(target: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FAMPE(Smooth(), steps=1, samples=1).attribute(some_images(2), target=target)


def test_bad_models_are_named() -> None:
    images = some_images(1)
    with pytest.raises(ValueError, match=r"training mode .*call model.eval\(\)"):
        FAMPE(Smooth().train()).attribute(images)
    partly = Smooth()
    partly.features[1].train()
    with pytest.raises(ValueError, match=r"'features\.1' first"):
        FAMPE(partly).attribute(images)
    with pytest.raises(ValueError, match=r"'features.0.weight' is on meta and the images are on cpu"):
        FAMPE(Smooth().to("meta")).attribute(images)
    with pytest.raises(TypeError, match="nn.Module or a callable, got int"):
        FAMPE(3).attribute(images)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"output must be \(B, classes\).* it is \(1,\)"):
        FAMPE(lambda pixels: pixels.sum((1, 2, 3))).attribute(images)
    with pytest.raises(ValueError, match=r"output must be \(B, classes\).* it is \(3, 4\)"):
        FAMPE(lambda pixels: pixels.new_zeros(3, 4)).attribute(images, target=0)
    with pytest.raises(TypeError, match="tensor of logits .*got dict"):
        FAMPE(lambda pixels: {"scores": pixels}).attribute(images, target=0)


BAD_NUMBERS = [
    ({"alpha": 1.5}, ValueError, r"alpha must be in \[0, 1\], got 1.5"),
    ({"alpha": -0.1}, ValueError, "alpha"),
    ({"alpha": math.nan}, ValueError, "alpha"),
    ({"alpha": "0.1"}, TypeError, "alpha must be a number, got '0.1'"),
    ({"tau": 0}, ValueError, r"tau must be in \(0, 1\], got 0"),
    ({"tau": 1.01}, ValueError, "tau"),
    ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
    ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
    (
        {"steps": 0, "views": 0},
        ValueError,
        "steps and views are both 0, but a map needs a path \\(steps=5\\) or a view of the image",
    ),
    ({"views": 3}, ValueError, r"views must be 0, 1 \(the image\) or 2 \(its mirror image as well\), got 3"),
    ({"steps": 2.5}, TypeError, "steps must be a whole number, got 2.5"),
    ({"steps": True}, TypeError, "steps"),
    ({"eps": 0}, ValueError, "eps"),
    ({"sigma": -1}, ValueError, "sigma"),
    ({"rho": 2}, ValueError, "rho"),
    ({"cutoff": 0}, ValueError, "cutoff"),
    ({"gain": 0}, ValueError, "gain"),
    ({"mode": "mixed"}, ValueError, "mode must be one of mix, modulate, allpass; got 'mixed'"),
    ({"mask_shape": "box"}, ValueError, "mask_shape must be one of gaussian, disc, butterworth; got 'box'"),
    ({"direction": "down"}, ValueError, "direction"),
    ({"loss": "mse"}, ValueError, "loss"),
    ({"precision": "fp8"}, ValueError, "precision"),
    ({"seed": 2**63}, ValueError, "64 bits"),
    ({"seed": 0.5}, TypeError, "seed"),
    ({"bounds": (1, 0)}, ValueError, "bounds"),
    ({"step": 3}, TypeError, r"no parameter\(s\) step; known are .*steps"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_NUMBERS, ids=[repr(case[0]) for case in BAD_NUMBERS])
def test_bad_parameters_are_named(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FAMPE(Smooth(), **options)


def test_configurations_are_frozen_and_typed() -> None:
    config = FAMPEConfig()
    with pytest.raises(AttributeError):
        config.alpha = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError, match="FAMPEConfig, got AttEXploreConfig"):
        FAMPE(Smooth(), AttEXploreConfig())  # type: ignore[arg-type]
    assert FAMPE(Smooth(), config, alpha=0.4).config == FAMPEConfig(alpha=0.4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"image_ids": [0]}, ValueError, r"one entry per image, \(2,\)"),
        ({"image_ids": [0, -1]}, ValueError, "image_ids must lie in"),
        ({"image_ids": [0, 2**32]}, ValueError, "image_ids must lie in"),
        ({"image_ids": [0.5, 1.0]}, TypeError, "image_ids must be integers"),
        ({"internal_batch_size": 0}, ValueError, "at least 1"),
        ({"internal_batch_size": 1.5}, TypeError, "whole number"),
    ],
)
def test_bad_call_options_are_named(options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FAMPE(Smooth(), steps=1, samples=1).attribute(some_images(2), 0, **options)


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_gradient_gives_a_zero_map_and_a_warning(method: type) -> None:
    explainer = method(Constant().eval(), steps=2, samples=2, views=0)
    with pytest.warns(FampeWarning, match=r"image\(s\) \[7, 8\] is zero at every step"):
        maps = explainer.attribute(some_images(2), target=0, image_ids=[7, 8])
    assert (maps == 0).all()


def test_a_gradient_that_is_not_finite_costs_its_image_only() -> None:
    class Breaks(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            factor = torch.where(pixels.mean((1, 2, 3)) > 0.9, math.inf, 1.0)
            return super().forward(pixels) * factor[:, None]

    images = some_images(2)
    images[1] = 1.0
    options = {"steps": 2, "samples": 2, "mode": "modulate", "input_diversity": False}
    with pytest.warns(FampeWarning, match=r"image\(s\) \[1\] was NaN or infinite"):
        maps = published(Breaks(), **options).attribute(images, target=0)
    assert maps.isfinite().all()
    assert (maps[1] == 0).all()
    assert torch.equal(maps[0], published(Smooth(), **options).attribute(images[:1], target=0)[0])


# --- shapes, types, devices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (2, 3, 9, 17), (1, 4, 16, 11)])
@pytest.mark.parametrize("method", METHODS)
def test_odd_oblong_small_and_other_channel_counts(method: type, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)

    def model(pixels: Tensor) -> Tensor:
        mean = pixels.mean((2, 3))
        return torch.cat([mean, (pixels**2).mean((2, 3))], 1)

    maps = method(model, steps=2, samples=3, views=0).attribute(images, target=0)
    assert maps.shape == images.shape
    assert maps.isfinite().all()


def test_no_images_give_no_maps() -> None:
    for target in (None, 0, []):
        maps = FAMPE(Smooth(), steps=1, samples=1).attribute(torch.zeros(0, 3, 16, 16), target)
        assert maps.shape == (0, 3, 16, 16)


def test_other_layouts_and_float_types_are_taken() -> None:
    images = some_images(2).half().float()
    method = published(Smooth(), steps=1, samples=2)
    base = method.attribute(images)
    assert torch.equal(base, method.attribute(images.to(memory_format=torch.channels_last)))
    for dtype in (torch.float16, torch.float64):
        maps = method.attribute(images.to(dtype))
        assert maps.dtype == torch.float32
        assert torch.equal(base, maps)


def test_a_model_in_bfloat16_gets_its_own_type() -> None:
    images = some_images(1)
    full, narrow = (
        published(Smooth().to(dtype), steps=2, samples=4).attribute(images, 0)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert pearson(full, narrow) > 0.98


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precision_changes_little(precision: str) -> None:
    images = some_images(1)
    full = published(Smooth(), steps=2, samples=4).attribute(images, 0)
    fast = published(Smooth(), steps=2, samples=4, precision=precision).attribute(images, 0)
    assert pearson(full, fast) > 0.98


def test_a_fixed_cutoff_replaces_the_energy_one() -> None:
    _, details = published(Smooth(), steps=1, samples=1, cutoff=30).attribute(some_images(2), 0, return_details=True)
    assert details.cutoff is not None
    assert details.cutoff.tolist() == [30, 30]


def test_progress_is_drawn_on_standard_error_only_when_asked(capfd: pytest.CaptureFixture) -> None:
    method = published(Smooth(), steps=2, samples=1)
    method.attribute(some_images(1), 0)
    assert capfd.readouterr() == ("", "")
    method.attribute(some_images(1), 0, show_progress=True)
    assert capfd.readouterr().out == ""


# --- Captum's company ------------------------------------------------------------------------------------------------


def test_it_stands_where_captum_takes_an_attribution() -> None:
    captum = pytest.importorskip("captum.attr")
    from captum.metrics import sensitivity_max

    images = some_images(2)
    method = published(Smooth(), steps=1, samples=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tunnel = captum.NoiseTunnel(method)
        smoothed = tunnel.attribute(images, nt_samples=3, stdevs=0.01, target=1)
        assert smoothed.shape == images.shape
        assert pearson(smoothed, method.attribute(images, 1)) > 0.9
        for other in (FORGrad(method, 5), create_method("saliency", Smooth())):
            maps = captum.NoiseTunnel(other).attribute(images, nt_samples=2, stdevs=0.01, target=1)
            assert maps.shape == images.shape
        values = sensitivity_max(method.attribute, images, target=1, perturb_radius=0.01, n_perturb_samples=2)
    assert values.shape == (2,)
    assert (values > 0).all()


# --- another model decides the steps ---------------------------------------------------------------------------------


def test_an_explorer_like_the_model_changes_nothing() -> None:
    options = {"steps": 3, "samples": 2, "views": 0, "area_cutoff": None}
    images = some_images()
    alone, own = FAMPE(Smooth(), **options).attribute(images, 1, return_details=True)
    led, details = FAMPE(Smooth(), explorer=Smooth(), **options).attribute(images, 1, return_details=True)
    torch.testing.assert_close(led, alone, rtol=1e-4, atol=1e-7)
    assert torch.equal(details.perturbed, own.perturbed)
    assert (own.model_passes, details.model_passes) == (6, 12)
    _, both = FAMPE(Smooth(), explorer=Smooth(), steps=3, samples=2).attribute(images, 1, return_details=True)
    assert both.model_passes == 1 + 12


@pytest.mark.parametrize("direction", ["descend", "ascend"])
def test_an_explorer_decides_the_path_and_the_model_the_evidence(direction: str) -> None:
    """Two linear models: the steps follow the signs of one's weights, the map is step times the other's gradient."""
    generator = torch.Generator().manual_seed(7)
    weight, other = (0.01 * torch.randn(3, 24, 24, generator=generator) for _ in range(2))
    options = {"steps": 4, "samples": 2, "eps": 0.1, "decay": 0.0, "area_cutoff": None, "direction": direction}
    options |= {"mode": "mix", "alpha": 0.5, "gain": 2.0, "rho": 0.0, "sigma": 0.0}
    method = FAMPE(TwoClassLinear(weight), explorer=TwoClassLinear(other), **options, **PLAIN)
    images = some_images()
    maps, details = method.attribute(images, 0, return_details=True)
    # The loss of class 0 falls along +w: (p - 1) w is its gradient.
    sign = 1 if direction == "descend" else -1
    torch.testing.assert_close(details.perturbed, images + sign * 0.1 * other.sign(), rtol=0, atol=1e-6)
    expected = 0.1 * other.sign() * weight / weight.abs().mean()
    torch.testing.assert_close(maps, expected.expand_as(maps), rtol=1e-3, atol=1e-5)


def test_a_bad_explorer_is_named() -> None:
    with pytest.raises(TypeError, match="explorer must be"):
        FAMPE(Smooth(), explorer=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="training mode"):
        AttEXplore(Smooth(), explorer=Smooth().train()).attribute(some_images(), 0)


@pytest.mark.parametrize("include_dc", [True, False])
@pytest.mark.parametrize("mode", ["mix", "modulate"])
def test_the_readings_of_the_published_text_are_selectable(mode: str, include_dc: bool) -> None:
    config = FAMPEConfig.published(mode=mode, include_dc=include_dc, steps=2, samples=2)
    assert dataclasses.replace(config, mode="mix", include_dc=True) == FAMPEConfig.published(steps=2, samples=2)
    assert (config.mode, config.include_dc) == (mode, include_dc)
    options = {"mode": mode, "include_dc": include_dc, "steps": 2, "samples": 2}
    assert create_method("fampe_published", Smooth(), **options).config == config
    if (mode, include_dc) != ("mix", True):
        maps, other = (
            FAMPE(Smooth(), c).attribute(some_images(), 0) for c in (config, FAMPEConfig.published(steps=2, samples=2))
        )
        assert not torch.allclose(maps, other, rtol=1e-2)


def test_the_published_numbers_have_a_name() -> None:
    config = FAMPEConfig.published(steps=3)
    assert (config.mode, config.alpha, config.rho, config.tau) == ("mix", 0.1, 0.5, 0.9)
    assert config.mask_shape == "gaussian"
    assert config.include_dc
    assert config.input_diversity
    assert config.area_cutoff is None
    # N, alpha and tau are the texts'; all else of the path is AttEXplore's, whatever FAMPE's own defaults are.
    assert config.samples == 20
    attexplore = AttEXploreConfig(steps=3)
    for field in dataclasses.fields(AttEXploreConfig):
        assert getattr(config, field.name) == getattr(attexplore, field.name)
    assert create_method("fampe_published", Smooth(), steps=3).config == config
    assert create_method("fampe_published", Smooth(), steps=3, alpha=0.3).config == FAMPEConfig.published(
        steps=3, alpha=0.3
    )
