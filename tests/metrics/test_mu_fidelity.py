"""Mu-fidelity against models whose answer is known, a naive loop over what the model was shown, and symmetries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fampe_fast.metrics import GaussianBlur, SolidColour, mu_fidelity
from fampe_fast.metrics.random_words import Stream, random_words
from fampe_fast.metrics.rank_correlation import rank_correlation, ranks

from ..models_for_tests import Constant, asked, some_images


class Linear(nn.Module):
    """Logits (<w, x>, 0); keeps what it was shown."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.shown: list[Tensor] = []
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        self.shown.append(pixels.clone())
        score = (pixels * self.weight).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


class Recorder(nn.Module):
    """A convolutional classifier in float64 without any symmetry; keeps what it was shown."""

    def __init__(self, channels: int = 3, classes: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(channels)
            self.features = nn.Conv2d(channels, 6, 3, padding=1)
            self.head = nn.Linear(6, classes)
        self.register_buffer("scale", torch.linspace(1, 3, 64))
        self.shown: list[Tensor] = []
        self.double().eval()

    def forward(self, pixels: Tensor) -> Tensor:
        self.shown.append(pixels.clone())
        height, width = pixels.shape[-2:]
        place = self.scale[:height, None] * self.scale[:width].flip(0)
        return 20 * self.head((self.features(pixels).tanh() * place).mean((2, 3)))


def exact_images(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Multiples of 1/64 above 0: sums with whole weights are exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 65, (batch, channels, height, width), generator=generator) / 64


def whole_weights(channels: int, height: int, width: int) -> Tensor:
    return torch.randint(-9, 10, (channels, height, width), generator=torch.Generator().manual_seed(5)).float()


@pytest.mark.parametrize("size", [(3, 18, 18), (1, 11, 23), (2, 20, 9)], ids=str)
@pytest.mark.parametrize("grid_size", [9, 4, 1, None])
@pytest.mark.parametrize("baseline", [0.0, 0.5, SolidColour(1.0)], ids=["black", "grey", "white"])
def test_a_linear_models_own_terms_score_one_and_their_negative_minus_one(size, grid_size, baseline) -> None:
    images, weight = exact_images(2, *size), whole_weights(*size)
    colour = baseline.value if isinstance(baseline, SolidColour) else baseline
    maps = weight * (images - colour)
    options = {"grid_size": grid_size, "baseline": baseline, "score": "logit", "samples": 25, "internal_batch_size": 50}
    assert mu_fidelity(Linear(weight), images, maps, 0, **options).scores.tolist() == [1, 1]
    assert mu_fidelity(Linear(weight), images, -maps, 0, **options).scores.tolist() == [-1, -1]
    assert mu_fidelity(Linear(weight), images, 2.0**100 * maps, 0, **options).scores.tolist() == [1, 1]
    one_channel = mu_fidelity(Linear(weight), images, maps.sum(1, keepdim=True), 0, **options)
    assert one_channel.scores.tolist() == [1, 1]


def test_the_probability_of_two_classes_falls_with_the_logit_and_rises_for_the_other_class() -> None:
    images, weight = exact_images(2, 3, 18, 18), whole_weights(3, 18, 18) / 64
    maps = weight * images
    assert mu_fidelity(Linear(weight), images, maps, 0).scores.tolist() == [1, 1]
    assert mu_fidelity(Linear(weight), images, maps, 1).scores.tolist() == [-1, -1]
    assert mu_fidelity(Linear(weight), images, maps, [0, 1]).scores.tolist() == [1, -1]


def naive_scores(
    model: nn.Module, images: Tensor, maps: Tensor, targets: list[int], samples: int, score: str, shown: Tensor
) -> list[float]:
    """Image by image and subset by subset, with scipy, from the images that the model was shown."""
    stats = pytest.importorskip("scipy.stats")
    found = []
    for k, image in enumerate(images):
        drops, sums = [], []
        whole = naive_value(model, image, targets[k], score)
        for row in shown[k * samples : (k + 1) * samples]:
            taken = (row != image).any(0)
            sums.append(math.fsum(maps[k][:, taken].flatten().tolist()))
            drops.append(whole - naive_value(model, row, targets[k], score))
        found.append(float(stats.spearmanr(sums, drops)[0]))
    return [0.0 if math.isnan(value) else value for value in found]


@torch.no_grad()
def naive_value(model: nn.Module, image: Tensor, target: int, score: str) -> float:
    logits = model(image[None])[0].numpy()
    if score == "logit":
        return float(logits[target])
    return float(np.exp(logits[target] - logits.max()) / np.exp(logits - logits.max()).sum())


@pytest.mark.parametrize("size", [(3, 12, 15), (1, 13, 9), (2, 21, 10)], ids=str)
@pytest.mark.parametrize("score", ["probability", "logit"])
@pytest.mark.parametrize(("grid_size", "fixed_size"), [(9, False), (5, True), (None, False), (None, True)])
def test_scores_equal_the_naive_loop(size, score: str, grid_size: int | None, fixed_size: bool) -> None:
    images = some_images(3, *size).double()
    model = asked(Recorder(size[0]), images)
    maps = (torch.randn(images.shape, generator=torch.Generator().manual_seed(1)) * 4).round().double() / 4
    options = {"grid_size": grid_size, "fixed_size": fixed_size, "score": score, "samples": 30, "subset_percent": 0.3}
    result = mu_fidelity(model, images, maps, [2, 0, 3], internal_batch_size=7, **options)
    shown = torch.cat(model.shown)
    assert result.scores.dtype == torch.float64
    np.testing.assert_allclose(
        result.scores, naive_scores(model, images, maps, [2, 0, 3], 30, score, shown), rtol=0, atol=1e-12
    )
    assert result.scores.abs().max() > 0.05


def test_ties_share_their_rank() -> None:
    """Few cells and a map of two values: most subsets tie, and scipy ranks them the same."""
    images = some_images(2, 1, 12, 12).double()
    model = asked(Recorder(1), images)
    maps = torch.zeros_like(images)
    maps[..., :6, :] = 0.1  # no binary fraction: sums in another order would not tie
    scores = mu_fidelity(model, images, maps, 1, grid_size=3, samples=60).scores
    shown = torch.cat(model.shown)
    relevance = ((shown[:60] != images[0])[:, 0, :6].sum((1, 2))).tolist()
    assert len(set(relevance)) < 10
    stats = pytest.importorskip("scipy.stats")
    with torch.no_grad():
        probability = model(shown[:60]).softmax(1)[:, 1].tolist()
    assert float(scores[0]) == pytest.approx(stats.spearmanr(relevance, [-p for p in probability])[0], abs=1e-12)


def test_what_tells_no_subset_from_another_scores_zero() -> None:
    images, weight = exact_images(2, 3, 18, 18), whole_weights(3, 18, 18)
    nothing = torch.zeros_like(images)
    assert mu_fidelity(Linear(weight), images, nothing, 0).scores.tolist() == [0, 0]
    assert mu_fidelity(Linear(weight), images, -nothing, 0).scores.tolist() == [0, 0]
    assert mu_fidelity(Constant().eval(), images, weight * images, 0).scores.tolist() == [0, 0]
    even = torch.full_like(images, 0.1)
    for grid_size in (9, None):
        scores = mu_fidelity(Linear(weight), images, even, 0, grid_size=grid_size, fixed_size=True).scores
        assert scores.tolist() == [0, 0]


def test_a_constant_map_knows_how_much_is_gone_where_the_size_varies() -> None:
    """An even image, every pixel of the same weight: the score falls with the area alone."""
    images = torch.full((1, 1, 18, 18), 0.5)
    maps = torch.full_like(images, 0.1)
    for share in (0.2, 0.7):
        score = mu_fidelity(Linear(torch.ones(1, 18, 18)), images, maps, 0, score="logit", subset_percent=share).scores
        assert score.tolist() == [1]


@pytest.mark.parametrize(("height", "width", "grid_size"), [(18, 18, 9), (224, 224, 9), (13, 29, 5), (9, 30, 9)])
def test_subsets_are_cells_of_a_nearest_neighbour_grid(height: int, width: int, grid_size: int) -> None:
    images = torch.ones(1, 1, height, width)
    model = Linear(torch.zeros(1, height, width))
    mu_fidelity(model, images, images, 0, grid_size=grid_size, samples=12, subset_percent=0.5)
    taken = (torch.cat(model.shown) == 0).float()
    number = torch.arange(grid_size**2, dtype=torch.float32).reshape(1, 1, grid_size, grid_size)
    cell = F.interpolate(number, size=(height, width), mode="nearest-exact").flatten().long()
    assert cell.unique().numel() == grid_size**2
    first_pixel = torch.tensor([int((cell == k).nonzero()[0]) for k in range(grid_size**2)])
    by_cell = taken.flatten(1)[:, first_pixel]
    assert torch.equal(by_cell[:, cell], taken.flatten(1))
    assert 0.2 < by_cell.mean() < 0.8


@pytest.mark.parametrize("share", [0.05, 0.2, 0.9])
def test_every_pixel_is_taken_with_the_probability_asked_for(share: float) -> None:
    images = torch.ones(4, 1, 24, 24)
    model = asked(Linear(torch.zeros(1, 24, 24)), images)
    mu_fidelity(model, images, images, 0, grid_size=None, samples=50, subset_percent=share, seed=3)
    taken = (torch.cat(model.shown) == 0).double().flatten(1)
    count, error = taken.numel(), math.sqrt(share * (1 - share))
    assert abs(float(taken.mean()) - share) < 5 * error / math.sqrt(count)
    assert (taken.mean(0) - share).abs().max() < 5 * error / math.sqrt(len(taken))
    assert (taken.mean(1) - share).abs().max() < 5 * error / 24
    sizes = taken.sum(1)
    expected = 24 * error
    assert 0.8 * expected < float(sizes.std()) < 1.2 * expected  # independent: the sizes are binomial
    assert len({tuple(row.tolist()) for row in taken}) == len(taken)  # no two images, no two samples share a subset


def test_subsets_of_one_size_have_it_and_any_cell_may_be_in_them() -> None:
    images = torch.ones(3, 1, 16, 16)
    model = asked(Linear(torch.zeros(1, 16, 16)), images)
    mu_fidelity(model, images, images, 0, grid_size=8, fixed_size=True, samples=100, subset_percent=0.3)
    taken = (torch.cat(model.shown) == 0)[:, 0, ::2, ::2].flatten(1)
    assert taken.sum(1).unique().tolist() == [19]  # of 64
    share = taken.double().mean(0)
    assert (share - 19 / 64).abs().max() < 5 * math.sqrt(19 / 64 * 45 / 64 / 300)
    for percent, size in ((0.001, 1), (0.999, 63)):
        model.shown.clear()
        mu_fidelity(model, images, images, 0, grid_size=8, fixed_size=True, samples=2, subset_percent=percent)
        assert (torch.cat(model.shown) == 0)[:, 0, ::2, ::2].sum((1, 2)).unique().tolist() == [size]


def test_scores_depend_on_seed_and_id_and_not_on_the_batch() -> None:
    model, images = Recorder(), some_images(4, 3, 18, 20).double()
    maps = torch.randn(images.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 3])
    whole = mu_fidelity(model, images, maps, targets, samples=20).scores
    for chunk in (1, 3, 64, 1000):
        other = mu_fidelity(model, images, maps, targets, samples=20, internal_batch_size=chunk).scores
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-12)
    for k in range(4):
        one = slice(k, k + 1)
        alone = mu_fidelity(model, images[one], maps[one], targets[one], samples=20, image_ids=[k]).scores
        torch.testing.assert_close(alone, whole[one], rtol=0, atol=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = mu_fidelity(model, images[order], maps[order], targets[order], samples=20, image_ids=order).scores
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-12)
    layout = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(mu_fidelity(model, layout, maps, targets, samples=20).scores, whole)
    assert not torch.allclose(mu_fidelity(model, images, maps, targets, samples=20, seed=1).scores, whole)
    assert not torch.allclose(
        mu_fidelity(model, images, maps, targets, samples=20, image_ids=[9, 8, 7, 6]).scores, whole
    )


