"""When ``compile="auto"`` compiles on a GPU, and when it takes CUDA graphs: rules that need no GPU."""

from __future__ import annotations

import logging

import pytest
import torch

from fampe_fast.runtime import auto_compile
from fampe_fast.runtime.auto_compile import AutoCompile, graphs_pay, work_of
from fampe_fast.runtime.chunking import pinned_chunks
from fampe_fast.runtime.decisions import LOGGER, collected_decisions, decided_at_once
from fampe_fast.runtime.device_time import CallTime

from ..models_for_tests import Smooth

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
