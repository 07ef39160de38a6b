"""What a caller has set in torch, and what other threads do, changes no bit of a map or a score."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fampe_fast import (
    FrequencyAttribution,
    OccludedFrequency,
    create_method,
    insertion_deletion,
    mu_fidelity,
    stability,
)
from fampe_fast.catalog import method_options
from fampe_fast.frequency import two_scale_map
from fampe_fast.frequency.low_pass import filtered_map
from fampe_fast.methods import METHODS
from fampe_fast.metrics import Partners, centre_gain, grid_pointing, parameter_randomisation
from fampe_fast.robustness import BandLimitedAttack
from fampe_fast.robustness.transfer import answers_of
from fampe_fast.runtime.model import frozen_parameters
from fampe_fast.runtime.tf32 import tensor_float32

from ..models_for_tests import Smooth, some_images, suited

pytest.importorskip("captum")


def options_of(name: str) -> dict[str, Any]:
    few = {"passes": 3, "steps": 2, "samples": 3}
    return {option.name: few[option.name] for option in method_options(name) if option.name in few}


def run_method(name: str, model: nn.Module, images: Tensor) -> Tensor:
    found = create_method(name, model, **options_of(name)).attribute(images, [1, 2], image_ids=[7, 8])
    assert isinstance(found, Tensor)
    return found


def run_curves(model: nn.Module, images: Tensor, **options: Any) -> Tensor:
    found = insertion_deletion(model, images, images, [1, 2], mean=0.5, **options)
    return torch.cat([found.insertion_curves, found.deletion_curves])


def run_stability(model: nn.Module, images: Tensor) -> Tensor:
    method = create_method("saliency", model)
    return stability(method, images, [1, 2], samples=2).distances


def run_grid_pointing(model: nn.Module, images: Tensor) -> Tensor:
    partners = Partners.of(images.roll(1, -1).repeat(2, 1, 1, 1), [0, 1, 2, 3])
    method = create_method("fampe", model, steps=1, samples=2)
    return grid_pointing(method, images, [1, 2], partners=partners, cells="native", image_ids=[7, 8]).scores


def run_parameter_randomisation(model: nn.Module, images: Tensor) -> Tensor:
    method = create_method("forgrad_saliency", model)
    return parameter_randomisation(method, images, [1, 2], stages=2).correlations


CALLS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    **{
        name: partial(run_method, name) for name in METHODS if "_fampe_published" not in name and "_signed_" not in name
    },
    "forgrad_signed_saliency": partial(run_method, "forgrad_signed_saliency"),  # the sign is one line of the filter
    "attack": lambda model, images: BandLimitedAttack(model, "low", 5)(images, [1, 2]).images,
    "frequency attribution": lambda model, images: FrequencyAttribution(model, passes=2)(images, [1, 2]).gradients,
    "occluded frequency": lambda model, images: OccludedFrequency(model, 4)(images, [1, 2]).drops,
    "insertion and deletion": partial(run_curves, steps=5),
    "a part of the curves": partial(run_curves, passes=12),
    "stability": run_stability,
    "grid pointing": run_grid_pointing,
    "parameter randomisation": run_parameter_randomisation,
    "centre gain": lambda model, images: centre_gain(model, images, images, [1, 2], mean=0.5, steps=4).insertion,
    "mu-fidelity": lambda model, images: mu_fidelity(model, images, images, [1, 2], grid_size=3, samples=8).scores,
    "answers": lambda model, images: answers_of(model, images, torch.tensor([1, 2], device="cpu")).probability,
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SETTINGS: dict[str, Callable[[], Any]] = {
    "bf16 autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "fp16 autocast": lambda: torch.autocast("cpu", dtype=torch.float16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "another default device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("call", CALLS)
def test_what_the_caller_has_set_changes_no_bit(call: str, setting: str) -> None:
    model, images = suited(call), some_images(2)
    quiet = CALLS[call](model, images)
    for fresh in (False, True):  # a model that is known, and one that is asked inside
        other = suited(call) if fresh else model
        with SETTINGS[setting]():
            found = CALLS[call](other, images)
        assert torch.equal(found, quiet)
        assert found.dtype == quiet.dtype
    assert torch.equal(CALLS[call](model, images), quiet)  # nothing made inside is kept for calls outside


@pytest.mark.parametrize("call", CALLS)
def test_four_threads_with_one_model_give_the_bits_of_one(call: str) -> None:
    """All at once and again and again, every thread with images of its own, and the user drawing beside them."""
    model = suited(call)
    batches = [some_images(2, seed=seed) for seed in range(4)]
    quiet = [CALLS[call](model, images) for images in batches]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    start = threading.Barrier(5)

    def repeat(index: int) -> list[Tensor]:
        start.wait()
        return [CALLS[call](model, batches[index]) for _ in range(4)]

    def draw() -> list[float]:
        start.wait()
        return [float(torch.rand(())) for _ in range(400)]

    torch.manual_seed(5)
    expected = [float(torch.rand(())) for _ in range(400)]
    torch.manual_seed(5)
    with ThreadPoolExecutor(5) as pool:
        drawn = pool.submit(draw)
        for index, found in enumerate(pool.map(repeat, range(4))):
            assert all(torch.equal(each, quiet[index]) for each in found)
        assert drawn.result() == expected  # nobody touched the process's generator
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parameters_stay_frozen_until_the_last_thread_has_left() -> None:
    model = Smooth()
    model.head.bias.requires_grad_(False)  # the user's own wish
    flags = [parameter.requires_grad for parameter in model.parameters()]
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    seen: list[bool] = []

    def first() -> None:
        with frozen_parameters(model):
            first_in.set()
            second_in.wait(10)
        first_out.set()

    def second() -> None:
        first_in.wait(10)
        with frozen_parameters(model):
            second_in.set()
            first_out.wait(10)
            seen.extend(parameter.requires_grad for parameter in model.parameters())

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [False] * len(flags)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_threads_that_want_tf32_and_others_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    mixed: list[bool] = []

    def work(enabled: bool) -> None:
        for _ in range(50):
            with tensor_float32(enabled), tensor_float32(enabled):
                if torch.backends.cuda.matmul.allow_tf32 is not enabled:
                    mixed.append(enabled)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, [True, False, True, False]))
        assert torch.backends.cuda.matmul.allow_tf32 is before
        with tensor_float32(True):
            with tensor_float32(False):
                assert torch.backends.cuda.matmul.allow_tf32 is False
            assert torch.backends.cuda.matmul.allow_tf32 is True
        assert torch.backends.cuda.matmul.allow_tf32 is before
    assert not mixed


@pytest.mark.parametrize("function", [two_scale_map, filtered_map])
def test_functions_of_maps_keep_their_precision_under_autocast(function: Callable[[Tensor], Tensor]) -> None:
    maps = some_images(2) - 0.5
    quiet = function(maps)
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=kind):
            assert torch.equal(function(maps), quiet)