def test_more_samples_begin_with_the_same_ones() -> None:
    images = torch.ones(1, 1, 9, 9)
    shown = []
    for samples in (5, 11):
        model = asked(Linear(torch.zeros(1, 9, 9)), images)
        mu_fidelity(model, images, images, 0, samples=samples)
        shown.append(torch.cat(model.shown))
    assert torch.equal(shown[0], shown[1][:5])


def test_the_model_sees_samples_images_in_chunks_and_its_parameters_and_the_caller_are_left_alone() -> None:
    images = some_images(3, 3, 12, 12).double().requires_grad_()
    model = asked(Recorder(), images)
    state = torch.get_rng_state()
    result = mu_fidelity(model, images, images.detach(), 1, samples=10, internal_batch_size=4)
    assert [len(batch) for batch in model.shown] == [4] * 7 + [2]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not result.scores.requires_grad
    assert not result.scores.is_inference()
    assert (result.grid_size, result.samples, result.subset_percent) == (9, 10, 0.2)
    assert (result.score, result.fixed_size) == ("probability", False)


@pytest.mark.parametrize(
    ("baseline", "expected"),
    [
        (0, lambda images: torch.zeros_like(images)),
        (0.25, lambda images: torch.full_like(images, 0.25)),
        ([0.1, 0.2, 0.9], lambda images: torch.tensor([0.1, 0.2, 0.9])[:, None, None].expand_as(images)),
        (SolidColour(), lambda images: torch.tensor([0.4, 0.5, 0.6])[:, None, None].expand_as(images)),
        (GaussianBlur(), lambda images: GaussianBlur()(images, torch.tensor([0.4, 0.5, 0.6]))),
        (lambda images: images.flip(3), lambda images: images.flip(3)),
    ],
    ids=["black", "grey", "colour", "mean", "blur", "function"],
)
def test_what_is_taken_turns_into_the_baseline_and_the_rest_stays(baseline, expected) -> None:
    images = some_images(2, 3, 18, 18)
    model = asked(Linear(torch.zeros(3, 18, 18)), images)
    model.mean = torch.tensor([0.4, 0.5, 0.6])
    mu_fidelity(model, images, images, 0, samples=20, baseline=baseline)
    substitute, shown = expected(images), torch.cat(model.shown)
    for k in range(2):
        rows = shown[k * 20 : (k + 1) * 20]
        taken = rows != images[k]
        assert torch.equal(rows, torch.where(taken, substitute[k], images[k]))
        assert torch.equal(taken.any(1), taken.all(1))  # all channels of a pixel together
        assert 0.1 < taken.float().mean() < 0.3


