"""A model's twin with weights that are cast once: the same bits, and nothing of it stays behind."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from fampe_fast import FAMPE
from fampe_fast.engine import depth, path
from fampe_fast.runtime.cast_weights import cast_weights

from ..models_for_tests import Smooth, some_images, suited


def set_weights(layer: nn.Linear, given: tuple[Tensor]) -> None:
    """Change the weights before every pass, by what it is given."""
    layer.weight.data.copy_(torch.eye(8) + float(given[0].detach().mean()))


class Unusual(nn.Module):
    """Layers that autocast treats in other ways than their weights alone tell."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.same = Conv2dSame(3, 8, 3, stride=4)
            self.normal = nn.utils.weight_norm(nn.Conv2d(8, 8, 1))
            self.parametrised = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
            self.scripted = torch.jit.script(nn.Conv2d(8, 8, 1))
            self.normalised = nn.GroupNorm(2, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.changing = nn.Linear(8, 8)
            self.changing.register_forward_pre_hook(set_weights)
            self.shared = nn.Linear(8, 8)
            self.again = nn.Linear(8, 8)
            self.again.weight = self.shared.weight
            self.head = nn.Linear(8, 5)
        self.calls = 0
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        values = self.normalised(self.scripted(self.parametrised(self.normal(self.same(pixels)))))
        tokens = values.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        tokens = self.again(self.shared(self.changing(tokens)).tanh()) * self.shared.bias
        return self.head(tokens.mean(1)) + 3 * nn.functional.normalize(self.head.weight, dim=1).sum(1)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "convolutions": Smooth,
    "a transformer": lambda: suited("attention"),
    "unusual layers": Unusual,
}
OPTIONS = {"a path": {"steps": 2, "samples": 5, "views": 0}, "views": {"passes": 2}}


@contextmanager
def no_cast(model: nn.Module, dtype: torch.dtype | None) -> Iterator[nn.Module]:
    yield model


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_maps_are_those_of_weights_cast_in_every_pass(
    make: Callable[[], nn.Module], options: dict[str, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    images, model = some_images(3, height=24, width=24), make()
    method = FAMPE(model, precision=precision, **options)

    def maps() -> Tensor:
        return method.attribute(images, 0, internal_batch_size=2)

    found = maps()
    for module in (path, depth):
        monkeypatch.setattr(module, "cast_weights", no_cast)
    assert torch.equal(found, maps())
    assert float(found.abs().sum()) > 0


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_the_model_stays_as_it_is() -> None:
    model, images = Unusual(), some_images(1, height=24, width=24)
    modules = dict(model.named_modules())
    parameters = {name: (parameter, parameter.dtype) for name, parameter in model.named_parameters()}
    expected = model(images)
    with cast_weights(model, torch.bfloat16) as twin:
        assert twin is not model
        assert torch.equal(model(images), expected)  # as another thread may ask it
        assert twin.head.weight is model.head.weight
        assert twin.normalised is model.normalised
        assert (model.calls, twin.calls) == (2, 1)
        with torch.autocast("cpu"):
            twin(images)
    assert model.calls == 2  # of the pass that the twin has made
    assert dict(model.named_modules()) == modules
    assert {name: (parameter, parameter.dtype) for name, parameter in model.named_parameters()} == parameters


def test_a_twin_shares_hooks_and_buffers_with_its_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    seen: list[nn.Module] = []
    with cast_weights(model, torch.bfloat16) as twin, torch.autocast("cpu"):
        model[0].register_forward_hook(lambda module, given, output: seen.append(module))
        model.late = torch.zeros(1)
        twin(some_images(1))
        assert len(seen) == 1
        assert twin[1] is model[1]


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        (Smooth(), None),
        (Smooth().double(), torch.bfloat16),
        (Smooth().bfloat16(), torch.bfloat16),
        (nn.GroupNorm(1, 3), torch.bfloat16),
        (lambda pixels: pixels, torch.bfloat16),
    ],
    ids=["no autocast", "double", "cast already", "no layer", "a function"],
)
def test_where_nothing_is_cast_the_model_is_its_own_twin(model: Any, dtype: torch.dtype | None) -> None:
    with cast_weights(model, dtype) as twin:
        assert twin is model


@pytest.fixture
def twins(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[nn.Module]]:
    """Weak references to all twins that paths have used."""
    found: list[weakref.ref[nn.Module]] = []

    @contextmanager
    def watched(model: nn.Module, dtype: torch.dtype | None) -> Iterator[nn.Module]:
        with cast_weights(model, dtype) as twin:
            found.extend([weakref.ref(twin), weakref.ref(twin.head._within.weight)])
            yield twin

    monkeypatch.setattr(path, "cast_weights", watched)
    return found


def test_the_casts_go_with_the_call(twins: list[weakref.ref[nn.Module]]) -> None:
    FAMPE(Smooth(), steps=1, samples=2, views=0, precision="bf16").attribute(some_images(1), 0)
    gc.collect()
    assert [twin() for twin in twins] == [None, None]


@pytest.mark.slow
def test_one_graph_without_a_cast_of_a_weight_serves_every_call(
    twins: list[weakref.ref[nn.Module]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    cast: list[list[str]] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        aten = torch.ops.aten
        casts = [node for node in graph.graph.nodes if node.target is aten._to_copy.default]
        views = (aten.t.default, aten.permute.default)
        sources = [node.args[0].args[0] if node.args[0].target in views else node.args[0] for node in casts]
        cast.append([source.name for source in sources if source.op == "placeholder"])
        return graph.forward

    backend = aot_autograd(fw_compiler=count)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    counters.clear()
    model = Smooth()
    method = FAMPE(model, steps=1, samples=4, views=0, precision="bf16", compile="on")
    for batch in (1, 2, 3):
        method.attribute(some_images(batch), 0)
    assert counters["stats"]["unique_graphs"] == 1
    assert cast == [[]]
    gc.collect()
    assert [twin() for twin in twins] == [None] * 6
    monkeypatch.setattr(path, "cast_weights", no_cast)
    FAMPE(Smooth(), steps=1, samples=4, views=0, precision="bf16", compile="on").attribute(some_images(2), 0)
    assert len(cast[1]) == 6  # weights and biases of three layers
