"""What ``warmup`` compiles, what it leaves to do for the first call, and what it leaves as it was."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import fampe_fast
from fampe_fast import FAMPE, AttEXplore, FORGrad, warmup
from fampe_fast.errors import FampeWarning
from fampe_fast.methods.captum_methods import CaptumMethod
from fampe_fast.ops import compiled
from fampe_fast.runtime.tf32 import tensor_float32
from fampe_fast.testing import Case
from fampe_fast.testing.arguments import example_arguments

from ..models_for_tests import Constant, Smooth, some_images


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are made and no code is generated; the mixes are as in a new process."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    for name in ("_mix", "_shared_mix", "_dct_mix"):
        kept = getattr(compiled, name)
        monkeypatch.setattr(compiled, name, type(kept)(kept._compiled.plain, f"the {name} of a test"))
    counters.clear()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


needs_compiler = pytest.mark.skipif(
    fampe_fast.ops.backends._compiler_obstacle("cpu") is not None, reason="no C++ compiler here"
)


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(("steps", "views", "count"), [(4, 0, 2), (4, 1, 3), (4, 2, 3), (0, 1, 1), (0, 2, 1)])
def test_after_it_nothing_is_left_to_compile(
    steps: int, views: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    model = Smooth()
    options = {"compile": "on", "input_diversity": True, "views": views}
    explainer = FAMPE(model, steps=steps, samples=6, **options)
    found = warmup(explainer, 24)
    assert found
    assert found.graphs == graphs() == count
    assert found.note == ""
    assert str(found).startswith(f"compiled {count} graph{'s' if count > 1 else ''} in ")
    for other in (explainer, FAMPE(model, steps=min(steps, 3), samples=9, seed=5, **options)):
        for batch in (1, 3):
            other.attribute(some_images(batch), target=1)
    assert graphs() == count


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
def test_a_mix_has_three_graphs_at_most() -> None:
    """torch gives a function up after eight; a warning that it did would fail this test."""
    for shared in (False, True):
        with compiled.compiled_at_once():
            for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
                for size in (Case(8, 8), Case(12, 20, channels=1), Case(1, 1, channels=1), Case(9, 9, channels=2)):
                    with mode():
                        arguments = example_arguments("band_mix", size, torch.device("cpu"), shared_multiplier=shared)
                        mixed = compiled.band_mix(**arguments)
                    assert not mixed.is_inference()
    assert graphs() == 6


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
def test_the_settings_of_a_process_do_not_use_the_graphs_up() -> None:
    """Each combination would be a graph of torch's eight; a warning that it gave up would fail this test."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    arguments = example_arguments("band_mix", Case(8, 8), torch.device("cpu"))
    wanted = compiled.band_mix(**arguments)
    try:
        with compiled.compiled_at_once():
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                for default in (torch.float32, torch.float64):
                    torch.set_default_dtype(default)
                    assert torch.equal(compiled.band_mix(**arguments), wanted)
            for around in (torch.autocast("cpu"), torch.device("meta"), tensor_float32(True)):
                with around:
                    assert torch.equal(compiled.band_mix(**arguments), wanted)
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


@needs_compiler
@pytest.mark.usefixtures("traced_only")
def test_on_a_cpu_the_mix_alone_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "auto")
    method = FAMPE(Smooth(), steps=2, samples=2)
    found = warmup(method, (24, 24))
    assert found.graphs == graphs() == 1
    assert compiled._mix._values > compiled.COMPILE_AFTER
    assert compiled._dct_mix._values == 0  # no method has asked for it
    method.attribute(some_images(2), target=0)
    assert graphs() == 1
    again = warmup(method, (24, 24))
    assert not again
    assert again.note == "everything was compiled already"


def test_where_nothing_is_compiled_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    found = warmup(FAMPE(Smooth(), compile="off"), 16)
    assert not found
    assert found.graphs == 0
    assert found.kernels == ()
    assert found.seconds > 0
    assert "compile='off' on cpu" in found.note
    assert str(found).startswith("nothing compiled in ")


def test_methods_that_compile_nothing_are_not_run() -> None:
    pytest.importorskip("captum")
    found = warmup(CaptumMethod(Smooth(), "saliency"))
    assert (found.graphs, found.steps, found.note) == (0, 0, "CaptumMethod compiles nothing")


def test_a_model_and_a_filtered_method_are_taken_for_what_they_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    ran: list[tuple[type, tuple[int, ...], int, object]] = []

    def attribute(self: FAMPE, inputs: torch.Tensor, target: object, *, internal_batch_size: int | None) -> None:
        assert 0.2 <= float(inputs.min()) < float(inputs.max()) <= 0.8
        ran.append((type(self), tuple(inputs.shape), self.config.steps, (target, internal_batch_size)))

    monkeypatch.setattr(fampe_fast.methods.base.PathMethod, "attribute", attribute)
    model = Smooth()
    model.input_size = (20, 28)  # type: ignore[assignment]
    method = AttEXplore(model, bounds=(0.2, 0.8), input_diversity=False)
    warmup(FORGrad(method), batch=5, channels=1, target=2, internal_batch_size=7)
    assert ran == [(AttEXplore, (5, 1, 20, 28), 1, (2, 7))]
    assert method.config.steps == 10