def test_no_images_give_no_scores() -> None:
    assert mu_fidelity(Recorder(), torch.zeros(0, 3, 12, 12), torch.zeros(0, 3, 12, 12), 0).scores.shape == (0,)


IMAGES = some_images(2, 3, 12, 12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": IMAGES * 255}, ValueError, r"images must lie in \[0, 1\]"),
        ({"maps": IMAGES[:1]}, ValueError, "maps must have the images' shape"),
        ({"maps": IMAGES * math.nan}, ValueError, r"maps must be finite.*image\(s\) 0, 1"),
        ({"targets": [0, 1, 2]}, ValueError, "one entry per image"),
        ({"targets": [0, 9]}, ValueError, r"target 9 \(image 1\) is out of range: the model has 4 classes"),
        ({"targets": 0.5}, TypeError, "targets must be an int"),
        ({"grid_size": 13}, ValueError, "grid_size must be at most 12 for images of 12 x 12 pixels, got 13"),
        ({"grid_size": 0}, ValueError, "grid_size must be at least 1"),
        ({"grid_size": 9.0}, TypeError, "grid_size must be a whole number"),
        ({"subset_percent": 20}, ValueError, "subset_percent must be a fraction above 0 and below 1, got 20"),
        ({"subset_percent": 0.0}, ValueError, "subset_percent must be a fraction"),
        ({"subset_percent": math.nan}, ValueError, "subset_percent must be a fraction"),
        ({"subset_percent": "much"}, TypeError, "subset_percent must be a number"),
        ({"samples": 1}, ValueError, "samples must be at least 2, got 1"),
        ({"samples": 2.5}, TypeError, "samples must be a whole number"),
        ({"score": "loss"}, ValueError, "score must be one of"),
        ({"fixed_size": True, "grid_size": 1}, ValueError, "at least 2 cells to choose from, got 1"),
        ({"baseline": 2.0}, ValueError, r"a colour must lie in \[0, 1\]"),
        ({"baseline": (0.1, 0.2)}, ValueError, r"does not fit images of 3 channel\(s\)"),
        ({"baseline": "black"}, TypeError, "a colour must be a number"),
        ({"baseline": SolidColour()}, ValueError, "no attribute `mean`"),
        ({"baseline": lambda images: images[:1]}, ValueError, r"must have the images' shape \(2, 3, 12, 12\), got"),
        ({"baseline": lambda images: None}, TypeError, "must return a tensor, got NoneType"),
        ({"baseline": lambda images: images / 0}, ValueError, "the baseline must be finite"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number"),
        ({"seed": 2**63}, ValueError, "seed must fit into 64 bits"),
        ({"image_ids": [1]}, ValueError, r"one entry per image, \(2,\), got shape \(1,\)"),
        ({"image_ids": [-1, 2]}, ValueError, r"must lie in \[0, 2\^32 - 2\], got -1 to 2"),
        ({"image_ids": [0.5, 1.0]}, TypeError, "image_ids must be integers"),
        ({"internal_batch_size": 0}, ValueError, "internal_batch_size must be at least 1"),
        ({"model": nn.Dropout()}, ValueError, "training mode"),
        ({"model": lambda pixels: pixels}, ValueError, r"output must be \(B, classes\)"),
        ({"model": lambda pixels: [pixels, pixels]}, TypeError, "must return a tensor of logits"),
    ],
)
def test_bad_input_is_named(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"model": Recorder(), "images": IMAGES, "maps": IMAGES, "targets": 0} | change
    with pytest.raises(error, match=message):
        mu_fidelity(**arguments)


