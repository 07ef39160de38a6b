"""The walk over a model's parts: what it lists is what torch lists, and a call walks once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fampe_fast import FAMPE
from fampe_fast.runtime.model import frozen_parameters, input_dtype, memory_format
from fampe_fast.runtime.model_probe import probe
from fampe_fast.runtime.parts import Parts, parts_of, walk_again, walked_once

from ..models_for_tests import Smooth, some_images


class Tied(nn.Module):
    """Holds one module twice, one parameter twice, a buffer, and no bias where there could be one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.again = self.first
        self.other = nn.Conv2d(3, 4, 3)
        self.other.weight = self.first[0].weight
        self.register_buffer("scale", torch.ones(2))
        self.register_buffer("unset", None)


@pytest.mark.parametrize(
    "make",
    [Tied, Smooth, lambda: torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.BatchNorm1d(3)))],
    ids=["tied", "smooth", "scripted"],
)
def test_the_parts_are_those_that_torch_lists(make: Callable[[], nn.Module]) -> None:
    model = make()
    parts = parts_of(model)
    assert [name for name, _ in parts.modules] == [name for name, _ in model.named_modules()]
    for found, expected in ((parts.parameters, model.named_parameters()), (parts.buffers, model.named_buffers())):
        wanted = dict(expected)
        assert [name for name, _ in found] == list(wanted)
        assert all(tensor is wanted[name] or torch.equal(tensor, wanted[name]) for name, tensor in found)
    assert parts.shapes == tuple(parameter.shape for parameter in model.parameters())


def test_another_callable_has_no_parts() -> None:
    assert list(parts_of(torch.relu).tensors) == []
    assert input_dtype(torch.relu) is None
    assert memory_format(torch.relu) == torch.contiguous_format


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The walks over modules that have parts of their own, with those inside torch's own functions."""
    found: list[Any] = []
    own = nn.Module.named_modules

    def named_modules(self: nn.Module, memo: Any = None, prefix: str = "", remove_duplicate: bool = True) -> Any:
        if not prefix and self._modules:
            found.append(self)
        return own(self, memo, prefix, remove_duplicate)

    monkeypatch.setattr(nn.Module, "named_modules", named_modules)
    return found


@pytest.mark.parametrize("options", [{"passes": 1}, {"passes": 10}, {"steps": 2, "samples": 3, "views": 0}], ids=str)
def test_a_call_walks_the_model_once(options: dict[str, Any], walks: list[Any]) -> None:
    method, images = FAMPE(Smooth(), **options), some_images(2)
    method.attribute(images, target=1)  # the first call probes the model
    walks.clear()
    method.attribute(images, target=1)
    assert len(walks) == 1


def test_a_walk_lasts_as_long_as_its_block(walks: list[Any]) -> None:
    model = Smooth()
    with walked_once():
        assert parts_of(model) is parts_of(model)
        with walked_once():
            parts_of(model)
        with frozen_parameters(model):
            assert memory_format(model) == torch.contiguous_format
        assert len(walks) == 2
        walk_again(model)
        parts_of(model)
        assert len(walks) == 3
    parts_of(model)
    parts_of(model)
    assert len(walks) == 5
    walk_again(model)  # without a block there is nothing to forget


def test_a_block_tells_models_apart_whose_memory_is_reused() -> None:
    with walked_once():
        names = []
        for size in range(1, 9):  # each is gone before the next one is made, but for the block
            names.append(len(parts_of(nn.Sequential(*[nn.ReLU() for _ in range(size)])).modules))
    assert names == list(range(2, 10))


class Late(nn.Module):
    """Makes its head in the first pass, when it knows the number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, pixels: Tensor) -> Tensor:
        found = torch.relu(self.body(pixels))
        if "head" not in self._modules:
            self.head = nn.Linear(found.shape[1], 5).eval()
        scores: Tensor = self.head(found.mean((2, 3)))
        return scores


def test_what_the_first_pass_makes_is_seen_by_the_call_that_makes_it() -> None:
    model, images = Late().eval(), some_images(2)
    with walked_once():
        assert len(parts_of(model).parameters) == 2
        probe(model, images)
        assert len(parts_of(model).parameters) == 4


def test_an_exchanged_head_is_noticed_in_the_next_call() -> None:
    model, images = Smooth(), some_images(2)
    method = FAMPE(model, passes=1)
    method.attribute(images, target=1)
    last = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    holder = model.get_submodule(last.rpartition(".")[0])
    old = model.get_submodule(last)
    assert isinstance(old, nn.Linear)
    setattr(holder, last.rpartition(".")[2], nn.Linear(old.in_features, old.out_features + 7).eval())
    method.attribute(images, target=old.out_features + 6)


def test_parts_of_nothing() -> None:
    assert Parts(()).input_dtype is None
    assert not Parts(()).holds_compiled
