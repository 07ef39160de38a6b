"""Which plain models are given channels-last images and weights: those whose answers stay the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fampe_fast import FAMPE
from fampe_fast.runtime.cast_weights import cast_weights
from fampe_fast.runtime.decisions import collected_decisions
from fampe_fast.runtime.layout import VARIABLE, same_answers, takes_channels_last
from fampe_fast.runtime.model import frozen_parameters
from fampe_fast.runtime.model_probe import ModelInfo, call

from ..models_for_tests import Smooth, some_images


class Convolution(nn.Module):
    """A convolution, and something done with its output."""

    def __init__(self, finish: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, 8, 3, stride=2)
        self.finish = finish
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.finish(self.layer(pixels))


def mean(values: Tensor) -> Tensor:
    return values.mean((2, 3))


def viewed(values: Tensor) -> Tensor:
    return values.view(len(values) * 8, -1).mean(1).view(len(values), 8)


def as_it_lies(values: Tensor) -> Tensor:
    """Look at the memory in the order of its addresses: another answer where it is laid out otherwise."""
    return values.as_strided((len(values), 8, values[0, 0].numel()), (values[0].numel(), values[0, 0].numel(), 1)).mean(
        2
    )


def detached(values: Tensor) -> Tensor:
    return mean(values).detach()


@pytest.mark.parametrize(("finish", "same"), [(mean, True), (viewed, False), (as_it_lies, False), (detached, False)])
def test_the_answers_decide(finish: Callable[[Tensor], Tensor], same: bool) -> None:
    model = Convolution(finish)
    assert same_answers(model, some_images(2), ModelInfo()) is same
    if finish is viewed:  # why two images are shown
        assert same_answers(model, some_images(1), ModelInfo())
    assert model.layer.weight.is_contiguous()
    assert model.layer.weight.requires_grad


def test_a_model_of_many_layers_gives_its_answers_by_its_twin() -> None:
    model, images = Smooth(), some_images(2)
    weights = {name: tensor.clone() for name, tensor in model.named_parameters()}
    with frozen_parameters(model), torch.no_grad(), cast_weights(model, None, channels_last=True) as twin:
        assert twin is not model
        torch.testing.assert_close(call(twin, images, layout=torch.channels_last), call(model, images))
        turned = [module._within.weight for module in twin.modules() if isinstance(module, nn.Conv2d)]
        assert turned
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in turned)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.named_parameters())
    assert all(tensor.is_contiguous() for tensor in model.parameters())


def test_both_at_once_cast_and_turn() -> None:
    model = Convolution(mean)
    with frozen_parameters(model), cast_weights(model, torch.bfloat16, channels_last=True) as twin:
        weight = twin.layer._within.weight
        assert weight.dtype == torch.bfloat16
        assert weight.is_contiguous(memory_format=torch.channels_last)


def test_on_a_cpu_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fampe_fast.runtime.layout.same_answers", lambda *arguments: pytest.fail("asked"))
    assert not takes_channels_last(Convolution(mean), some_images(1), ModelInfo())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_channels_last_passes_give_the_maps_of_the_own_format(
    precision: str, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, maps = some_images(4).cuda(), []
    for variable in ("1", "0"):
        monkeypatch.setenv(VARIABLE, variable)
        model = Smooth().cuda()
        with collected_decisions() as decisions:
            method = FAMPE(model, steps=2, samples=6, precision=precision, compile=compiled)
            maps.append(method.attribute(images, target=1))
        assert ("memory format: Smooth is given channels-last images and weights" in decisions) is (variable == "1")
        assert all(tensor.is_contiguous() for tensor in model.parameters())
    for pair in zip(*maps, strict=True):
        assert float(torch.corrcoef(torch.stack([one.flatten() for one in pair]))[0, 1]) > 0.98