@pytest.mark.parametrize("score", ["probability", "logit"])
def test_a_model_that_gives_nan_is_named(score: str) -> None:
    def model(pixels: Tensor) -> Tensor:
        light = pixels.mean((1, 2, 3))
        return torch.stack([light, torch.where(light > 0.7, math.nan, light)], 1)

    images = torch.stack([torch.full((3, 12, 12), 0.5), torch.full((3, 12, 12), 1.0)])
    with pytest.raises(ValueError, match=f"the model's {score} of the target is not finite for image 1"):
        mu_fidelity(model, images, images, 1, score=score, samples=20)


# What it is built of.


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_ranks_and_their_correlation_are_scipys(levels: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(levels)
    a, b = (torch.randint(0, levels, (6, 50), generator=generator) for _ in range(2))
    for row, expected in zip(ranks(a), a, strict=True):
        np.testing.assert_array_equal(row, stats.rankdata(expected))
    for k, found in enumerate(rank_correlation(a, b.float())):
        assert float(found) == pytest.approx(stats.spearmanr(a[k], b[k])[0], abs=1e-14)


def test_rank_correlation_of_the_same_order_is_one_and_of_none_zero() -> None:
    values = torch.randn(3, 17, generator=torch.Generator().manual_seed(0))
    assert rank_correlation(values, values.exp()).tolist() == [1, 1, 1]
    assert rank_correlation(values, -(values**3)).tolist() == [-1, -1, -1]
    assert rank_correlation(values, torch.zeros(3, 17)).tolist() == [0, 0, 0]
    assert rank_correlation(torch.zeros(3, 17), torch.zeros(3, 17)).tolist() == [0, 0, 0]


def python_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's integers, after the authors' paper."""
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        low = 2**32 - 1
        counter = [second >> 32 ^ counter[1] ^ key[0], second & low, first >> 32 ^ counter[3] ^ key[1], first & low]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return counter


def test_random_words_are_philox_of_their_counter() -> None:
    seed, ids, samples = (7 << 32) + 11, [3, 2**32 - 2], [5, 0]
    words = random_words(Stream.SUBSETS, seed, torch.tensor(ids), torch.tensor(samples), 10)
    for row, image_id, sample in zip(words.tolist(), ids, samples, strict=True):
        expected = [w for block in range(3) for w in python_philox([block, sample, 2**32 - 1, image_id], [11, 7])]
        assert row == expected[:10]
    other = random_words(Stream.PERTURBATIONS, seed, torch.tensor(ids), torch.tensor(samples), 10)
    assert not (other == words).any()


# A real classifier.


@pytest.mark.shared
def test_scores_of_the_real_model_equal_scipys(mobilenet, photographs) -> None:
    stats = pytest.importorskip("scipy.stats")
    images, labels = photographs(1)
    logits = []

    def model(pixels: Tensor) -> Tensor:
        logits.append(mobilenet(pixels))
        return logits[-1]

    shown = []
    hook = mobilenet.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0].clone()))
    maps = images - 0.5
    score = float(mu_fidelity(model, images, maps, labels, samples=24, baseline=SolidColour(0.5)).scores)
    hook.remove()
    shown, logits = shown[-3:], logits[-3:]  # before them the model is asked what its output is like
    assert [len(batch) for batch in shown] == [8, 8, 8]
    taken = (torch.cat(shown) != images).any(1)
    relevance = [math.fsum(maps[0].sum(0).double()[mask].tolist()) for mask in taken]
    left = torch.cat(logits).softmax(1)[:, labels[0]]
    assert taken.unique(dim=0).shape[0] == 24
    assert score == pytest.approx(stats.spearmanr(relevance, -left)[0], abs=1e-6)
