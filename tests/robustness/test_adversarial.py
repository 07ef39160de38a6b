"""Projected gradient descent: inside its ball, to the optimum where that is known, and without a trace in the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fampe_fast.robustness import PGD

from ..models_for_tests import Constant, Smooth, TwoClassLinear, some_images

EPS = 0.06


@pytest.mark.parametrize("scale", [1, 5, 1e-6])
def test_on_a_linear_model_it_ends_at_the_optimum(scale: float) -> None:
    """The loss of class 0 falls along w: the worst place of the ball is its corner against the signs of w.

    With 5 w the model is surer of some images than float32 can tell from certainty.
    """
    weight = torch.randn(3, 8, 9, generator=torch.Generator().manual_seed(0))
    model, images = TwoClassLinear(scale * weight), 0.2 + 0.6 * some_images(4, height=8, width=9)
    found = PGD(EPS)(model, images, torch.zeros(4, dtype=torch.long))
    assert torch.equal(found, images - EPS * weight.sign())
    assert torch.equal(PGD(EPS)(model, images, [1, 1, 1, 1]), images + EPS * weight.sign())


def test_the_optimum_of_a_linear_model_is_cut_off_by_the_bounds() -> None:
    weight = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(1))
    images = some_images(3).round()  # every pixel at a bound
    found = PGD(EPS)(TwoClassLinear(weight), images, 0)
    torch.testing.assert_close(found, (images - EPS * weight.sign()).clamp(0, 1), rtol=0, atol=0)
    found = PGD(EPS, bounds=(-1.0, 1.0))(TwoClassLinear(weight), images, 0)
    torch.testing.assert_close(found, (images - EPS * weight.sign()).clamp(-1, 1), rtol=0, atol=0)


def test_it_raises_the_loss_and_stays_in_the_ball_and_the_bounds() -> None:
    model, images, targets = Smooth(), some_images(6), torch.arange(6) % 5

    def losses(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return nn.functional.cross_entropy(model(pixels), targets, reduction="none")

    before = losses(images)
    for steps in (1, 3, 20):
        found = PGD(EPS, steps=steps)(model, images, targets)
        assert float((found.double() - images.double()).abs().max()) <= EPS + 2**-24
        assert 0 <= float(found.min()) < float(found.max()) <= 1
        assert (losses(found) > before).all()


def test_it_starts_anywhere_in_the_ball() -> None:
    """A model without a gradient leaves the images where they start."""
    images = torch.full((4, 3, 32, 32), 0.5)
    moved = (PGD(EPS)(Constant(), images, 0) - images) / EPS
    assert -1 - 1e-6 <= float(moved.min()) < -0.99 < 0.99 < float(moved.max()) <= 1 + 1e-6
    count = moved.numel()
    assert abs(float(moved.mean())) < 4 / (3 * count) ** 0.5  # four standard errors of a uniform number
    assert abs(float(moved.square().mean()) - 1 / 3) < 4 * (4 / 45 / count) ** 0.5


def test_equal_seeds_give_equal_batches_and_each_batch_draws_anew() -> None:
    model, images = Smooth(), some_images(3)

    def two(seed: int) -> list[torch.Tensor]:
        pgd = PGD(EPS, steps=1, step_size=1e-3, seed=seed)
        return [pgd(model, images, 0), pgd(model, images, 0)]

    first, again, other = two(3), two(3), two(4)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_the_model_is_left_as_it_was() -> None:
    norm, frozen = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    model = nn.Sequential(norm, frozen, nn.Dropout(0.5), nn.Flatten(), nn.Linear(3 * 24 * 24, 4)).train()
    frozen.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = some_images(5)
    kept = images.clone()
    with torch.no_grad():  # as a caller may have it
        first = PGD(EPS)(model, images, torch.arange(5) % 4)
    assert torch.equal(first, PGD(EPS)(model, images, torch.arange(5) % 4))  # no dropout
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [part.training for part in (model, norm, frozen, model[2])] == [True, True, False, True]
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(images, kept)
    assert not first.requires_grad

    class Broken(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("broken")

    broken = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        PGD(EPS)(broken, images, 0)
    assert broken.training


def test_it_keeps_the_type_and_takes_no_images() -> None:
    images = some_images(2)
    assert PGD(EPS)(Smooth().double(), images.double(), 0).dtype == torch.float64
    assert PGD(EPS)(Smooth(), images[:0], []).shape == (0, 3, 24, 24)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eps": 0}, "eps must be finite and above 0, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"step_size": -1}, "step_size must be finite and above 0, got -1"),
        ({"bounds": (1, 0)}, "bounds must be"),
        ({"seed": 2**63}, "seed must fit into 64 bits"),
    ],
)
def test_bad_numbers_are_named(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        PGD(**{"eps": EPS, **options})


def test_bad_batches_are_named() -> None:
    with pytest.raises(ValueError, match=r"^targets must have one entry per image, \(2,\), got shape \(3,\)"):
        PGD(EPS)(Smooth(), some_images(2), [0, 1, 2])
    with pytest.raises(TypeError, match="^images must be a real floating-point tensor, got torch.uint8"):
        PGD(EPS)(Smooth(), some_images(2).byte(), 0)
    with pytest.raises(TypeError, match="^targets must hold integers"):
        PGD(EPS)(Smooth(), some_images(2), torch.rand(2))
    normalised = some_images(2) * 4 - 2
    with pytest.raises(ValueError, match=r"^images must lie in \[0, 1\], got values from -\S+ to \S+; put"):
        PGD(EPS)(Smooth(), normalised, 0)
    found = PGD(EPS, bounds=(-2, 2))(Smooth(), normalised, 0)
    assert float((found - normalised).abs().max()) <= EPS + 1e-6
    with pytest.raises(ValueError, match=r"^images must lie in \[0, 1\], got values from nan to nan"):
        PGD(EPS)(Smooth(), some_images(2) * torch.nan, 0)


def test_a_model_may_be_any_callable() -> None:
    model, images = Smooth(), some_images(2)
    assert torch.equal(PGD(EPS)(lambda pixels: model(pixels), images, 0), PGD(EPS)(model, images, 0))
