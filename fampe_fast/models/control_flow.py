"""Prove that a module takes the same path through its layers for every input, so that one pass shows all of it."""

from __future__ import annotations

import copy
import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..runtime.parts import has_hooks

# The control flow of their layers depends on settings and shapes, never on values.
_LIBRARIES = ("torch.nn", "torchvision", "timm")
_TRACING = threading.Lock()  # torch.fx patches nn.Module for the time of a trace


def comes_from(owner: object, *libraries: str) -> bool:
    """Tell whether a class or function was defined in one of these packages."""
    where = getattr(owner, "__module__", None) or ""
    return any(where == library or where.startswith(f"{library}.") for library in libraries)


def all_from_libraries(model: nn.Module) -> bool:
    """Tell whether all of a model's modules are unmodified ones of torch, torchvision or timm."""
    return all(_as_made(module) and not has_hooks(module) for module in model.modules())


def _as_made(module: nn.Module) -> bool:
    """Tell whether a module's class and methods are a library's, without foreign functions."""
    kind = type(module)
    if not comes_from(kind, *_LIBRARIES) or not comes_from(kind.forward, *_LIBRARIES):
        return False
    return all(_is_theirs(module, name, value) for name, value in vars(module).items())


def _is_theirs(module: nn.Module, name: str, value: object) -> bool:
    while isinstance(value, partial):
        value = value.func
    if isinstance(value, MethodType):
        return value.__self__ is module and comes_from(value.__func__, *_LIBRARIES)
    if isinstance(value, FunctionType):
        return comes_from(value, "torch", *_LIBRARIES) and not hasattr(type(module), name)
    return True


@dataclass(frozen=True)
class Flow:
    """Facts about a model's path from module to module that hold for every input.

    Attributes:
        edges: pairs of names of modules, as in ``named_modules``, where the first one's output goes only into the
            second. A module whose output is still referenced after the pass (by a module, a list, a closure) is in no
            pair.
        closed: modules of a known library that are called as a whole.
    """

    edges: frozenset[tuple[str, str]]
    closed: frozenset[str]

    def proves(self, producer: str, consumer: str) -> bool:
        """Tell whether one module feeds only the other for every input, as it did in one pass."""
        inside = (name for name in self.closed if producer.startswith(f"{name}.") and consumer.startswith(f"{name}."))
        return (producer, consumer) in self.edges or any(True for _ in inside)


def fixed_flow(model: nn.Module) -> Flow | None:
    """Trace a model that takes the same path for every input; None if that is not proven.

    The forward pass runs with symbols in place of tensors (torch.fx), so that code that branches on a value or a shape
    fails. A pass also fails if it draws random numbers or changes state on which a later pass could branch. Unmodified
    modules of torch, torchvision and timm are not entered.

    Args:
        model: the model, which is copied first.
    """
    found: Flow | None = None
    for gradients in (False, True):  # code may test whether gradients are enabled
        with _TRACING, torch.set_grad_enabled(gradients):
            flow = _traced(model)
        if flow is None:
            return None
        found = flow if found is None else Flow(found.edges & flow.edges, found.closed & flow.closed)
    return found


def _traced(model: nn.Module) -> Flow | None:
    tracer = _Tracer()
    try:
        root = _Root(copy.deepcopy(model))
        before, random_before = _settings(root.model), _generators()
        graph = tracer.trace(root)
        unchanged = _settings(root.model) == before and _generators() == random_before
    except Exception:  # fx's errors, and whatever foreign code raises for a symbol
        return None
    if tracer.asked or not unchanged:
        return None
    gc.collect()  # frees symbols in reference cycles
    kept = {name for name, symbol in tracer.symbols if symbol() is not None}
    edges, closed = set(), set()
    for node in graph.nodes:
        if node.op == "call_module":
            name = _outside(node.target)
            if len(node.users) == 1 and name not in kept:
                (consumer,) = node.users
                if consumer.op == "call_module" and consumer.args == (node,) and not consumer.kwargs:
                    edges.add((name, _outside(consumer.target)))
            if any(True for _ in root.get_submodule(node.target).children()):
                closed.add(name)
    return Flow(frozenset(edges), frozenset(closed))


