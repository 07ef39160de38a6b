"""What a model's output means: probabilities, losses that do not cancel, and outputs that are not what was said."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fampe_fast import (
    FAMPE,
    AttEXplore,
    Classifier,
    OccludedFrequency,
    insertion_deletion,
    load_classifier,
    mu_fidelity,
)
from fampe_fast.robustness import BandLimitedAttack, transfer_rates
from fampe_fast.robustness.transfer import answers_of
from fampe_fast.runtime.model_probe import probe
from fampe_fast.runtime.outputs import cross_entropy, is_right, log_odds, probabilities, scores, softmax_twice

from ..models_for_tests import Smooth, TwoClassLinear, some_images

MARGINS = [-80.0, -60.0, -20.0, -1.0, 0.0, 1.0, 17.0, 20.0, 40.0, 60.0, 80.0]


def gradient(loss: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    leaf = values.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf).sum(), leaf)[0]


def exact_gradient(margin: float) -> list[float]:
    """Of ``-log p`` of the first of two classes with logits (margin, 0): (-(1 - p), 1 - p), 1 - p = 1 / (1 + e^m)."""
    rest = math.exp(-margin) / (1 + math.exp(-margin)) if margin > 0 else 1 / (1 + math.exp(margin))
    return [-rest, rest]


@pytest.mark.parametrize("margin", MARGINS)
def test_the_losss_gradient_keeps_its_precision_for_sure_models(margin: float) -> None:
    logits, first = torch.tensor([[margin, 0.0]]), torch.tensor([0])
    expected = torch.tensor([exact_gradient(margin)])
    found = gradient(lambda z: cross_entropy(z, first, "softmax"), logits)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    # The same model, its softmax included: e^-80 is the probability of the other class.
    inside = gradient(lambda z: cross_entropy(z.softmax(1), first, "distribution"), logits)
    torch.testing.assert_close(inside, expected, rtol=1e-5, atol=0)
    # One logit of its own.
    alone = gradient(lambda z: cross_entropy(z, first, "sigmoid"), torch.tensor([[margin]]))
    torch.testing.assert_close(alone, expected[:, :1], rtol=2e-6, atol=0)


@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("target", [0, 1, 2])
def test_losses_are_those_of_float64(margin: float, target: int) -> None:
    logits, classes = torch.tensor([[margin, 0.0, -3.0]], dtype=torch.float64), torch.tensor([target])
    probability = logits.softmax(1)
    torch.testing.assert_close(probabilities(logits.float(), "softmax").double(), probability, rtol=1e-5, atol=1e-37)
    others = torch.cat([logits[:, :target], logits[:, target + 1 :]], 1).logsumexp(1)
    behind = float(others - logits[:, target])  # -log p = log(1 + e^behind), where torch's own float64 cancels
    expected = torch.tensor([max(behind, 0) + math.log1p(math.exp(-abs(behind)))], dtype=torch.float64)
    torch.testing.assert_close(cross_entropy(logits, classes, "softmax"), expected, rtol=1e-12, atol=1e-30)
    torch.testing.assert_close(
        cross_entropy(logits.float(), classes, "softmax").double(), expected, rtol=1e-6, atol=1e-35
    )
    torch.testing.assert_close(log_odds(logits, classes, "softmax"), logits[:, target] - others)
    twice = F.cross_entropy(logits.softmax(1).softmax(1), classes, reduction="none")
    torch.testing.assert_close(softmax_twice(logits.float(), classes, "softmax").double(), twice, rtol=1e-6, atol=0)


@pytest.mark.parametrize("margin", [20.0, 60.0])
@pytest.mark.parametrize("target", [0, 1])
def test_the_softmax_twice_does_not_cancel_either(margin: float, target: int) -> None:
    """Against the chain rule in Python's own numbers: dL/dz_0 = -dL/dz_1 = -(1 - p) p (q_0 - [t = 0]) (...)."""
    logits, classes = torch.tensor([[margin, 0.0]]), torch.tensor([target])
    rest = math.exp(-margin)  # 1 - p, to one part in e^-margin
    found = gradient(lambda z: softmax_twice(z, classes, "softmax"), logits)
    # q = softmax(p); L = -log softmax(q)[t]; with two classes all is a function of d = p_0 - p_1 = 1 - 2 rest.
    difference = 1 - 2 * rest
    q = math.tanh(difference / 2)  # q_0 - q_1
    sign = 1 if target == 0 else -1
    slope_q = -sign / (1 + math.exp(sign * q))  # dL / d(q_0 - q_1)
    slope_d = (1 - q * q) / 2  # d(q_0 - q_1) / dd
    slope_z = 2 * rest  # dd / dz_0 = 2 p (1 - p)
    expected = slope_q * slope_d * slope_z
    torch.testing.assert_close(found, torch.tensor([[expected, -expected]]), rtol=1e-4, atol=0)


