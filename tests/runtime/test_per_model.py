"""What is cached for a model: shared while it lives, gone with it, and cleared when asked."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from fampe_fast import FAMPE, insertion_deletion
from fampe_fast.runtime import per_model
from fampe_fast.runtime.per_model import cache_of, clear

from ..models_for_tests import Smooth, some_images


@pytest.fixture(autouse=True)
def only_this_tests_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_model, "_CACHES", {})


class Equal:
    """A callable that equals every other of its kind, and has no hash."""

    def __init__(self) -> None:
        self.net = Smooth()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Equal)

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.net(pixels)


class Slotted:
    """A callable without weak references."""

    __slots__ = ("net",)

    def __init__(self) -> None:
        self.net = Smooth()

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.net(pixels)


def plain_function(pixels: Tensor) -> Tensor:
    return pixels.mean((2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("make", [Smooth, Equal, lambda: functools.partial(plain_function), lambda: Smooth().forward])
def test_a_cache_is_one_for_each_model_and_purpose_and_goes_with_the_model(make: Callable[[], Any]) -> None:
    model, other = make(), make()
    cache_of(model, "scores")["key"] = 1
    assert cache_of(model, "scores") is cache_of(model, "scores")
    assert cache_of(model, "scores") == {"key": 1}
    assert cache_of(model, "gradients") == cache_of(other, "scores") == {}
    seen = weakref.ref(model)
    del model
    gc.collect()
    assert seen() is None
    assert len(per_model._CACHES) == 1
    assert cache_of(other, "scores") == {}


def test_a_copy_has_a_cache_of_its_own() -> None:
    for model in (Smooth(), Equal()):
        cache_of(model, "scores")["key"] = 1
        assert cache_of(copy.deepcopy(model), "scores") == {}
        assert cache_of(copy.copy(model), "scores") == {}
        assert cache_of(model, "scores") == {"key": 1}


def test_of_models_without_weak_references_nothing_is_kept() -> None:
    model = Slotted()
    cache_of(model, "scores")["key"] = 1
    assert cache_of(model, "scores") == {}
    assert not per_model._CACHES
    images = some_images(2)
    maps = FAMPE(model, steps=1, samples=2).attribute(images, 1)
    assert torch.equal(maps, FAMPE(Smooth(), steps=1, samples=2).attribute(images, 1))
    assert insertion_deletion(model, images, maps, 1, mean=0.5, steps=4).insertion.isfinite().all()


@pytest.mark.slow
def test_it_is_cleared_for_one_model_or_for_all() -> None:
    first, second = Smooth(), Equal()
    held = cache_of(first, "scores")
    held["key"] = cache_of(second, "scores")["key"] = 1
    clear(first)
    assert cache_of(first, "scores") == {}
    assert held == {"key": 1}  # a call that is running keeps what it has
    assert cache_of(second, "scores") == {"key": 1}
    clear(object())
    clear()
    assert cache_of(second, "scores") == {}
    gc.collect()
    cache_of(second, "scores")["key"] = 2
    del first
    gc.collect()
    assert cache_of(second, "scores") == {"key": 2}


def test_threads_get_one_cache() -> None:
    for _ in range(20):
        model, found, start = Smooth(), [], threading.Barrier(8)

        def ask(model: Smooth = model, found: list[Any] = found, start: threading.Barrier = start) -> None:
            start.wait()
            found.append(cache_of(model, "scores"))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert all(cache is found[0] for cache in found)


class Counting(Smooth):
    def __init__(self) -> None:
        super().__init__()
        self.shown = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.shown += len(pixels)
        return super().forward(pixels)


@pytest.mark.parametrize("views", [0, 2])
def test_a_cleared_model_is_asked_again(views: int) -> None:
    model, images = Counting(), some_images(1)
    method = FAMPE(model, steps=1, samples=2, views=views)
    asked = 3 if views == 0 else 4  # alone, and beside another image; for its layers
    for cleared in (True, False, True):
        if cleared:
            clear(model)
        before = model.shown
        method.attribute(images, 1)
        assert model.shown - before == views + 2 + asked * cleared


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"steps": 1, "samples": 2, "views": 0}, {"passes": 2}])
def test_a_cleared_model_is_compiled_again(options: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    counters.clear()
    model, images = Smooth(), some_images(1)
    for made in (1, 1, 2):
        if made == 2:
            clear(model)
        FAMPE(model, compile="on", **options).attribute(images, 1)
        assert counters["stats"]["unique_graphs"] == made
    for made in (3, 3, 4):
        if made == 4:
            clear(model)
        insertion_deletion(model, images, images, 1, mean=0.5, steps=6, compile="on")
        assert counters["stats"]["unique_graphs"] == made
