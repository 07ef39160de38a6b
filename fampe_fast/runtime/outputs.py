"""Interpret a model's output: find whether it holds logits or probabilities, and compute losses from it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Output = Literal["logits", "probabilities", "sigmoid"]
"""What a user says of a model: ``logits`` of classes that exclude each other (a softmax is still to come),
``probabilities`` (the model ends in a softmax or in sigmoids), or ``sigmoid`` (independent logits, or a single one: a
sigmoid each is still to come)."""

OUTPUTS: tuple[Output, ...] = get_args(Output)

Reading = Literal["softmax", "sigmoid", "distribution", "independent"]
"""How an output is read: ``logits`` by a softmax, independent ones by a ``sigmoid`` each; probabilities as they are: a
``distribution`` over classes that exclude each other, or ``independent`` ones."""

# Probabilities sum to 1 up to their own rounding; a sum this near is no coincidence with three classes or more.
_SUM_TOLERANCE = 1e-4
# Operators that return their input's values, or values between them.
_CARRIERS = frozenset(
    {"View", "UnsafeView", "Reshape", "ReshapeAlias", "Squeeze", "Unsqueeze", "ToCopy", "Clone", "Alias", "AsStrided"}
    | {"Permute", "Transpose", "T", "Expand", "Flip", "Slice", "Select", "Split", "SplitWithSizes", "Unbind", "Index"}
    | {"IndexSelect", "Gather", "Clamp", "ClampMin", "ClampMax", "NanToNum"}
)
_JOINERS = frozenset({"Cat", "Stack"})
# Torch's wrappers, which return the output of the model inside, and the attribute that holds it.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "AveragedModel": "module",
}


def unwrapped(model: object) -> object:
    """Look through torch's wrappers at the model inside."""
    while (name := _WRAPPERS.get(type(model).__name__)) is not None and hasattr(model, name):
        model = getattr(model, name)
    return model


def check_output(output: object) -> Output:
    """Check the name of an output's meaning.

    Raises:
        ValueError: it is not in ``OUTPUTS``.
    """
    if output not in OUTPUTS:
        raise ValueError(f"output must be one of {', '.join(OUTPUTS)}; got {output!r}")
    return output


def declared_output(model: object) -> Output | None:
    """Read the meaning that a model declares for its output in its attribute ``output``; None without one."""
    model = unwrapped(model)
    owner = model.func if isinstance(model, partial) else getattr(model, "__self__", None)  # of model.forward
    if isinstance(owner, nn.Module):
        return declared_output(owner)
    output = getattr(model, "output", None)
    # A module may have a layer of that name.
    return check_output(output) if isinstance(output, str) else None


def logits_in(answer: object) -> Tensor:
    """Extract the tensor of scores from a model's result.

    Args:
        answer: a tensor; an object with an attribute or a mapping with a key ``logits`` (Hugging Face's
            ``ModelOutput``, torchvision's named tuples); or a tuple or list that holds one tensor.

    Raises:
        TypeError: anything else; the message describes it.
    """
    if isinstance(answer, Tensor):
        return answer
    found: Any = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    if isinstance(found, Tensor):
        return found
    if isinstance(answer, (tuple, list)):
        tensors = [part for part in answer if isinstance(part, Tensor)]
        if len(tensors) == 1:
            return tensors[0]
    raise TypeError(
        "the model must return a tensor of logits (B, classes), or an object that has one as `logits`; got "
        f"{_described(answer)}"
    )


def _described(answer: object) -> str:
    kind = type(answer).__name__
    if isinstance(answer, Mapping):
        return f"{kind} with the keys {', '.join(map(repr, list(answer)[:6])) or '(none)'}"
    if isinstance(answer, (tuple, list)):
        parts = [f"Tensor {tuple(p.shape)}" if isinstance(p, Tensor) else type(p).__name__ for p in answer[:6]]
        return f"{kind} of {', '.join(parts) or 'nothing'}"
    return kind