class Scaled(nn.Module):
    """A model whose logits are scaled and shifted."""

    def __init__(self, model: nn.Module, scale: float, shift: float) -> None:
        super().__init__()
        self.model, self.scale, self.shift = model, scale, shift
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels) * self.scale + self.shift


def margin_model(margin: float) -> tuple[nn.Module, Tensor]:
    """A linear model of two classes and an image with that margin between them."""
    weight = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    image = some_images(1, height=16, width=16)
    return Scaled(TwoClassLinear(weight), margin / float((image * weight).sum()), 0.0), image


@pytest.mark.parametrize("margin", [1.0, 15.0, 30.0, 60.0])
@pytest.mark.parametrize("shift", [0.0, -40.0])
@pytest.mark.parametrize("method", [FAMPE, AttEXplore])
def test_maps_do_not_change_when_the_logits_are_scaled_or_shifted(method: type, margin: float, shift: float) -> None:
    """The gradient of a linear model of two classes has one direction everywhere, and its length is divided out.

    Without the samples' randomness: the weights 1 - p of samples at other margins depend on the scale, as they should.
    """
    options = {"steps": 3, "samples": 1, "views": 0, "sigma": 0.0, "rho": 0.0, "input_diversity": False, "eps": 0.02}
    near, image = margin_model(0.5)
    far, _ = margin_model(margin)
    for target in (0, 1):
        expected = method(near, **options).attribute(image, target)
        found = method(Scaled(far, 1.0, shift), **options).attribute(image, target)
        assert expected.abs().sum() > 0
        torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("margin", [20.0, 60.0])
def test_a_sure_models_map_is_not_zero_in_any_precision(margin: float, precision: str) -> None:
    sure, image = margin_model(margin)
    maps = FAMPE(sure, steps=2, samples=3, views=0, precision=precision).attribute(image, 0)
    assert maps.isfinite().all()
    assert maps.abs().sum() > 0


@pytest.mark.parametrize("scale", [1.0, 4.0, 10.0])
@pytest.mark.parametrize("band", ["all", "low"])
def test_an_attack_fools_the_same_linear_model_whatever_its_logits_scale(band: str, scale: float) -> None:
    model, image = margin_model(6.0)
    attack = BandLimitedAttack(Scaled(model, scale, 3.0), band)  # type: ignore[arg-type]
    expected = BandLimitedAttack(model, band)(image, 0).images  # type: ignore[arg-type]
    torch.testing.assert_close(attack(image, 0).images, expected, rtol=0, atol=2e-6)
    before, after = (float(model(pixels)[0] @ torch.tensor([1.0, -1.0])) for pixels in (image, attack(image, 0).images))
    assert before == pytest.approx(6.0, rel=1e-4)
    assert after < before - 1


