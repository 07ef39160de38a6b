"""Find a model's spatial activations without a layer's name, and capture them in a pass."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from .autograd_graph import cut_nodes
from .model import Model, frozen_parameters, input_dtype
from .model_probe import ModelInfo, call, probe
from .per_model import cache_of

Layout = Literal["nchw", "nhwc", "tokens"]

# Class, distillation and register tokens that may stand before an image's own.
_MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Activation:
    """A module's output that has places in the image.

    Attributes:
        name: the module's name in the model; the name of its class where it is not registered there.
        call: which of the module's calls in a pass, from 0.
        layout: ``nchw``, ``nhwc``, or ``tokens`` (B, N, C).
        prefix: tokens before the image's own.
        size: (h, w), places.
        channels: C.
        module: the module, weakly held.
    """

    name: str
    call: int
    layout: Layout
    prefix: int
    size: tuple[int, int]
    channels: int
    module: ref[nn.Module]

    def spatial(self, output: Tensor) -> Tensor:
        """View the module's output as (B, C, h, w)."""
        if self.layout == "nchw":
            return output
        if self.layout == "nhwc":
            return output.permute(0, 3, 1, 2)
        places = output[:, self.prefix :].transpose(1, 2)
        return places.reshape(*places.shape[:2], *self.size)


def find_activations(model: Model, images: Tensor, probed: ModelInfo | None = None) -> tuple[Activation, ...]:
    """Find the activations that all of an image's evidence passes through, in the order of a pass.

    An activation counts if every path of the autograd graph from the image to the output leads through it, if it has
    more than one place, and if some place's gradient is not zero: behind a class token's head, the last block's other
    tokens get none. A pass of the first image tells, once for each kind of image.

    Args:
        model: classifier in pixel space, in evaluation mode.
        images: (B, C, H, W), B at least 1.
        probed: what is known of the model.

    Returns:
        The activations; of several modules that return one and the same, the outermost. There may be none.
    """
    known: dict[Any, tuple[Activation, ...]] = cache_of(model, "activations") if isinstance(model, nn.Module) else {}
    parts = (tuple(parameter.shape for parameter in model.parameters()),) if isinstance(model, nn.Module) else ()
    key = images.device, input_dtype(model), images.shape[1:], parts
    if key not in known:
        probed = probe(model, images) if probed is None else probed
        known[key] = _find(model, images[:1], probed)
    return known[key]


def check_layer(model: nn.Module, name: object) -> nn.Module:
    """Look up a module by its name in ``model.named_modules()``.

    Raises:
        TypeError: a name that is no string.
        ValueError: one that the model does not have.
    """
    if not isinstance(name, str):
        raise TypeError(f"layer must be the name of a module, got {name!r}")
    known: dict[str, nn.Module] = {each: module for each, module in model.named_modules() if each}
    if name not in known:
        few = f"{', '.join(list(known)[:5])}{f', ... ({len(known)} in all)' if len(known) > 5 else ''}" or "none"
        raise ValueError(f"the model has no layer {name!r}; it has {few}")
    return known[name]


def named_activation(model: nn.Module, images: Tensor, name: str, probed: ModelInfo | None = None) -> Activation:
    """Find the activation that a module returns, by the module's name, in a forward pass of the first image.

    Args:
        model: classifier in pixel space, in evaluation mode.
        images: (B, C, H, W), B at least 1.
        name: of a module that runs once in a pass.
        probed: what is known of the model.

    Raises:
        TypeError, ValueError: as ``check_layer``.
        ValueError: a module that does not run, or more than once, or whose output has no places in the image.
    """
    module, outputs, thread = check_layer(model, name), list[object](), threading.get_ident()
    probed = probe(model, images) if probed is None else probed

    def see(layer: nn.Module, arguments: object, output: object) -> None:
        if threading.get_ident() == thread:
            outputs.append(output)

    hook = module.register_forward_hook(see)
    try:
        with torch.no_grad(), eager():
            call(model, images[:1], probed)
    finally:
        hook.remove()
    if len(outputs) != 1:
        raise ValueError(f"layer {name!r} runs {len(outputs)} times in a pass; expected a layer that runs once")
    output = _tensor_in(outputs[0])
    shape = None if output is None else _shape_of(output, images)
    if shape is None:
        what = type(outputs[0]).__name__ if output is None else tuple(output.shape)
        raise ValueError(
            f"the output of layer {name!r} is {what}, which has no places in the image; expected (B, C, h, w), "
            "(B, h, w, C) or tokens (B, N, C)"
        )
    return Activation(name, 0, *shape, ref(module))


class Captured:
    """The outputs of some modules in one pass.

    Attributes:
        outputs: by the activation's place in the list; None until its module has run.
    """

    def __init__(self, activations: Sequence[Activation]) -> None:
        self.outputs: list[Tensor | None] = [None] * len(activations)
        self._wanted: dict[int, dict[int, int]] = {}
        for place, activation in enumerate(activations):
            module = activation.module()
            if module is not None:
                self._wanted.setdefault(id(module), {})[activation.call] = place
        self._calls = dict.fromkeys(self._wanted, 0)
        self._thread = threading.get_ident()

    def see(self, module: nn.Module, arguments: object, output: object) -> None:
        """Keep the output of a call that is wanted; a forward hook."""
        if threading.get_ident() != self._thread:
            return
        key = id(module)
        place = self._wanted[key].get(self._calls[key])
        self._calls[key] += 1
        if place is not None:
            self.outputs[place] = _tensor_in(output)


