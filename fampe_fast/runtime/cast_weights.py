"""Cast a model's weights to a smaller type once per call, where autocast would cast them in every pass.

Autocast casts the float32 weights of convolutions and linear layers whenever they are used. It keeps the casts of
weights that need gradients, which those of a call do not, and its store belongs to the whole process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from .model import Model
from .model_probe import holds_compiled

# Their forward methods use the weights only in an operator that autocast runs in the smaller type. A subclass may
# use them in other ways: it must be listed here.
_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_OTHER_LAYERS = ("timm.layers.conv2d_same.Conv2dSame", "timm.layers.linear.Linear")


@contextmanager
def cast_weights(model: Model, dtype: torch.dtype | None) -> Iterator[Model]:
    """Give a twin of a model whose layers compute with weights that are already cast, for use under autocast.

    Its output and its gradients are bitwise those of the model. The model itself is not changed, for other
    threads that use it: a twin consists of copies of the modules that hold such layers, and shares everything else,
    parameters, buffers and hooks among it. What a pass assigns to a module's attributes is handed to the model's own
    module when the context ends.

    Args:
        model: its parameters must be frozen inside.
        dtype: autocast's; None for none.

    Yields:
        The twin; the model itself if there is nothing to cast, or if it contains modules that its owner has compiled.
    """
    if dtype is None or not isinstance(model, nn.Module) or holds_compiled(model):
        yield model
        return
    twins = _Twins(dtype)
    try:
        yield twins.of(model)
    finally:
        twins.hand_back()


class _Twins:
    """The twins of modules, and the casts of their parameters, each made once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._known: dict[int, nn.Module] = {}
        self._casts: dict[int, nn.Parameter] = {}
        self._copies: list[tuple[nn.Module, dict[str, Any], nn.Module]] = []

    def of(self, module: nn.Module) -> nn.Module:
        """Make a module's twin; a module without weights to cast is its own twin."""
        if id(module) not in self._known:
            self._known[id(module)] = module  # for one that holds itself
            self._known[id(module)] = self._layer(module) if _is_layer(module) else self._holder(module)
        return self._known[id(module)]

    def hand_back(self) -> None:
        """Copy the attributes that passes have set in twins to the original modules."""
        for module, before, twin in self._copies:
            for name, value in vars(twin).items():
                if name != "_modules" and (name not in before or before[name] is not value):
                    vars(module)[name] = value

    def _layer(self, layer: nn.Module) -> nn.Module:
        cast = {name: self._cast(parameter) for name, parameter in layer._parameters.items()}
        if all(cast[name] is parameter for name, parameter in layer._parameters.items()):
            return layer
        kind: Any = type(layer)  # mypy takes classes of modules for unhashable
        twin, within = _copy_of(layer, _twin_class(kind)), _copy_of(layer)
        vars(within)["_parameters"] = cast
        vars(twin)["_within"] = within
        return twin

    def _holder(self, module: nn.Module) -> nn.Module:
        if isinstance(module, torch.jit.ScriptModule):  # an exported program, whose parts are not Python modules
            return module
        parts = {name: None if part is None else self.of(part) for name, part in module._modules.items()}
        if all(parts[name] is part for name, part in module._modules.items()):
            return module
        twin = _copy_of(module)
        self._copies.append((module, dict(vars(module)), twin))
        vars(twin)["_modules"] = parts
        return twin

    def _cast(self, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or not parameter.is_floating_point() or parameter.dtype in (torch.float64, self._dtype):
            return parameter
        if id(parameter) not in self._casts:
            self._casts[id(parameter)] = nn.Parameter(parameter.detach().to(self._dtype), requires_grad=False)
        return self._casts[id(parameter)]


def _is_layer(module: nn.Module) -> bool:
    kind = type(module)
    if kind not in _LAYERS and f"{kind.__module__}.{kind.__qualname__}" not in _OTHER_LAYERS:
        return False
    # Weight normalisation and pruning compute the weight from other parameters, a hook before the pass may change it,
    # and some put another forward in.
    plain = set(module._parameters) == {"weight", "bias"} and not module._forward_pre_hooks
    return plain and "forward" not in vars(module)


class _TwinLayer:
    """Precedes a layer's class among the base classes of its twin.

    The twin's weights are the layer's own, uncast: a parent module may use them in ways that autocast does not cast.
    """

    _within: nn.Module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute with the cast weights."""
        return self._within.forward(*args, **kwargs)


@cache
def _twin_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (_TwinLayer, kind), {})


def _copy_of(module: nn.Module, kind: type[nn.Module] | None = None) -> nn.Module:
    """Copy a module without copying its contents; its class may define its own way of copying."""
    twin: nn.Module = object.__new__(kind or type(module))
    vars(twin).update(vars(module))
    return twin
