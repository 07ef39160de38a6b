"""Explain images for a metric with any object that has ``attribute``, of this package or another."""

from __future__ import annotations

import copy
import inspect
import sys
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_count, check_finite
from ..errors import first_line
from ..runtime.isolation import isolated

__all__ = ["attribute_options", "check_method", "explain", "name_of", "with_copied_model"]


def check_method(method: object) -> None:
    """Check that a method can explain.

    Raises:
        TypeError: it has no ``attribute`` method.
    """
    if not callable(getattr(method, "attribute", None)):
        raise TypeError(f"method must have a method 'attribute', got {type(method).__name__}")


def name_of(thing: object) -> str:
    """Name a method or a model for a message: its ``name``, or its class."""
    return str(getattr(thing, "name", type(thing).__name__))


def attribute_options(method: Any, ids: Tensor, ids_given: bool, internal_batch_size: int | None) -> dict[str, Any]:
    """Choose the keyword arguments of ``attribute``: the ids, if it accepts them and they are not its defaults.

    Args:
        method: the method that has ``attribute``.
        ids: (B,) int64, the images' names in the random streams.
        ids_given: whether the ids were given, or are the images' positions.
        internal_batch_size: passed on if given.

    Raises:
        TypeError, ValueError: an ``internal_batch_size`` that is not a count.
    """
    options: dict[str, Any] = {}
    if ids_given and "image_ids" in inspect.signature(method.attribute).parameters:
        options["image_ids"] = ids
    if internal_batch_size is not None:
        options["internal_batch_size"] = check_count("internal_batch_size", internal_batch_size)
    return options


def explain(method: Any, images: Tensor, targets: Tensor, options: dict[str, Any]) -> Tensor:
    """Explain a batch, (B, ...) float64 on the CPU, in which squares of small maps do not underflow.

    Raises:
        TypeError: the method does not return a floating-point tensor.
        ValueError: not one map per image, or a map with NaN or infinity.
        Whatever the method raises.
    """
    found: object = method.attribute(images, target=targets, **options)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        what = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(f"the method must return maps as a floating-point tensor, got {what}")
    if found.ndim < 2 or len(found) != len(images):
        raise ValueError(f"the method must return one map per image, {len(images)}, got shape {tuple(found.shape)}")
    check_finite(found.detach(), "the method's maps")
    return found.detach().to("cpu", torch.float64)


def with_copied_model(method: Any) -> Any:
    """Copy a method together with its model, so that the copy's model can be changed but not the user's.

    All references of the copy to the model are to the copied model: a layer, or the model of an inner method, as in
    ``FORGrad`` and Captum's ``NoiseTunnel``. An explorer is copied as well.

    Args:
        method: a method of this package, or another with its model in ``forward_func``, as Captum's have.

    Returns:
        The copy, whose ``forward_func`` is the copied model.

    Raises:
        ValueError: ``forward_func`` is not an ``nn.Module``, or shares parameters with its copy.
        TypeError: it cannot be copied.
    """
    name, model = name_of(method), getattr(method, "forward_func", None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model of {name}, its forward_func, must be an nn.Module, got {type(model).__name__}")
    modules: dict[int, Any] = {id(module): module for module in sys.modules.values()}  # those of Python stay
    try:
        with isolated():
            twin = copy.deepcopy(method, modules)
    except Exception as error:  # foreign code may raise anything
        raise TypeError(f"{name} cannot be copied with its model: {first_line(error)}") from error
    own = {parameter.data_ptr() for parameter in model.parameters()} - {0}
    if twin.forward_func is model or not own.isdisjoint(part.data_ptr() for part in twin.forward_func.parameters()):
        raise ValueError(f"the copy of {name} shares its model's parameters: {name_of(model)} copies itself that way")
    return twin
