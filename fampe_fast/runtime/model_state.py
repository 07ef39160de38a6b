"""Describe the state of a model, so that a change of it is noticed."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from .parts import Parts, has_global_hooks, has_hooks

_PLAIN = frozenset((bool, int, float, str, bytes, type(None), torch.dtype, torch.device, torch.Size))

# Dictionaries of parameters, modules and hooks, whose content is looked at.
_OF_EVERY_MODULE = frozenset(vars(torch.nn.Module()))


class State:
    """The addresses of a model's tensors, its modules and their attributes, at some time."""

    def __init__(self, values: Hashable, objects: Sequence[object]) -> None:
        """Store the state.

        Args:
            values: which are the same in an unchanged model.
            objects: those that ``values`` contains by their identities.
        """
        self._values = values
        self._objects = objects
        self._kept: list[weakref.ref[object]] = []

    def kept(self) -> State:
        """Make a state to be kept: it notices when one of its objects is gone, whose identity another may have then."""
        kept = State(self._values, ())
        for one in self._objects:
            try:
                kept._kept.append(weakref.ref(one))
            except TypeError:  # a dictionary, for example
                continue
        return kept

    def holds(self, now: State) -> bool:
        """Tell whether the model's state is still this one."""
        return self._values == now._values and all(one() is not None for one in self._kept)


def state_of(parts: Parts) -> State | None:
    """Describe what a pass of a model depends on besides its arguments and the values in its tensors.

    A change shows where a tensor has another address, where a module or an attribute of one was set anew, and in a list
    or tuple of plain values; not where another object was changed in place.

    Returns:
        None for a model whose pass does more than its operators: it has no modules, or some have hooks, are programs
        of TorchScript or were compiled by their owner.
    """
    if not parts.modules or parts.holds_compiled or has_global_hooks():
        return None
    values: list[Hashable] = [tensor.data_ptr() for _, tensor in parts.tensors]
    objects: list[object] = []
    for _, module in parts.modules:
        if isinstance(module, torch.jit.ScriptModule) or has_hooks(module):
            return None
        objects.append(module)
        values.append(id(module))
        for name, attribute in vars(module).items():
            if type(attribute) in _PLAIN:
                values.append(attribute)
            elif name not in _OF_EVERY_MODULE:
                values.append(_value(attribute, objects))
    return State(tuple(values), objects)


def _value(attribute: Any, objects: list[object]) -> Hashable:
    if type(attribute) in (list, tuple) and all(type(one) in _PLAIN for one in attribute):
        return type(attribute).__name__, *attribute
    objects.append(attribute)
    return id(attribute)