@contextmanager
def capture(activations: Sequence[Activation]) -> Iterator[Captured]:
    """Capture the activations of the one pass that is made inside, in this thread; no hook stays behind."""
    captured = Captured(activations)
    modules = {id(module): module for activation in activations if (module := activation.module()) is not None}
    hooks = [module.register_forward_hook(captured.see) for module in modules.values()]
    try:
        yield captured
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def eager() -> Iterator[None]:
    """Run modules that the user has compiled as they are: the compiler leaves hooks out.

    Torch's stance is the process's: of several threads inside, the last to leave gives back the one before the first.
    """
    with _CHANGING:
        if not _INSIDE:
            _STANCE.enter_context(_force_eager())
        _INSIDE.append(None)
    try:
        yield
    finally:
        with _CHANGING:
            _INSIDE.pop()
            if not _INSIDE:
                _STANCE.close()


def _force_eager() -> AbstractContextManager[object]:
    stance: Any = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


_CHANGING = threading.Lock()
_INSIDE: list[None] = []
_STANCE = ExitStack()


# Finding --------------------------------------------------------------------------------------------------------------


@dataclass
class _Call:
    module: nn.Module
    number: int
    output: Tensor


def _find(model: Model, image: Tensor, probed: ModelInfo) -> tuple[Activation, ...]:
    calls: list[_Call] = []
    thread, numbers = threading.get_ident(), dict[int, int]()

    def see(module: nn.Module, arguments: object, output: object) -> None:
        if threading.get_ident() != thread:
            return
        number = numbers.get(id(module), 0)
        numbers[id(module)] = number + 1
        tensor = _tensor_in(output)
        if tensor is not None and tensor.grad_fn is not None:
            calls.append(_Call(module, number, tensor))

    with frozen_parameters(model), torch.enable_grad(), eager():
        leaf = image.detach().clone().requires_grad_(True)
        hook = register_module_forward_hook(see)
        try:
            output = call(model, leaf.clone() if probed.writes_input else leaf)
        finally:
            hook.remove()
        cut = {node: place for place, node in enumerate(cut_nodes(output, leaf))}
        names = {module: name for name, module in model.named_modules()} if isinstance(model, nn.Module) else {}
        found: dict[int, tuple[Activation, Tensor]] = {}
        for one in calls:
            place = cut.get(one.output.grad_fn)
            shape = None if place is None else _shape_of(one.output, image)
            if place is None or shape is None:
                continue
            name = names.get(one.module, type(one.module).__name__)
            # An outer module's hook runs after those of the modules inside, so that it takes their place.
            found[place] = Activation(name, one.number, *shape, ref(one.module)), one.output
        ordered = [found[place] for place in sorted(found, reverse=True)]
        if not ordered:
            return ()
        chosen = output.flatten(1).amax()
        gradients = torch.autograd.grad(chosen, [tensor for _, tensor in ordered], allow_unused=True)
    return tuple(
        activation
        for (activation, _), gradient in zip(ordered, gradients, strict=True)
        if gradient is not None and bool((activation.spatial(gradient) != 0).any())
    )


def _tensor_in(output: object) -> Tensor | None:
    """Take the tensor out of a module's output; a tuple may hold it first, as those of Hugging Face's layers do."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _shape_of(output: Tensor, image: Tensor) -> tuple[Layout, int, tuple[int, int], int] | None:
    """Read (layout, prefix, size, channels) from a tensor's shape; None where it has no places in the image."""
    height, width = image.shape[-2:]
    shape = tuple(output.shape)
    if shape[:1] != (1,) or not output.is_floating_point():
        return None
    if len(shape) == 4:
        sizes: dict[Layout, tuple[int, int]] = {"nchw": (shape[2], shape[3]), "nhwc": (shape[1], shape[2])}
        like = [layout for layout, size in sizes.items() if _like(size, height, width)]
        if not like:
            return None
        best = min(like, key=lambda layout: abs(sizes[layout][0] * width - sizes[layout][1] * height))
        return best, 0, sizes[best], shape[1 if best == "nchw" else 3]
    if len(shape) == 3:
        for prefix in range(min(_MOST_PREFIX_TOKENS, shape[1] - 1) + 1):
            size = _grid(shape[1] - prefix, height, width)
            if size is not None:
                return "tokens", prefix, size, shape[2]
    return None


def _like(size: tuple[int, int], height: int, width: int) -> bool:
    """Tell whether (h, w) is the image's size over some stride, up to rounding."""
    h, w = size
    if not (1 <= h <= height and 1 <= w <= width) or h * w == 1:
        return False
    stride = math.sqrt(height * width / (h * w))
    return max(abs(h - height / stride), abs(w - width / stride)) <= 1


def _grid(places: int, height: int, width: int) -> tuple[int, int] | None:
    """Find h * w = places with the image's proportions."""
    h = round((places * height / width) ** 0.5)
    for rows in (h, h - 1, h + 1):
        if rows >= 1 and places % rows == 0 and _like((rows, places // rows), height, width):
            return rows, places // rows
    return None
