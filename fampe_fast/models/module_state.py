"""Change a user's module safely: check it, undo changes on failure, and decide when to use a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def check_values(module: nn.Module, what: str, *, writable: bool) -> None:
    """Refuse a module whose weights have no values yet or, if needed, cannot be overwritten.

    Raises:
        ValueError: parameters or buffers are on the meta device or not initialised; or, if they must be ``writable``,
            were made under ``inference_mode``.
    """
    tensors = [*module.named_parameters(), *module.named_buffers()]
    lazy = [name for name, value in tensors if is_lazy(value)]
    if lazy:
        raise ValueError(
            f"{what} has {len(lazy)} weights without a shape yet ({lazy[0]!r} first): run it once on an image, or load "
            "its weights, before passing it"
        )
    empty = [name for name, value in tensors if value.is_meta]
    if empty:
        raise ValueError(
            f"{what} has {len(empty)} weights on the meta device, without values ({empty[0]!r} first): load its "
            "weights before passing it"
        )
    if writable and any(value.is_inference() for _, value in tensors):
        raise ValueError(f"{what} was built under inference_mode, so weights cannot be read into it: build it outside")


@contextmanager
def restored_on_failure(module: nn.Module, *, values: bool) -> Iterator[None]:
    """Restore a module if the block raises.

    This restores every submodule's training flag, its parameters and buffers with device, dtype and strides, and, with
    ``values``, their values (which copies them all).
    """
    parts = list(module.modules())
    modes = [(part, getattr(part, "training", None)) for part in parts]
    plain = [part for part in parts if not isinstance(part, torch.jit.ScriptModule)]
    slots = [(part, dict(part._parameters), dict(part._buffers)) for part in plain]
    data = [(parameter, parameter.data) for parameter in module.parameters()]
    held = [(tensor, tensor.detach().clone()) for tensor in _tensors(module)] if values else []
    try:
        yield
    except BaseException:
        for part, parameters, buffers in slots:
            part._parameters.update(parameters)
            part._buffers.update(buffers)
        for parameter, earlier in data:
            parameter.data = earlier
        for tensor, before in held:
            _write(tensor, before)
        for part, mode in modes:
            if mode is not None and getattr(part, "training", None) is not mode:
                part.training = mode
        raise


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Restore a module's buffers and torch's random state after the block."""
    slots = [(part, dict(part._buffers)) for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    held = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    devices = {tensor.device for tensor in _tensors(module) if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=[device.index for device in devices]):
            yield
    finally:
        for part, buffers in slots:
            part._buffers.update(buffers)
        for buffer, before in held:
            if not torch.equal(buffer, before):
                _write(buffer, before)


def _write(tensor: Tensor, values: Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        tensor.copy_(values)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def needs_a_copy(module: nn.Module) -> bool:
    """Tell whether a module has another precision than fp32 or was built under ``inference_mode``."""
    other = (p.is_floating_point() and p.dtype != torch.float32 for p in module.parameters())
    return any(other) or any(tensor.is_inference() for tensor in _held(module))


def in_single_precision(module: nn.Module, *, convert: bool = True) -> nn.Module:
    """Copy a module with fp32 parameters and buffers (``convert``), none of them made under ``inference_mode``.

    Raises:
        RuntimeError: torch cannot copy the module.
    """
    if isinstance(module, torch.jit.ScriptModule):
        script: nn.Module = copy.deepcopy(module)
        return script.float() if convert else script
    memo: dict[int, object] = {}
    for tensor in _held(module):
        plain = type(tensor) in (Tensor, nn.Parameter)
        to_single = convert and tensor.is_floating_point() and tensor.dtype != torch.float32
        if plain and id(tensor) not in memo and (to_single or tensor.is_inference()):
            values = tensor.detach().clone().to(torch.float32 if to_single else tensor.dtype)
            memo[id(tensor)] = (
                nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
            )
    return copy.deepcopy(module, memo)


def _held(module: nn.Module) -> Iterator[Tensor]:
    """Iterate over parameters, buffers and tensors that are plain attributes."""
    yield from _tensors(module)
    for part in module.modules():
        if not isinstance(part, torch.jit.ScriptModule):
            yield from (value for value in vars(part).values() if isinstance(value, Tensor))