def test_float64_logits_stay_float64() -> None:
    """Two classes whose logits float32 holds apart by nothing: 1e8 and 1e8 + 1."""
    weight = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = Scaled(TwoClassLinear(weight).double(), 1.0, 1e8)
    images = some_images(1, height=16, width=16)
    maps = FAMPE(model, steps=2, samples=2, views=0).attribute(images, 0)
    plain = FAMPE(TwoClassLinear(weight).double(), steps=2, samples=2, views=0).attribute(images, 0)
    torch.testing.assert_close(maps, plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))
    chance = TwoClassLinear(weight).double()(images.double()).softmax(1)[:, 0]
    found = insertion_deletion(model, images, maps, 0, mean=0.5, steps=4).insertion_curves[:, -1]
    torch.testing.assert_close(found.double(), chance, rtol=1e-6, atol=1e-7)


# What an output is ----------------------------------------------------------------------------------------------------


class Ended(nn.Module):
    """A small network and what stands behind it."""

    def __init__(self, classes: int = 4, end: nn.Module | None = None) -> None:
        super().__init__()
        self.net = Smooth(classes=classes)
        self.end = nn.Identity() if end is None else end
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.end(self.net(pixels))


def test_a_model_with_its_softmax_inside_gives_the_maps_and_scores_of_its_logits() -> None:
    images = some_images(2)
    plain, inside = Ended(), Classifier(Ended(end=nn.Softmax(1)), output="probabilities", mean=0.0, std=1.0)
    assert probe(inside, images).reading == "distribution"
    options = {"steps": 2, "samples": 4}
    expected = FAMPE(plain, **options).attribute(images, [1, 2])
    torch.testing.assert_close(FAMPE(inside, **options).attribute(images, [1, 2]), expected, rtol=1e-3, atol=1e-6)
    attacks = [BandLimitedAttack(model)(images, [1, 2]).images for model in (plain, inside)]
    torch.testing.assert_close(*attacks, rtol=0, atol=2e-6)
    for score in (
        lambda model: insertion_deletion(model, images, expected, [1, 2], mean=0.5, steps=6).insertion_curves,
        lambda model: insertion_deletion(model, images, expected, [1, 2], mean=0.5, steps=6).deletion_curves,
        lambda model: OccludedFrequency(model, 4)(images, [1, 2]).drops,
        lambda model: mu_fidelity(model, images, expected, [1, 2], grid_size=4, samples=12).scores,
        lambda model: answers_of(model, images, torch.tensor([1, 2]), 8).probability,
    ):
        torch.testing.assert_close(score(inside), score(plain), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_independent_classes_are_read_one_by_one(classes: int) -> None:
    """The target's sigmoid is the score, and no other class has a part in the map."""
    images, target = some_images(2), classes - 1
    model = Classifier(Ended(classes), output="sigmoid", mean=0.0, std=1.0)

    class Own(nn.Module):
        """The target's logit against 0, as two classes that exclude each other: the same probability."""

        def forward(self, pixels: Tensor) -> Tensor:
            own = model(pixels)[:, target]
            return torch.stack([own, torch.zeros_like(own)], 1)

    own = Own().eval()
    options = {"steps": 2, "samples": 4}
    maps = FAMPE(model, **options).attribute(images, target)
    torch.testing.assert_close(maps, FAMPE(own, **options).attribute(images, 0), rtol=1e-4, atol=1e-7)
    curves = [
        insertion_deletion(each, images, maps, place, mean=0.5, steps=5).insertion_curves
        for each, place in ((model, target), (own, 0))
    ]
    torch.testing.assert_close(*curves)
    chance = model(images)[:, target].sigmoid()
    torch.testing.assert_close(curves[0][:, -1], chance)
    torch.testing.assert_close(OccludedFrequency(model, 4)(images, target).base, chance)
    answers = answers_of(model, images, torch.tensor([target] * 2))
    assert answers.right.tolist() == (chance >= 0.5).tolist()
    torch.testing.assert_close(answers.probability, chance.double(), rtol=1e-6, atol=0)
    rates = transfer_rates({"model": model}, images, [target] * 2, BandLimitedAttack)
    assert rates.accuracy["model"].mean == float((chance >= 0.5).double().mean())


def test_probabilities_behind_sigmoids_are_read_as_they_are() -> None:
    images = some_images(2)
    logits, inside = (
        Classifier(Ended(3, end), output=output, mean=0.0, std=1.0)  # type: ignore[arg-type]
        for end, output in ((None, "sigmoid"), (nn.Sigmoid(), "probabilities"))
    )
    assert probe(inside, images).reading == "independent"
    options = {"steps": 2, "samples": 4}
    maps = [FAMPE(model, **options).attribute(images, 1) for model in (logits, inside)]
    torch.testing.assert_close(*maps, rtol=1e-3, atol=1e-6)
    found = [
        insertion_deletion(model, images, maps[0], 1, mean=0.5, steps=5).deletion_curves for model in (logits, inside)
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


class ByHand(nn.Module):
    """A softmax of one's own, without the operator of that name."""

    def forward(self, logits: Tensor) -> Tensor:
        powers = (logits - logits.amax(1, keepdim=True)).exp()
        return powers / powers.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("classes", "end", "said", "word"),
    [
        (4, nn.Softmax(1), None, "output='probabilities'"),
        (2, nn.Softmax(1), None, "output='probabilities'"),
        (4, nn.Softmax(1), "logits", "output='probabilities'"),
        (4, nn.Softmax(1), "sigmoid", "output='probabilities'"),
        (4, nn.Sigmoid(), None, "output='probabilities'"),
        (4, nn.Sigmoid(), "sigmoid", "output='probabilities'"),
        (1, nn.Sigmoid(), None, "output='probabilities'"),
        (4, nn.Sequential(nn.Softmax(1), nn.Unflatten(1, (4,))), None, "output='probabilities'"),
        (4, ByHand(), None, "output='probabilities'"),
        (4, ByHand(), "logits", "output='probabilities'"),
        (1, None, None, "output='sigmoid'"),
        (1, None, "logits", "output='sigmoid'"),
        (4, None, "probabilities", "say 'logits'"),
        (1, None, "probabilities", "'sigmoid' for independent"),
    ],
)
def test_outputs_that_plainly_are_something_else_are_refused_with_the_word_to_say(
    classes: int, end: nn.Module | None, said: str | None, word: str
) -> None:
    images = some_images(1)
    model = Ended(classes, end)
    torch.nn.init.constant_(model.net.head.bias, 2.0)  # above 1, so that logits are no probabilities
    wrapped = Classifier(model, output=said, mean=0.0, std=1.0)  # type: ignore[arg-type]
    calls: list[Callable[[], object]] = [
        lambda: FAMPE(wrapped, steps=1, samples=1).attribute(images, 0),
        lambda: FAMPE(wrapped, steps=1, samples=1).attribute(images),
        lambda: insertion_deletion(wrapped, images, images, 0, mean=0.5, steps=2),
        lambda: mu_fidelity(wrapped, images, images, 0, samples=2, grid_size=2),
        lambda: OccludedFrequency(wrapped, 2)(images, 0),
        lambda: BandLimitedAttack(wrapped)(images, 0),
        lambda: answers_of(wrapped, images, torch.tensor([0])),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=word):
            call()


@pytest.mark.parametrize("classes", [2, 5])
def test_logits_between_0_and_1_are_still_logits(classes: int) -> None:
    class Shares(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.mean((1, 2, 3))[:, None] * torch.arange(1, classes + 1) / classes

    assert probe(Shares().eval(), some_images(1)).reading == "softmax"
    assert probe(Classifier(Shares().eval(), output="sigmoid"), some_images(1)).reading == "sigmoid"


def test_log_probabilities_are_logits() -> None:
    images, model = some_images(2), Ended(4, nn.LogSoftmax(1))
    found = insertion_deletion(model, images, images, [0, 1], mean=0.5, steps=4)
    plain = insertion_deletion(Ended(4), images, images, [0, 1], mean=0.5, steps=4)
    torch.testing.assert_close(found.insertion, plain.insertion)


def test_a_wrong_word_is_named_before_any_work() -> None:
    with pytest.raises(ValueError, match="output must be one of logits, probabilities, sigmoid; got 'softmax'"):
        Classifier(Smooth(), output="softmax")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="output must be one of logits, probabilities, sigmoid; got 'softmax'"):
        load_classifier(Smooth(), output="softmax")  # type: ignore[arg-type]
    images = some_images(1)
    model = Classifier(Ended(3), output="sigmoid", mean=0.0, std=1.0)
    with pytest.raises(ValueError, match="softmax_twice' needs mutually exclusive classes"):
        AttEXplore(model, steps=1, samples=1, loss="softmax_twice").attribute(images, 0)


def test_a_layer_named_output_is_no_statement() -> None:
    class Net(Smooth):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Identity()

    assert probe(Net(), some_images(1)).reading == "softmax"


@pytest.mark.parametrize("reading", ["softmax", "sigmoid", "distribution", "independent"])
def test_the_ends_of_the_range_give_finite_scores(reading: str) -> None:
    values = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]], requires_grad=True)
    for classes in (torch.tensor([0, 0, 2]), torch.tensor([1, 1, 1])):
        loss = cross_entropy(values, classes, reading).sum()  # type: ignore[arg-type]
        (slope,) = torch.autograd.grad(loss, values)
        assert loss.isfinite()
        assert slope.isfinite().all()
        assert scores(values, reading).isfinite().all()  # type: ignore[arg-type]
        assert is_right(values, classes, reading).dtype == torch.bool  # type: ignore[arg-type]


