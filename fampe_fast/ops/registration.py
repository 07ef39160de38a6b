"""Turn functions into torch operators ``fampe_fast::...``, with schema, fake shapes and gradients.

``torch.compile`` traces only the shapes: the operator is opaque to it, and chooses a backend when it runs.
``torch.library.custom_op`` is not used: its operators import the compiler at their first call, which takes a second.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd.graph import increment_version
from torch.library import Library, infer_schema, register_autograd, register_fake

from .backends import FLOAT64, OPS, implementation

NAMESPACE = "fampe_fast"
P = ParamSpec("P")
R = TypeVar("R")
Fake = Callable[..., Any]
Gradients = Mapping[str, Callable[..., Tensor]]

DIFFERENTIABLE: dict[str, tuple[str, ...]] = {}
"""By operator, the arguments that have gradients."""
MUTATED: dict[str, tuple[str, ...]] = {}
"""By operator, the arguments that a call changes; such an operator returns nothing."""
_LIBRARIES: dict[str, Library] = {}
"""By operator, the library that keeps it registered; a reloaded module registers again."""


def primitive(
    reference: Callable[P, R],
    fake: Fake,
    *,
    mutates: Sequence[str] = (),
    gradients: Gradients | None = None,
    saves: Sequence[str] = (),
    float64: bool = False,
) -> Callable[P, R]:
    """Register a primitive, computed by the backend of its first argument's device.

    Args:
        reference: the primitive in ``fampe_fast.reference``: name, file, signature, defaults and result are its own.
        fake: function of the arguments, by name, that returns empty tensors with the result's shapes, dtypes, strides.
        mutates: names of the arguments that a call changes.
        gradients: by name of a differentiable argument, a function ``(saved, shape, *results)`` of the arguments by
            name, the argument's shape and the gradients of the results. Other arguments' gradients raise.
        saves: differentiable arguments that ``saved`` must hold; it holds all others.
        float64: whether it computes in float64, so that a device without it leaves it to the CPU.

    Returns:
        A function with the reference's signature.
    """
    name = reference.__name__
    OPS[name] = reference.__module__.rpartition(".")[2]
    if float64:
        FLOAT64.add(name)

    def dispatch(first: Tensor, *rest: Any) -> Any:
        return implementation(name, first.device)(first, *rest)

    return operator(fake, dispatch, mutates=mutates, gradients=gradients, saves=saves)(reference)


def operator(
    fake: Fake,
    compute: Callable[..., Any] | None = None,
    *,
    mutates: Sequence[str] = (),
    gradients: Gradients | None = None,
    saves: Sequence[str] = (),
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated function as an operator, computed by itself or by ``compute``; see ``primitive``."""

    def register(function: Callable[P, R]) -> Callable[P, R]:
        name, signature = function.__name__, inspect.signature(function, eval_str=True)
        names = tuple(signature.parameters)
        body: Callable[..., Any] = compute or function
        kind: Any = signature.return_annotation
        defaults = [parameter.default for parameter in signature.parameters.values()]
        several = hasattr(kind, "_fields")  # a named tuple, which torch knows as a plain one

        def whole(args: tuple[Any, ...]) -> tuple[Any, ...]:
            """Add the last arguments, which torch leaves out if they equal their defaults."""
            return (*args, *defaults[len(args) :])

        def run(*args: Any) -> Any:
            if mutates:
                return _change(body, whole(args), [names.index(argument) for argument in mutates])
            result = body(*whole(args))
            _check_fresh(name, args, result)
            return tuple(result) if several else result

        if several:
            signature = signature.replace(return_annotation=tuple[(Tensor,) * len(kind._fields)])  # type: ignore[misc]
        run.__signature__ = signature  # type: ignore[attr-defined]
        _LIBRARIES.pop(name, None)
        library: Any = Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
        _LIBRARIES[name] = library
        library.define(name + infer_schema(run, mutates_args=tuple(mutates)), tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, _untraced(run), "CompositeExplicitAutograd")
        definition = getattr(getattr(torch.ops, NAMESPACE), name).default
        register_fake(definition, lambda *args: fake(**dict(zip(names, whole(args), strict=True))), lib=library)
        if mutates:
            MUTATED[name] = tuple(mutates)
        elif gradients is None:
            register_autograd(definition, partial(_refuse, name), lib=library)
        else:
            DIFFERENTIABLE[name] = tuple(gradients)
            backward, remember = _gradient_functions(name, names, gradients, saves)
            register_autograd(definition, backward, setup_context=remember, lib=library)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result = definition(*args, **kwargs)
            typed: R = kind(*result) if several else result
            return typed

        return call

    return register


def _untraced(run: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the compiler out of a function, without importing it."""
    hidden = _disable_dynamo(run)
    return lambda *args: (hidden if "torch._dynamo" in sys.modules else run)(*args)


def _change(body: Callable[..., Any], args: tuple[Any, ...], places: Sequence[int]) -> None:
    """Call a function that changes some of its arguments, and let autograd know that they are no longer the same."""
    with torch.no_grad():
        body(*args)
    for place in places:
        if not args[place].is_inference():
            increment_version(args[place])


def _check_fresh(name: str, args: tuple[Any, ...], result: Any) -> None:
    """Raise if a result shares memory with an argument or another result, which a faulty backend may return."""
    taken = {id(tensor.untyped_storage()) for tensor in args if isinstance(tensor, Tensor)}
    for tensor in result if isinstance(result, tuple) else (result,):
        if id(tensor.untyped_storage()) in taken:
            raise RuntimeError(f"{name} returned a tensor that shares memory with an argument or another result")
        taken.add(id(tensor.untyped_storage()))


def _refuse(name: str, ctx: Any, *results: Any) -> Any:
    raise RuntimeError(f"{name} has no gradient, but autograd needs one: detach its result")


def _gradient_functions(
    name: str, names: Sequence[str], gradients: Gradients, saves: Sequence[str]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Make autograd's functions that compute the gradients and save the arguments for them."""

    def remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        wanted = [argument for argument, needed in zip(names, ctx.needs_input_grad, strict=False) if needed]
        refused = [argument for argument in wanted if argument not in gradients]
        if refused:
            raise NotImplementedError(
                f"{name} is differentiable in {' and '.join(gradients)}, not in {' and '.join(refused)}: detach it"
            )
        given = dict(zip(names, inputs, strict=True))
        ctx.shapes = {argument: given[argument].shape for argument in gradients}
        kept = {argument: value for argument, value in given.items() if argument not in gradients or argument in saves}
        ctx.plain = {argument: value for argument, value in kept.items() if not isinstance(value, Tensor)}
        ctx.tensors = [argument for argument in kept if argument not in ctx.plain]
        ctx.save_for_backward(*(kept[argument] for argument in ctx.tensors))

    def backward(ctx: Any, *results: Tensor) -> tuple[Tensor | None, ...]:
        saved = {**ctx.plain, **dict(zip(ctx.tensors, ctx.saved_tensors, strict=True))}
        return tuple(
            gradients[argument](saved, ctx.shapes[argument], *results) if argument in gradients and needed else None
            for argument, needed in zip(names, ctx.needs_input_grad, strict=False)
        )

    return backward, remember