def resolve_reading(output: Tensor, declared: Output | None, pair: Tensor | None = None) -> Reading:
    """Decide how a model's output is read, and refuse an output that contradicts its declared meaning.

    The evidence: a single class, the operator that made the output (a softmax or a sigmoid is seen in the autograd
    graph, where there is one), three or more probabilities that sum to 1, or two that do so for two images, and values
    outside [0, 1].

    Args:
        output: (P, classes) or (P, classes, ...), of real images.
        declared: the declared meaning; None if there is none, which means ``logits``.
        pair: (2, classes, ...), the outputs for two images that differ, if the model was shown such.

    Raises:
        ValueError: the output contradicts it; the message says which meaning to declare.
    """
    values = output.detach()
    classes = values.shape[1]
    unit = bool(((values >= -_SUM_TOLERANCE) & (values <= 1 + _SUM_TOLERANCE)).all())
    sums_to_one = unit and bool(((values.float().sum(1) - 1).abs() <= _sum_tolerance(values.dtype)).all())
    last = _last_operator(output)
    how = "(load_classifier(..., output=...), Classifier(model, output=...), --model-output)"
    if declared == "probabilities":
        if not unit:
            lowest, highest = values.aminmax()
            if bool(lowest.isnan()):
                raise ValueError("output='probabilities' must lie in [0, 1], and the model gives NaN for an image")
            raise ValueError(
                f"output='probabilities' must lie in [0, 1], and the model gives {float(lowest):g} to "
                f"{float(highest):g}: say 'logits', or 'sigmoid' for independent classes {how}"
            )
        exclusive = last != "Sigmoid" and classes > 1 and sums_to_one
        return "distribution" if exclusive else "independent"
    if last in ("Softmax", "Sigmoid") and unit:
        raise ValueError(
            f"the model ends in a {last.lower()}, so that its outputs are probabilities already: say "
            f"output='probabilities' {how}"
        )
    if declared == "sigmoid":
        return "sigmoid"
    if classes == 1:
        raise ValueError(
            "the model gives one value per image, and a softmax of one value is always 1: say output='sigmoid' if it "
            f"is a logit, 'probabilities' if it is a probability {how}"
        )
    if sums_to_one and (classes >= 3 or (declared is None and pair is not None and _sum_exactly(pair))):
        raise ValueError(
            f"the model's {classes} outputs lie in [0, 1] and sum to 1: they are probabilities already: say "
            f"output='probabilities' {how}"
        )
    return "softmax"


def _sum_tolerance(kind: torch.dtype) -> float:
    return max(_SUM_TOLERANCE, 4 * torch.finfo(kind).eps) if kind.is_floating_point else _SUM_TOLERANCE


def _sum_exactly(pair: Tensor) -> bool:
    """Tell whether each image's two values sum to 1 up to float32 rounding, and the images' values differ."""
    values = _wide(pair.detach())
    if pair.dtype in (torch.float16, torch.bfloat16) or bool((values[0] == values[1]).all()):
        return False
    return bool(((values.sum(1) - 1).abs() <= 4 * torch.finfo(values.dtype).eps).all())


def _last_operator(output: Tensor) -> str:
    """Find the operator that made all the values, as autograd names it without "Backward0"; empty where unknown."""
    made: set[str] = set()
    waiting, seen = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        name = "" if node is None else node.name().partition("Backward")[0]
        if node is None or not node.next_functions or name not in _CARRIERS | _JOINERS:
            made.add(name)
        else:
            parts = node.next_functions if name in _JOINERS else node.next_functions[:1]
            waiting += [part for part, _ in parts]
    return made.pop() if len(made) == 1 else ""