# Cases found in review -----------------------------------------------------------------------------------------------


def after(function: Callable[[Tensor], Tensor], classes: int, output: str | None = None) -> nn.Module:
    """A small net with something behind it."""

    class Net(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            return function(super().forward(pixels))

    net = Net(classes=classes)
    if output is not None:
        net.output = output
    return net


@pytest.mark.parametrize(
    "made",
    [
        lambda z: z.softmax(1),
        lambda z: z.exp() / z.exp().sum(1, keepdim=True),
        lambda z: torch.stack([1 - z[:, 0].sigmoid(), z[:, 0].sigmoid()], 1),
        lambda z: (z.softmax(1) + (3 * z).softmax(1)) / 2,
    ],
    ids=["softmax", "by hand", "p and 1 - p", "ensemble"],
)
@pytest.mark.parametrize("gradients", [True, False])
def test_two_probabilities_are_found_where_no_operator_tells(made: Callable[[Tensor], Tensor], gradients: bool) -> None:
    net, images = after(made, 2), some_images(2)
    model = net if gradients else torch.no_grad()(net.forward)
    for _ in range(2):  # and again: nothing is kept of a model that was refused
        with pytest.raises(ValueError, match="say output='probabilities'"):
            insertion_deletion(model, images, images, 1, mean=0.5, steps=2)
    net.output = "probabilities"
    assert probe(net, images).reading == "distribution"
    assert probe(net.forward, images).reading == "distribution"  # a method knows its module


@pytest.mark.parametrize(
    "made",
    [
        lambda p: torch.cat([p[:, :2], p[:, 2:]], 1),
        lambda p: torch.stack([p[:, k] for k in (2, 0, 1)], 1),
        lambda p: p.clamp(1e-6, 1 - 1e-6),
        lambda p: p.t().contiguous().t(),
        lambda p: p[:, [3, 1, 0]],
    ],
    ids=["cat", "stack", "clamp", "transpose", "index"],
)
def test_sigmoids_are_seen_through_what_moves_and_joins_them(made: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="ends in a sigmoid"):
        probe(after(lambda z: made(z.sigmoid()), 5), some_images(1))
    # What is joined with something else is not known.
    assert probe(after(lambda z: torch.cat([z, z.sigmoid()], 1), 5), some_images(1)).reading == "softmax"


def test_two_logits_that_sum_to_1_once_are_logits() -> None:
    images = some_images(1)
    model = TwoClassLinear(torch.ones_like(images[0]) / images.sum())  # (1, 0) for this image
    assert probe(model, images).reading == "softmax"


@pytest.mark.parametrize("share", [1.0, 0.2])
def test_probabilities_that_are_nan_are_named(share: float) -> None:
    net = after(lambda z: torch.where(torch.arange(5) < 5 * share, math.nan, z.softmax(1)), 5, "probabilities")
    with pytest.raises(ValueError, match="gives NaN"):
        probe(net, some_images(1))


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda z: z.to(torch.complex64), TypeError, "dense tensor of real numbers, got one of torch.complex64"),
        (lambda z: z.to_sparse(), TypeError, "got one of torch.sparse_coo"),
        (lambda z: z[:, :0], ValueError, r"it is \(1, 0\)$"),
        (lambda z: z[:, :, None][..., :0], ValueError, r"it is \(1, 5, 0\)$"),
        (lambda z: z[:, 0], ValueError, r"it is \(1,\): one value per image is \(B, 1\)"),
    ],
    ids=["complex", "sparse", "no classes", "no places", "one dimension"],
)
def test_outputs_that_are_no_scores_are_named(
    made: Callable[[Tensor], Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        FAMPE(after(made, 5), steps=1, samples=1).attribute(some_images(1), 1)


def test_a_softmax_that_is_added_to_a_known_model_is_found() -> None:
    net, images = nn.Sequential(Smooth()).eval(), some_images(1)
    FAMPE(net, steps=1, samples=1).attribute(images, 1)
    net.append(nn.Softmax(1).eval())
    with pytest.raises(ValueError, match="ends in a softmax"):
        FAMPE(net, steps=1, samples=1).attribute(images, 1)


@pytest.mark.parametrize(
    "wrap",
    [
        partial(nn.DataParallel, device_ids=[0]),
        AveragedModel,
        partial,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: net.forward,
    ],
    ids=["DataParallel", "AveragedModel", "partial", "compile", "method"],
)
def test_wrappers_keep_what_was_said(wrap: Callable[[nn.Module], Any]) -> None:
    wrapped = wrap(after(lambda z: z, 3, "sigmoid"))
    assert probe(wrapped.eval() if isinstance(wrapped, nn.Module) else wrapped, some_images(1)).reading == "sigmoid"


def test_an_explorer_has_the_classes_that_are_explained() -> None:
    images, places = some_images(2), after(lambda z: z[:, :, None].expand(-1, -1, 3), 5)
    for model, explorer, target in (
        (Smooth(), Smooth(classes=3), 4),
        (Smooth(), places, 1),
        (places, Smooth(), (1, 2)),
    ):
        with pytest.raises(ValueError, match="expected an explorer of the same classes"):
            FAMPE(model, steps=1, samples=1, explorer=explorer).attribute(images, target)
    for output, function in (("probabilities", lambda z: z.softmax(1)), ("sigmoid", lambda z: z)):
        explored = FAMPE(Smooth(), steps=1, samples=1, explorer=after(function, 5, output)).attribute(images, 4)
        assert explored.abs().sum() > 0


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([-1, 2], ValueError, r"target -1 \(image 0\) is out of range"),
        ([1, 5], ValueError, r"target 5 \(image 1\) is out of range"),
        ([1.7, 2.0], TypeError, "targets must hold integers, got torch.float32"),
        (torch.tensor([True, False]), TypeError, "got torch.bool"),
    ],
)
def test_transfer_takes_classes_alone(targets: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        transfer_rates({"a": Smooth()}, some_images(2), targets, BandLimitedAttack)
    with pytest.raises(ValueError, match=r"must be \(B, classes\); for one image it is \(1, 5, 2\)"):
        answers_of(after(lambda z: torch.stack([z, z], 2), 5), some_images(2), torch.tensor([0, 1]))
