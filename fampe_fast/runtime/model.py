"""Check models, find their dtype and memory format, and freeze their parameters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..checks import check_count
from .parts import parts_of

Model = nn.Module | Callable[[Tensor], Tensor]


def check_callable(model: object, role: str = "model") -> None:
    """Check that a model can be called.

    Args:
        model: the caller's argument.
        role: the argument's role, for the message.

    Raises:
        TypeError: it cannot be called.
    """
    if not callable(model):
        raise TypeError(f"the {role} must be an nn.Module or a callable, got {type(model).__name__}")


def check_model(model: Model, images: Tensor) -> None:
    """Check that the model is in evaluation mode, on the images' device.

    Raises:
        TypeError: the model cannot be called.
        ValueError: training mode, or parameters on another device.
    """
    check_callable(model)
    if not isinstance(model, nn.Module):
        return
    parts = parts_of(model)
    fixed = {part for _, module in parts.modules if _is_exported(module) for part in module.modules()}
    # A frozen TorchScript module has no such flag.
    training = [
        name or type(model).__name__ for name, module in parts.modules if _in_training(module) and module not in fixed
    ]
    if training:
        raise ValueError(
            f"the model is in training mode ({len(training)} modules, {training[0]!r} first), where dropout and batch "
            "statistics make results random: call model.eval()"
        )
    for name, tensor in parts.tensors:
        if tensor.device != images.device:
            raise ValueError(
                f"the model's {name!r} is on {tensor.device} and the images are on {images.device}; "
                "move one of them with .to(device)"
            )


def _is_exported(module: nn.Module) -> bool:
    """Tell whether a module is a program of ``torch.export``: its flag says nothing, and ``eval()`` raises."""
    return isinstance(module, torch.fx.GraphModule) and "train" in vars(module)


def _in_training(module: nn.Module) -> bool:
    return bool(getattr(module, "training", False))


def chunk_size(internal_batch_size: int | None, device: torch.device) -> int:
    """Check the images per model pass; None is 8 on a CPU and 64 elsewhere."""
    if internal_batch_size is None:
        return 8 if device.type == "cpu" else 64
    return check_count("internal_batch_size", internal_batch_size)


def input_dtype(model: Model) -> torch.dtype | None:
    """Find the dtype the model computes in, that of its first floating-point parameter; None if it has none."""
    return parts_of(model).input_dtype


def memory_format(model: Model) -> torch.memory_format:
    """Find the model's memory format: channels-last for such a model; others may call view() on their input."""
    return parts_of(model).memory_format


@contextmanager
def frozen_parameters(model: Model) -> Iterator[None]:
    """Freeze the parameters, so that no pass computes or stores anything for their gradients.

    Several threads may freeze one model's parameters: the last to leave restores ``requires_grad``.
    """
    mine = []
    with _FREEZING:
        for _, parameter in parts_of(model).parameters:
            if id(parameter) in _FROZEN or (parameter.requires_grad and not parameter.is_inference()):
                _FROZEN.setdefault(id(parameter), _Frozen(parameter)).holders += 1
                parameter.requires_grad_(False)
                mine.append(id(parameter))
    try:
        yield
    finally:
        with _FREEZING:
            for key in mine:
                frozen = _FROZEN[key]
                frozen.holders -= 1
                if not frozen.holders:
                    del _FROZEN[key]
                    frozen.parameter.requires_grad_(True)


class _Frozen:
    """A parameter that was trainable, and how many blocks hold it frozen."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter
        self.holders = 0


_FREEZING = threading.Lock()
_FROZEN: dict[int, _Frozen] = {}