def test_as_few_steps_as_show_every_kind_of_sample() -> None:
    from fampe_fast.engine.placements import draw_placements
    from fampe_fast.methods.warmup import _steps_needed

    config = FAMPE(Smooth(), samples=3, steps=30, input_diversity=True).config
    diversified = [sum(place is not None for place in of_step) for of_step in draw_placements(0, 30, 3, 24, 24)]
    for batch, chunk, enough in ((1, 8, 2), (2, 8, 1), (1, 1, 1)):
        needed = _steps_needed(config, (batch, 3, 24, 24), chunk)
        first_plain = next(step for step, count in enumerate(diversified) if 3 - count >= enough)
        first_diverse = next(step for step, count in enumerate(diversified) if count >= enough)
        assert needed == 1 + max(first_plain, first_diverse)
    alone = FAMPE(Smooth(), samples=1, steps=4, input_diversity=True).config
    assert _steps_needed(alone, (1, 3, 24, 24), 8) == 4  # never two of a kind
    shape = (1, 3, 24, 24)
    assert _steps_needed(FAMPE(Smooth(), steps=5, input_diversity=False).config, shape, 8) == 1
    assert _steps_needed(FAMPE(Smooth(), passes=1, input_diversity=True).config, shape, 8) == 0
    assert _steps_needed(FAMPE(Smooth(), compile="graphs", steps=7).config, shape, 8) == 7


def test_it_changes_nothing_but_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    model, images = Smooth(), some_images(2)
    method = FAMPE(model, steps=2, samples=3)
    expected = method.attribute(images, target=1)
    state = torch.random.get_rng_state()
    warmup(method, 24, batch=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert method.config.steps == 2
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(method.attribute(images, target=1), expected)


class Saturated(Smooth):
    """Its layers move its logits, and their lead over the others is too large for the loss to have a gradient."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels) + torch.tensor([1e6, 0, 0, 0, 0])


def test_a_model_that_is_flat_at_noise_is_no_cause_for_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    assert not warmup(FAMPE(Constant().eval(), views=0, steps=1), 16)  # a FampeWarning is an error in these tests
    assert not warmup(FAMPE(Saturated(), passes=1), 24)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize(("options", "what"), [({"views": 0, "steps": 1}, "gradients"), ({"passes": 1}, "depths")])
def test_a_model_that_cannot_be_compiled_is_said_to_be(
    options: dict[str, int], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")

    class Unruly(Smooth):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().forward(pixels) * (2 if pixels.sum().item() > 1e9 else 1)

    with pytest.warns(FampeWarning, match=f"torch.compile failed for the {what} of Unruly"):
        warmup(FAMPE(Unruly(), compile="on", **options), 24)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((3,), {}, TypeError, "method must be an attribution method or a model, got int"),
        ((Smooth(),), {}, ValueError, "image_size is not given, and the model has no input_size"),
        ((Smooth(), (1, 2, 3)), {}, ValueError, r"image_size must be \(height, width\) or one number"),
        ((Smooth(), 24.0), {}, TypeError, "image_size must be"),
        ((Smooth(), (24, 0)), {}, ValueError, "image_size must be at least 1, got 0"),
        ((Smooth(), 24), {"batch": 0}, ValueError, "batch must be at least 1"),
        ((Smooth(), 24), {"target": 9}, ValueError, "target 9 .* out of range"),
        ((nn.Sequential(Smooth()).train(), 24), {}, ValueError, "training mode"),
    ],
)
def test_bad_arguments_are_named(
    arguments: tuple[object, ...], options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        warmup(*arguments, **options)


class Kernel:
    """A kernel that has a compiled form for each number of warps; the interpreter's have none."""

    __name__ = "_mixed"

    def __init__(self, interpreted: bool = False) -> None:
        self.interpreted, self.forms = interpreted, dict[int, object]()

    def __getitem__(self, grid: tuple[int]) -> Callable[..., object]:
        def run(*arguments: object, num_warps: int, **options: object) -> object:
            return None if self.interpreted else self.forms.setdefault(num_warps, object())

        return run


def test_kernels_that_were_launched_for_the_first_time_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fampe_fast.kernels import launch

    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")
    monkeypatch.setattr(launch, "LAUNCHED", defaultdict(set))
    kernel, interpreted = Kernel(), Kernel(interpreted=True)
    calls: list[int] = []

    class Launching(Smooth):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            for warps in calls:
                launch.launch(kernel, 1, like=pixels, warps=warps)
                launch.launch(interpreted, 1, like=pixels, warps=warps)
            return super().forward(pixels)

    method = FAMPE(Launching())
    for calls[:], found in (([], ()), ([4, 4], ("mixed",)), ([4], ()), ([4, 8], ("mixed",))):
        assert warmup(method, 16).kernels == found
    assert {name: len(forms) for name, forms in launch.LAUNCHED.items()} == {"mixed": 2}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_kernels_are_ready_after_it() -> None:
    from fampe_fast.ops.backends import compiled_kernels

    model = Smooth().cuda()
    method = FAMPE(model, steps=3, samples=8, input_diversity=True)
    warmup(method, 40, batch=2)
    ready, made = compiled_kernels(), graphs()
    assert {"band_samples", "accumulate", "step"} <= {name for name, forms in ready.items() if forms}
    method.attribute(some_images(2, height=40, width=40).cuda(), target=1)
    assert compiled_kernels() == ready
    assert graphs() == made
    assert os.environ.get("TRITON_INTERPRET") != "1"
