"""The state of a model: what changes it, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook

from fampe_fast.runtime.model_state import State, state_of
from fampe_fast.runtime.parts import parts_of

from ..models_for_tests import Smooth, exchange_module, exchange_weight, move_data


def state(model: object) -> State | None:
    return state_of(parts_of(model))


def set_attribute(model: Smooth) -> None:
    model.features[0].padding = (2, 2)


def set_number(model: Smooth) -> None:
    model.temperature = 2.5  # type: ignore[assignment]


def change_list(model: Any) -> None:
    model.sizes.append(3)


def exchange_object(model: Any) -> None:
    model.box = None  # the next one may get its identity
    model.box = Box(2)


class Box:
    """An object that says nothing of what it holds."""

    def __init__(self, content: int) -> None:
        self.content = content


@pytest.mark.parametrize(
    "change",
    [exchange_weight, exchange_module, move_data, set_attribute, set_number, change_list, exchange_object],
)
def test_each_change_shows(change: Callable[[Any], None]) -> None:
    model: Any = Smooth()
    model.sizes, model.box = [1, 2], Box(1)
    first = state(model)
    assert first is not None
    before = first.kept()
    del first
    for _ in range(2):
        now = state(model)
        assert now is not None
        assert before.holds(now)
        with torch.no_grad():
            model.head.weight.mul_(2)  # which a pass reads
    del now
    change(model)
    now = state(model)
    assert now is not None
    assert not before.holds(now)


def test_a_kept_state_keeps_no_model() -> None:
    import weakref

    model: Any = Smooth()
    model.itself = [model]
    gone = weakref.ref(model)
    now = state(model)
    assert now is not None
    kept = now.kept()
    del model, now
    import gc

    gc.collect()
    assert gone() is None
    assert kept.holds(kept) is False


def test_hooks_and_programs_have_none() -> None:
    model = Smooth()
    for register in (
        lambda: model.head.register_forward_hook(lambda *seen: None),
        lambda: model.features[0].register_forward_pre_hook(lambda *seen: None),
        lambda: model.register_full_backward_hook(lambda *seen: None),
        lambda: model.register_full_backward_pre_hook(lambda *seen: None),
        lambda: register_module_forward_hook(lambda *seen: None),
        lambda: register_module_full_backward_hook(lambda *seen: None),
    ):
        handle = register()
        assert state(model) is None
        handle.remove()
        assert state(model) is not None
    assert state(torch.relu) is None
    assert state(torch.jit.trace(model, torch.rand(1, 3, 16, 16))) is None
