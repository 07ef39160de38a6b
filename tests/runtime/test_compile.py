"""The gradient loop through torch.compile: one graph for every size, the plain loop's results, and the way back.

Most tests trace with the backend ``aot_eager``: what they ask (breaks, recompiles, fallback) is decided before code is
generated. One goes through inductor.
"""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import threading
import warnings
import weakref
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from fampe_fast import FAMPE, AttEXplore
from fampe_fast.errors import FampeWarning
from fampe_fast.reference.radial_mask import SHAPES

from ..models_for_tests import Smooth, published, some_images


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")  # auto may compile the mix: a graph more
    counters.clear()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("method", [published, AttEXplore])
def test_nothing_is_compiled_again_when_numbers_change(method: Any) -> None:
    """Two graphs, for samples with and without input diversity, whatever T, N, batch, remainder and seed."""
    model = Smooth()
    for batch in (3, 1, 2, 5):
        for steps, samples, seed, chunk in ((1, 8, 0, None), (2, 7, 3, 5), (3, 4, -1, 4)):
            options = {"steps": steps, "samples": samples, "seed": seed, "eps": 0.02 * steps}
            images, ids = some_images(batch), list(range(4, 4 + batch))
            compiled = method(model, compile="on", **options)
            maps = compiled.attribute(images, target=1, internal_batch_size=chunk, image_ids=ids)
            plain = method(model, compile="off", **options)
            expected = plain.attribute(images, target=1, internal_batch_size=chunk, image_ids=ids)
            assert min(pearson(a, b) for a, b in zip(maps, expected, strict=True)) > 0.9999
    assert graphs() == 2


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
def test_rows_one_by_one_have_a_graph_of_their_own() -> None:
    model = Smooth()
    for batch in (2, 1, 3):
        method = published(model, compile="on", steps=1, samples=4)
        method.attribute(some_images(batch), target=0, internal_batch_size=1)
    assert graphs() == 2


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "modulate", "input_diversity": False},
        {"area_cutoff": 6.0},
        {"mode": "allpass"},
        {"mask_shape": "disc"},
        {"mask_shape": "butterworth"},
        {"loss": "softmax_twice"},
        {"precision": "bf16"},
        {"direction": "ascend"},
    ],
    ids=str,
)
def test_every_option_is_compiled(options: dict[str, str]) -> None:
    model, images = Smooth(), some_images(2)
    maps = published(model, compile="on", steps=2, samples=4, **options).attribute(images, target=2)
    expected = published(model, compile="off", steps=2, samples=4, **options).attribute(images, target=2)
    assert graphs() > 0
    assert pearson(maps, expected) > (0.99 if options.get("precision") else 0.9999)


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
def test_a_model_s_graphs_keep_the_shapes_apart() -> None:
    """One model, one shape after the other: what was compiled for the first one is not used for the others."""
    model, images = Smooth(), some_images(2)
    options = {"steps": 1, "samples": 2, "input_diversity": False, "alpha": 1.0, "cutoff": 2.0}
    plain, compiled = (
        [published(model, compile=mode, mask_shape=shape, **options).attribute(images, target=2) for shape in SHAPES]
        for mode in ("off", "on")
    )
    apart = min(float((one - other).norm()) for one, other in combinations(plain, 2))
    assert apart > 0
    assert all(float((one - other).norm()) < 0.1 * apart for one, other in zip(plain, compiled, strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
def test_models_with_several_output_dimensions_and_callables_are_compiled() -> None:
    model = Smooth()

    def grid(pixels: Tensor) -> Tensor:
        return torch.stack([model(pixels), -model(pixels)], 2)

    images = some_images(2)
    maps = published(grid, compile="on", steps=1, samples=4).attribute(images, target=(1, 0))
    assert graphs() > 0
    assert pearson(maps, published(model, compile="off", steps=1, samples=4).attribute(images, target=1)) > 0.9999


@pytest.mark.slow
def test_generated_code_gives_the_maps_of_the_plain_loop() -> None:
    model, images = Smooth(), some_images(3)
    options = {"steps": 2, "samples": 4, "seed": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FampeWarning)  # no silent fallback
        maps, details = published(model, compile="on", **options).attribute(images, target=1, return_details=True)
    expected, plain = published(model, compile="off", **options).attribute(images, target=1, return_details=True)
    assert min(pearson(a, b) for a, b in zip(maps, expected, strict=True)) > 0.9999
    torch.testing.assert_close(details.gradient_scale, plain.gradient_scale, rtol=1e-4, atol=0)


class Unruly(Smooth):
    """Asks for a number in the middle: no graph without a break."""

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.sum().item() > 1e9:
            return super().forward(pixels) * 2
        return super().forward(pixels)


@pytest.mark.usefixtures("traced_only")
def test_a_model_that_cannot_be_compiled_runs_plain_after_one_warning() -> None:
    model, images = Unruly(), some_images(2)
    method = published(model, compile="on", steps=2, samples=3)
    with pytest.warns(FampeWarning, match=r"torch.compile failed for the gradients of Unruly, .*uncompiled") as caught:
        maps = method.attribute(images, target=1)
    assert len([w for w in caught if issubclass(w.category, FampeWarning)]) == 1
    again = published(model, compile="on", steps=2, samples=3, seed=0)
    assert torch.equal(maps, again.attribute(images, target=1))  # quiet: FampeWarning is an error in these tests
    assert torch.equal(maps, published(model, compile="off", steps=2, samples=3).attribute(images, target=1))


@pytest.mark.usefixtures("traced_only")
def test_a_model_that_fails_fails_with_its_own_error() -> None:
    class Broken(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            if len(pixels) > 2:
                raise ZeroDivisionError("the model's own mistake")
            return super().forward(pixels)

    with pytest.raises(ZeroDivisionError, match="own mistake"):
        published(Broken(), compile="on", steps=1, samples=8).attribute(some_images(2), target=1)


@pytest.mark.usefixtures("traced_only")
def test_memory_errors_are_not_taken_for_compiler_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    from fampe_fast.runtime.compilation import Compiled

    def hungry(values: Tensor) -> Tensor:
        return values

    def compile_hungry(*args: object, **kwargs: object) -> object:
        def call(values: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("out of memory")

        return call

    monkeypatch.setattr(torch, "compile", compile_hungry)
    function = Compiled(hungry, "a hungry function")
    with pytest.raises(torch.OutOfMemoryError):
        function(torch.zeros(1))
    assert function.active


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
def test_a_compiled_model_is_let_go() -> None:
    model = Smooth()
    method = published(model, compile="on", steps=1, samples=2)
    method.attribute(some_images(), target=0)
    seen = weakref.ref(model)
    del model, method
    gc.collect()
    assert seen() is None


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
def test_a_method_is_copied_and_pickled_without_its_compiled_code() -> None:
    method = published(Smooth(), compile="on", steps=1, samples=2)
    maps = method.attribute(some_images(), target=0)
    for other in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert other.config == method.config
        assert pearson(other.attribute(some_images(), target=0), maps) > 0.9999


def test_a_changed_model_or_configuration_is_taken_up() -> None:
    method = published(Smooth(), steps=1, samples=2)
    first = method.attribute(some_images(), target=0)
    method.forward_func = Smooth(seed=1)
    second = method.attribute(some_images(), target=0)
    assert not torch.equal(first, second)
    method.config = published(Smooth(), steps=2, samples=2).config
    assert method.attribute(some_images(), target=0, return_details=True)[1].model_passes == 4


def test_cuda_graphs_without_a_gpu_are_refused() -> None:
    with pytest.raises(ValueError, match="compile='graphs' needs a CUDA GPU, and the images are on cpu"):
        published(Smooth(), compile="graphs", steps=1, samples=2).attribute(some_images(), target=0)
    with pytest.raises(ValueError, match="compile must be one of auto, off, on, graphs; got 'always'"):
        published(Smooth(), compile="always")


def test_on_a_cpu_the_default_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> object:
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    published(Smooth(), steps=1, samples=2).attribute(some_images(), target=0)


# On a GPU -------------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("compiled", ["off", "on", "graphs"])
def test_the_loop_never_waits_for_the_gpu(compiled: str) -> None:
    """Every step after the first, which may compile, runs with synchronisations forbidden."""
    from fampe_fast.engine.aggregation import GradientLoop

    model, images = Smooth().cuda(), some_images(3).cuda()
    method = published(model, steps=4, samples=6, compile=compiled)
    method.attribute(images, target=torch.tensor([0, 1, 2], device="cuda"))
    forbidden = []

    def guarded(loop: GradientLoop, *args: object) -> Tensor:
        torch.cuda.set_sync_debug_mode("error")
        forbidden.append(True)
        try:
            return original(loop, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    original = GradientLoop.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GradientLoop, "__call__", guarded)
        method.attribute(images, target=torch.tensor([0, 1, 2], device="cuda"))
    assert len(forbidden) == 4


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("compiled", ["on", "graphs"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_compiled_maps_on_a_gpu_are_those_of_the_plain_loop(compiled: str, precision: str) -> None:
    model, images = Smooth().cuda(), some_images(3).cuda()
    options = {"steps": 3, "samples": 8, "precision": precision}
    maps = published(model, compile=compiled, **options).attribute(images, target=1)
    expected = published(model, compile="off", **options).attribute(images, target=1)
    assert min(pearson(a, b) for a, b in zip(maps, expected, strict=True)) > (0.999 if precision == "fp32" else 0.98)


@pytest.mark.gpu
@needs_gpu
def test_maps_on_a_gpu_are_those_on_the_cpu() -> None:
    model, images = Smooth(), some_images(3)
    expected = published(model, steps=3, samples=8).attribute(images, target=1)
    maps = published(model.cuda(), steps=3, samples=8, compile="off").attribute(images.cuda(), target=1).cpu()
    assert min(pearson(a, b) for a, b in zip(maps, expected, strict=True)) > 0.999


class Twice(nn.Module):
    """Calls one module twice; the second call is a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.Softplus(), nn.Conv2d(6, 6, 3, stride=2))
            self.head = nn.Linear(6, 4)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.net[1](self.net(pixels)).mean((2, 3)))


@pytest.mark.slow
def test_threads_compile_and_run_depths_and_paths_of_one_model_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    images, start = some_images(2), threading.Barrier(4)
    settings = [{"passes": 2, "layers": "net.1#1"}, {"steps": 1, "samples": 2, "views": 0}]
    expected = [FAMPE(Twice(), **options).attribute(images, 1) for options in settings]
    model, found = Twice(), dict[int, Tensor]()

    def work(number: int) -> None:
        start.wait()
        found[number] = FAMPE(model, compile="on", **settings[number % 2]).attribute(images, 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        torch.testing.assert_close(found[number], expected[number % 2], rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())
