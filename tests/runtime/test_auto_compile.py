"""When ``compile="auto"`` compiles on a GPU, and when it takes CUDA graphs: rules that need no GPU."""

from __future__ import annotations

import logging

import pytest
import torch

from fampe_fast import FAMPE, warmup
from fampe_fast.runtime import auto_compile
from fampe_fast.runtime.auto_compile import AutoCompile, graphs_pay, work_of
from fampe_fast.runtime.chunk_probe import ENDLESS, SIZES
from fampe_fast.runtime.chunking import ChunkSize, pinned_chunks
from fampe_fast.runtime.decisions import LOGGER, collected_decisions, decided_at_once
from fampe_fast.runtime.device_time import CallTime, time_call
from fampe_fast.runtime.model_probe import probe

from ..models_for_tests import Smooth, some_images

GPU = torch.device("cuda")


def test_work_is_what_passes_keep_and_no_less_than_their_launches() -> None:
    assert work_of(100, 10, 2**28) == 100 * 2**28
    assert work_of(100, 10, None) == work_of(100, 10, 5) == 10 * 2**30
    assert work_of(1, 64, 2**20) == 2**30
    assert work_of(0, 64, 2**20) == 0


def test_a_run_is_compiled_from_the_call_on_that_makes_it_long_enough() -> None:
    choice, half = AutoCompile("the gradients"), auto_compile.COMPILE_AFTER / 2
    assert [choice.mode(half, {4}) for _ in range(4)] == ["off", "off", "on", "on"]


def test_what_was_compiled_for_a_warm_up_stays_so() -> None:
    choice = AutoCompile("the gradients")
    assert choice.mode(1, {4}) == "off"
    with decided_at_once():
        assert choice.mode(1, {4}) == "on"
    assert choice.mode(1, {4}) == "on"
    assert AutoCompile("the depths").mode(1, {4}) == "off"


def test_graphs_pay_where_the_device_waits_for_the_host() -> None:
    assert graphs_pay(CallTime(host=2.0, device=1.0))
    assert not graphs_pay(CallTime(host=1.0, device=2.0))
    assert not graphs_pay(CallTime(host=1.0, device=1.0))


def test_a_few_sizes_of_chunks_are_captured_and_others_run_without() -> None:
    choice = AutoCompile("the gradients", compiled=True, time=CallTime(2.0, 1.0))
    assert choice.mode(1, {4, 5}) == "graphs"
    assert choice.mode(1, set(range(4, 12))) == "graphs"
    assert choice.mode(1, {12}) == "on"
    assert choice.mode(1, {5, 11}) == "graphs"
    many = AutoCompile("the gradients", compiled=True, time=CallTime(2.0, 1.0))
    assert many.mode(1, set(range(9))) == "on"
    assert many.mode(1, {1}) == "graphs"


def test_the_choice_is_kept_for_a_model_and_its_function() -> None:
    first, second = Smooth(), Smooth()

    def found(model: torch.nn.Module, function: str) -> object:
        return auto_compile.auto_compile(model, function, f"the {function}", "auto", GPU)

    assert found(first, "scores") is found(first, "scores")
    assert found(first, "scores") is not found(first, "depths")
    assert found(first, "scores") is not found(second, "scores")
    assert isinstance(found(first, "scores"), AutoCompile)
    with pinned_chunks():
        assert found(first, "scores") == "on"
    for wanted in ("off", "on", "graphs"):
        assert auto_compile.auto_compile(first, "scores", "the scores", wanted, GPU) == wanted
    assert auto_compile.auto_compile(first, "scores", "the scores", "auto", torch.device("cpu")) == "off"


def test_decisions_are_logged_and_handed_to_who_collects(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, LOGGER.name), collected_decisions() as outer:
        with decided_at_once(), collected_decisions() as inner:
            AutoCompile("the gradients of Smooth").mode(1, ())
        assert inner == caplog.messages == ["compile: the gradients of Smooth are compiled from now on"]
        assert not outer


# On a GPU -------------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@needs_gpu
def test_what_the_host_asks_for_and_what_the_device_does_are_told_apart() -> None:
    small, large = torch.rand(8, 8, device="cuda"), torch.rand(8192, 8192, device="cuda")
    launches = time_call(lambda: [small.add(1) for _ in range(500)], GPU)
    work = time_call(lambda: [large @ large for _ in range(5)], GPU)
    assert launches.host > launches.device > 0
    assert work.device > work.host > 0


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_after_a_warm_up_auto_gives_the_maps_of_the_plain_loop(precision: str) -> None:
    model, images = Smooth().cuda(), some_images(3).cuda()
    options = {"steps": 2, "samples": 8, "views": 0, "precision": precision}
    method = FAMPE(model, **options)
    found = warmup(method, tuple(images.shape[-2:]), batch=3)
    assert found.graphs > 0
    assert any(decision.startswith("CUDA graphs: ") for decision in found.decisions)
    expected = FAMPE(model, compile="off", **options).attribute(images, target=1)
    pairs = zip(method.attribute(images, target=1), expected, strict=True)
    correlations = [float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) for a, b in pairs]
    assert min(correlations) > (0.98 if precision == "bf16" else 0.999)


@pytest.mark.gpu
@needs_gpu
def test_a_long_run_measures_its_chunk() -> None:
    model, images = Smooth().cuda(), some_images(1).cuda()
    info = probe(model, images)
    with decided_at_once(), collected_decisions() as decisions:
        size = ChunkSize.for_gradients((model,), images, None, "auto", [info], ENDLESS).size
    assert size in SIZES
    assert decisions[0].startswith(f"chunk: {size} images per pass of Smooth, by milliseconds per image of 32: ")