def _outside(target: Any) -> str:
    """Remove the root's prefix "model" from a name."""
    return str(target).removeprefix("model").removeprefix(".")


class _Root(nn.Module):
    """Calls the model with one argument, so that others keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        return self.model(images)


class _Noted(fx.Proxy):
    """Records every access to a value, as foreign code may catch the error it raises and continue."""

    def _refuse(self, *_: object) -> Any:
        self.tracer.asked = True  # type: ignore[attr-defined]
        raise TypeError("a symbol has no value")

    __float__ = __int__ = __index__ = __len__ = __complex__ = __contains__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name in ("numpy", "tolist") or name.startswith(("__array", "__cuda_array", "__dlpack")):
            self._refuse()
        return _Attribute(self, name)


class _Attribute(_Noted, fx.proxy.Attribute):
    """An attribute of a tensor's symbol, such as its shape."""


class _Symbol(_Noted):
    """A symbol that claims to be a tensor."""

    _is_param = False
    __class__ = property(lambda self: Tensor)  # type: ignore[assignment]


class _Tracer(fx.Tracer):
    """Enters all modules except those of known libraries, and records every attempt to branch on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = False
        self.owner = threading.get_ident()
        self.symbols: list[tuple[str, weakref.ref[fx.Proxy]]] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return all(_as_made(module) for module in m.modules()) and not _holds_hooks(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.owner:  # a model that another thread runs during this trace
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            return forward(*args, **kwargs)

        def symbolic(*inputs: Any, **named: Any) -> fx.Proxy:
            symbol = self.create_proxy("call_module", path, inputs, named)
            self.symbols.append((_outside(path), weakref.ref(symbol)))
            return symbol

        if not has_hooks(m):
            return symbolic(*args, **kwargs)
        vars(m)["forward"] = symbolic  # its hooks run, on symbols, as they would on tensors
        try:
            return forward(*args, **kwargs)
        finally:
            del vars(m)["forward"]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.owner:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Symbol(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if isinstance(a, fx.Proxy) else super().create_arg(a)  # before it is treated as a tensor

    # An answer to any of these would hold for only some inputs.
    def to_bool(self, obj: fx.Proxy) -> bool:
        self.asked = True
        return super().to_bool(obj)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        try:
            return super().iter(obj)  # unpacking into a known number of names is allowed
        except Exception:
            self.asked = True
            raise

    def keys(self, obj: fx.Proxy) -> Any:
        self.asked = True
        return super().keys(obj)


def _holds_hooks(module: nn.Module) -> bool:
    """Tell whether an inner module has hooks, which would not run if this module were not entered."""
    return any(has_hooks(inner) for inner in module.modules() if inner is not module)


def _generators() -> list[Any]:
    """Read the states of the global random number generators."""
    numpys: Any = np.random.get_state()  # noqa: NPY002 (foreign code may draw from it)
    return [random.getstate(), numpys[1].tolist(), numpys[2:], torch.get_rng_state().tolist()]


def _settings(model: nn.Module) -> list[Any]:
    """List the modules' non-tensor state, two levels deep, and the version counters of their tensors."""
    found: list[Any] = []
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key not in ("_modules", "_parameters", "_buffers"):
                found.append((name, key, _shallow(value)))
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            found.append((name, key, _shallow(tensor)))
        found.append((name, [(key, id(child)) for key, child in module._modules.items()]))
    return found


def _shallow(value: object) -> Any:
    if isinstance(value, Tensor):
        return id(value), None if value.is_inference() else value._version
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return value
    if isinstance(value, dict):
        return [(key if isinstance(key, str) else id(key), id(part)) for key, part in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [part if isinstance(part, int | float | str) else id(part) for part in value]
    return id(value)
