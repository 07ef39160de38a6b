"""List a model's modules, parameters and buffers, by one walk per call: a walk takes as long as a small pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn

_walked: ContextVar[dict[int, tuple[nn.Module, Parts]] | None] = ContextVar("walked", default=None)


class Parts:
    """The parts of a model, each once, in the order of ``named_modules``.

    Attributes:
        modules: the modules with their names.
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Module]]) -> None:
        self.modules = tuple(modules)

    @cached_property
    def parameters(self) -> tuple[tuple[str, nn.Parameter], ...]:
        """The parameters with their names."""
        return tuple(_members(self.modules, "_parameters"))

    @cached_property
    def buffers(self) -> tuple[tuple[str, Tensor], ...]:
        """The buffers with their names."""
        return tuple(_members(self.modules, "_buffers"))

    @property
    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters, then the buffers, with their names."""
        return chain(self.parameters, self.buffers)

    @cached_property
    def shapes(self) -> tuple[torch.Size, ...]:
        """The parameters' shapes, which tell an exchanged head."""
        return tuple(parameter.shape for _, parameter in self.parameters)

    @cached_property
    def input_dtype(self) -> torch.dtype | None:
        """The dtype the model computes in, that of its first floating-point parameter; None if it has none."""
        return next((parameter.dtype for _, parameter in self.parameters if parameter.is_floating_point()), None)

    @cached_property
    def memory_format(self) -> torch.memory_format:
        """Channels-last for a model with such weights, as others may call ``view`` on their input."""
        for _, one in self.parameters:
            if not one.is_contiguous() and one.is_contiguous(memory_format=torch.channels_last):
                return torch.channels_last
        return torch.contiguous_format

    @cached_property
    def holds_compiled(self) -> bool:
        """Whether the model is or contains a module that its owner has compiled."""
        return any(type(module).__name__ == "OptimizedModule" for _, module in self.modules)


def parts_of(model: object) -> Parts:
    """List a model's parts, inside ``walked_once`` by its first walk; a callable that is no module has none."""
    if not isinstance(model, nn.Module):
        return Parts(())
    known = _walked.get()
    if known is None:
        return Parts(model.named_modules())
    if id(model) not in known:  # the model is held: no other one gets its identity
        known[id(model)] = (
            model,
            Parts(model.named_modules()),
        )
    return known[id(model)][1]


@contextmanager
def walked_once() -> Iterator[None]:
    """Walk every model at most once inside: what a call does not change there need not be looked for again."""
    before = _walked.set({})
    try:
        yield
    finally:
        _walked.reset(before)


def walk_again(model: object) -> None:
    """Forget a walk, after a pass that may have made a module or a parameter (a lazy layer's first one does)."""
    known = _walked.get()
    if known is not None:
        known.pop(id(model), None)


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a module has hooks that read or change its input or output."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def has_global_hooks() -> bool:
    """Tell whether there are hooks that torch calls for every module."""
    kinds = ("forward", "forward_pre", "backward", "backward_pre")
    return any(getattr(torch.nn.modules.module, f"_global_{kind}_hooks") for kind in kinds)


def _members(modules: tuple[tuple[str, nn.Module], ...], where: str) -> Iterator[tuple[str, nn.Parameter]]:
    seen: set[int] = set()
    for prefix, module in modules:
        for name, tensor in getattr(module, where).items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{prefix}.{name}" if prefix else name, tensor
