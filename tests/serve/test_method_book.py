"""Warming up: what is compiled before a service is ready is what requests need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fampe_fast.answers.explainer import Item
from fampe_fast.runtime import auto_compile
from fampe_fast.serve.asks import Ask
from fampe_fast.serve.method_book import MethodBook

from .running import SIZE, a_classifier


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is compiled, where ``auto`` decides as on a GPU; it runs plain."""
    found: list[str] = []

    def compile_nothing(function: Callable[..., Any], **options: Any) -> Any:
        found.append(function.__qualname__.partition(".")[0])
        return function

    for module in (auto_compile, __import__("fampe_fast.serve.method_book", fromlist=["x"])):
        monkeypatch.setattr(module, "resolve_compile", lambda wanted, device: wanted)
    monkeypatch.setattr(torch, "compile", compile_nothing)
    return found


def test_no_request_waits_for_the_compiler(compiled: list[str]) -> None:
    methods = {"fampe": {}, "attexplore": {"steps": 2, "samples": 2}, "fampe_published": {"steps": 2, "samples": 2}}
    book = MethodBook(a_classifier(), methods, max_passes=100, internal_batch_size=4)
    book.warm_up()
    assert len(compiled) >= 3  # depths, FAMPE's path, AttEXplore's path
    compiled.clear()
    image = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE), dtype=np.uint8)
    for ask in (
        Ask("explain", "fampe"),
        Ask("explain", "fampe", passes=10),
        Ask("explain", "fampe", passes=40),
        Ask("explain", "attexplore"),
        Ask("explain", "fampe_published"),
    ):
        recipe = book.recipe(ask)
        for count in (1, 3):
            answers = recipe.explainer([Item(image, None, k) for k in range(count)], 4)
            assert len(answers) == count
    assert compiled == []


def test_on_a_cpu_the_methods_own_passes_are_enough() -> None:
    seen: list[int] = []
    classifier = a_classifier()
    classifier.model.register_forward_hook(lambda module, given, output: seen.append(len(given[0])))
    MethodBook(classifier, {"fampe": {}}, max_passes=100, internal_batch_size=4).warm_up()
    assert sum(seen) < 10


def test_a_path_that_no_request_may_have_is_not_warmed_up(compiled: list[str]) -> None:
    MethodBook(a_classifier(), {"fampe": {}}, max_passes=5, internal_batch_size=4).warm_up()
    assert len(compiled) == 1