def _wide(output: Tensor) -> Tensor:
    """Convert to float32, or keep float64."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def probabilities(output: Tensor, reading: Reading) -> Tensor:
    """Compute every class's probability.

    Args:
        output: (P, classes), the model's.
        reading: meaning of the output.

    Returns:
        (P, classes) in [0, 1], in float32, or the float64 of the output.
    """
    values = _wide(output)
    if reading == "softmax":
        return values.softmax(1)
    return values.sigmoid() if reading == "sigmoid" else values


def scores(output: Tensor, reading: Reading) -> Tensor:
    """Compute every class's score on the scale of logits: logits as they are, of probabilities the logarithm, or the
    log-odds of independent ones.

    Args:
        output: (P, classes), the model's.
        reading: meaning of the output.

    Returns:
        (P, classes), finite for finite outputs, in float32, or the float64 of the output.
    """
    values = _wide(output)
    if reading == "distribution":
        return values.clamp(min=torch.finfo(values.dtype).tiny).log()
    return _logit(values) if reading == "independent" else values


def log_odds(output: Tensor, classes: Tensor, reading: Reading) -> Tensor:
    """Compute ``log(p / (1 - p))`` of each row's class, without the cancellation that 1 - p has for a sure model.

    Of logits it is ``z_target - logsumexp(z_others)``: exact for margins that float32 holds, whatever 1 - p rounds to.

    Args:
        output: (P, classes), the model's; differentiable.
        classes: (P,) int64.
        reading: meaning of the output.

    Returns:
        (P,), in float32, or the float64 of the output.
    """
    own = classes[:, None]
    values = scores(output, reading)
    target = values.gather(1, own)[:, 0]
    if reading in ("sigmoid", "independent"):
        return target
    return target - values.scatter(1, own, -torch.inf).logsumexp(1)


def cross_entropy(output: Tensor, classes: Tensor, reading: Reading) -> Tensor:
    """Compute ``-log p`` of each row's class, whose gradient keeps its precision for a sure model.

    ``softplus(-log_odds)``. Torch's cross-entropy in float32 gives the target's logit the gradient ``p - 1``, which is
    0 from a margin of 17 on.

    Args:
        output: (P, classes), the model's; differentiable.
        classes: (P,) int64.
        reading: meaning of the output.

    Returns:
        (P,), in float32, or the float64 of the output.
    """
    # Torch's default threshold, above which softplus is the identity, would lose digits that float64 holds.
    return F.softplus(-log_odds(output, classes, reading), threshold=80)


def softmax_twice(output: Tensor, classes: Tensor, reading: Reading) -> Tensor:
    """Compute the cross-entropy of the softmax of the probabilities, as AttEXplore's public code does.

    The likeliest class's probability is written as what the others leave of 1: the same number, whose gradient does not
    cancel for a sure model.

    Args:
        output: (P, classes), the model's; differentiable.
        classes: (P,) int64.
        reading: meaning of the output: ``softmax`` or ``distribution``.

    Returns:
        (P,), in float32, or the float64 of the output.
    """
    values = scores(output, reading)
    first = values.detach().argmax(1, keepdim=True)
    others = values.log_softmax(1).scatter(1, first, -torch.inf).exp()
    chances = others.scatter(1, first, 1 - others.sum(1, keepdim=True))
    return F.cross_entropy(chances.softmax(1), classes, reduction="none")


def is_right(output: Tensor, classes: Tensor, reading: Reading) -> Tensor:
    """Tell whether the class is the model's prediction: its top class, or, for independent classes, 1/2 or more.

    Args:
        output: (P, classes), the model's.
        classes: (P,) int64.
        reading: meaning of the output.

    Returns:
        (P,) bool.
    """
    if reading in ("sigmoid", "independent"):
        return log_odds(output, classes, reading) >= 0
    return output.argmax(1) == classes


def _logit(values: Tensor) -> Tensor:
    """Compute log-odds of probabilities; 0 and 1 are replaced by the nearest numbers inside (0, 1)."""
    kind = torch.finfo(values.dtype)
    return values.clamp(kind.tiny, 1 - kind.eps / 2).logit()
