"""Turn functions into torch custom operators ``fampe_fast::...``, with schema, shapes without data and gradients.

``torch.compile`` traces the shapes alone: the operator is opaque to it, and chooses a backend when it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch import Tensor
from torch.library import custom_op, infer_schema

from .backends import OPS, implementation

NAMESPACE = "fampe_fast"
P = ParamSpec("P")
R = TypeVar("R")
Fake = Callable[..., Any]
Gradients = Mapping[str, Callable[..., Tensor]]

DIFFERENTIABLE: dict[str, tuple[str, ...]] = {}
"""By operator, the arguments that have gradients."""
MUTATED: dict[str, tuple[str, ...]] = {}
"""By operator, the arguments that a call changes; such an operator returns nothing."""


def primitive(
    reference: Callable[P, R],
    fake: Fake,
    *,
    mutates: Sequence[str] = (),
    gradients: Gradients | None = None,
    saves: Sequence[str] = (),
) -> Callable[P, R]:
    """Register a primitive, computed by the backend of its first argument's device.

    Args:
        reference: the primitive in ``fampe_fast.reference``: name, file, signature, defaults and result are its own.
        fake: from the arguments, by name, to empty tensors with the result's shapes, dtypes and strides.
        mutates: names of the arguments that a call changes.
        gradients: by name of a differentiable argument, a function ``(saved, shape, *results)`` of the arguments by
            name, the argument's shape and the gradients of the results. To ask for another argument's gradient raises.
        saves: differentiable arguments that ``saved`` must hold; it holds all others.

    Returns:
        A function with the reference's signature.
    """
    name = reference.__name__
    OPS[name] = reference.__module__.rpartition(".")[2]

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
    """Decorator: register a function as an operator, computed by itself or by ``compute``; see ``primitive``."""

    def register(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function, eval_str=True)
        names = tuple(signature.parameters)
        body: Callable[..., Any] = compute or function
        kind: Any = signature.return_annotation
        defaults = [parameter.default for parameter in signature.parameters.values()]
        several = hasattr(kind, "_fields")  # a named tuple, which torch knows as a plain one

        def whole(args: tuple[Any, ...]) -> tuple[Any, ...]:
            """Add the last arguments, which torch leaves out where they equal their defaults."""
            return (*args, *defaults[len(args) :])

        def run(*args: Any) -> Any:
            result = body(*whole(args))
            return tuple(result) if several else result

        if several:
            signature = signature.replace(return_annotation=tuple[(Tensor,) * len(kind._fields)])  # type: ignore[misc]
        run.__signature__ = signature  # type: ignore[attr-defined]
        schema = infer_schema(run, mutates_args=tuple(mutates))
        definition = custom_op(f"{NAMESPACE}::{function.__name__}", run, mutates_args=tuple(mutates), schema=schema)
        definition.register_fake(lambda *args: fake(**dict(zip(names, whole(args), strict=True))))
        if mutates:
            MUTATED[function.__name__] = tuple(mutates)
        if gradients is not None:
            DIFFERENTIABLE[function.__name__] = tuple(gradients)
            _register_gradients(definition, function.__name__, names, gradients, saves)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            result = definition(*args, **kwargs)
            typed: R = kind(*result) if several else result
            return typed

        return call

    return register


def _register_gradients(
    definition: Any, name: str, names: Sequence[str], gradients: Gradients, saves: Sequence[str]
) -> None:
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

    definition.register_autograd(backward, setup_context=remember)
