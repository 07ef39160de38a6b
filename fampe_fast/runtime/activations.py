"""Find a model's spatial activations without layer names, and capture them in a pass."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property, partial
from typing import Any, Literal, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.module import register_module_forward_hook

from ..errors import warn
from .autograd_graph import Node, cut_nodes, nodes_between
from .model import Model, frozen_parameters, input_dtype
from .model_probe import ModelInfo, call, holds_compiled, probe
from .parts import parts_of
from .per_model import cache_of

Layout = Literal["nchw", "nhwc", "tokens"]

# Class, distillation and register tokens that may precede the image's own.
_MOST_PREFIX_TOKENS = 16
# The most that padding may change an image's proportions, as a factor.
_PADDED = 1.1


@dataclass(frozen=True)
class Activation:
    """A module's output with spatial positions that correspond to places in the image.

    Attributes:
        name: the module's name in the model; the name of its class where it is not registered there.
        call: which of the module's calls in a pass, from 0.
        layout: ``nchw``, ``nhwc``, or ``tokens`` (B, N, C).
        prefix: number of tokens before the image's own.
        size: (h, w) of its spatial positions.
        channels: number of channels, C.
        module: the module, weakly held.
        overwritten: whether the model changes the output in place afterwards.
        begins: whether an autograd graph can begin at the output: nothing was computed from it before the module
            returned it, and it is not overwritten.
        frame: (H, W) of the image in the model; other proportions than the image's where the model changes them.
    """

    name: str
    call: int
    layout: Layout
    prefix: int
    size: tuple[int, int]
    channels: int
    module: ref[nn.Module]
    overwritten: bool = False
    begins: bool = False
    frame: tuple[int, int] = (0, 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The output's shape for one image, without the batch dimension."""
        if self.layout == "tokens":
            return self.prefix + math.prod(self.size), self.channels
        return (self.channels, *self.size) if self.layout == "nchw" else (*self.size, self.channels)

    def spatial(self, output: Tensor) -> Tensor:
        """View the module's output as (B, C, h, w)."""
        if self.layout == "nchw":
            return output
        if self.layout == "nhwc":
            return output.permute(0, 3, 1, 2)
        places = output[:, self.prefix :].transpose(1, 2)
        return places.reshape(*places.shape[:2], *self.size)


def find_activations(model: Model, images: Tensor, probed: ModelInfo | None = None) -> tuple[Activation, ...]:
    """Find the activations that every path from the image to the output passes through, in the order of a pass.

    An activation counts if every path of the autograd graph from the image to the output leads through it, if it has
    more than one spatial position, and if some position's gradient is not zero: behind a class token's head, the last
    block's other tokens get none. This is found in one pass of the first image, once for each image shape and dtype.

    Args:
        model: classifier in pixel space, in evaluation mode.
        images: (B, C, H, W), B at least 1.
        probed: the model's ``ModelInfo``.

    Returns:
        The activations, possibly none; where several modules return the same tensor, that of the outermost.
    """
    return _remembered(model, images, probed, (), _cut_activations)


def named_activations(
    model: Model, images: Tensor, names: Sequence[str], probed: ModelInfo | None = None
) -> tuple[Activation, ...]:
    """Look up activations by the names of their modules, in the order of a pass.

    Args:
        model: an nn.Module, classifier in pixel space, in evaluation mode.
        images: (B, C, H, W), B at least 1.
        names: names in ``model.named_modules()``, such as "layer3.1"; "act#1" is the second call of "act" in a pass.
        probed: the model's ``ModelInfo``.

    Raises:
        TypeError: the model is no nn.Module.
        ValueError: a name that does not exist; a module that does not run, or runs more than once where the name
            gives no call; one whose output has no spatial positions, or has no gradient.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"layer names need an nn.Module, but the model is a {type(model).__name__}")
    return _remembered(model, images, probed, tuple(names), partial(_named, names=names))


def layer_of(model: Model, name: str) -> nn.Module:
    """Look up a layer by its name, with or without a call number.

    Raises:
        ValueError: a name that does not exist.
    """
    own, modules = name.partition("#")[0], dict(_modules_of(model))
    if own not in modules:
        near = get_close_matches(own, modules, 3, 0.4) or [known for known in modules if known][:3]
        raise ValueError(f"the model has no layer {own!r}; near it are {', '.join(map(repr, near))}")
    return modules[own]


def _remembered(
    model: Model,
    images: Tensor,
    probed: ModelInfo | None,
    names: tuple[str, ...],
    choose: Callable[[_Pass], tuple[Activation, ...]],
) -> tuple[Activation, ...]:
    probed = probe(model, images) if probed is None else probed
    known: dict[Hashable, tuple[Activation, ...]] = cache_of(model, "activations")
    # Other callables are identified by the modules that ran when they were probed, which is done in every call.
    modules = [model] if isinstance(model, nn.Module) else [hidden() for hidden in probed.hidden]
    parts = tuple(parts_of(module).shapes for module in modules if module is not None)
    key = images.device, input_dtype(model), images.shape[1:], parts, names, probed.hidden
    if key in known:
        return known[key]
    seen = _Pass(model, images[:1], probed)
    found = choose(seen)
    if found and seen.size != tuple(images.shape[-2:]):
        (height, width), frame = images.shape[-2:], seen.size
        warn(
            f"the model changes the proportions of an image of {height} x {width}, to {frame[0]} x {frame[1]}: maps "
            "are stretched over the whole image, which is wrong where the model crops: give it images of its own size"
        )
    if found:  # a black image's gradient may be zero everywhere, and another one's not
        known[key] = found
    return found


class _Wanted(NamedTuple):
    """A module whose activations are wanted, and for each call number the activation's index in the list."""

    module: nn.Module
    places: dict[int, int]


def _wanted_calls(activations: Sequence[Activation]) -> dict[int, _Wanted]:
    """Map the ids of the modules whose activations are wanted to them; modules that no longer exist are left out."""
    wanted: dict[int, _Wanted] = {}
    for place, one in enumerate(activations):
        module = one.module()
        if module is not None:
            wanted.setdefault(id(module), _Wanted(module, {})).places[one.call] = place
    return wanted


class Captured(NamedTuple):
    """An activation in one pass.

    Attributes:
        output: the module's output; the model may have changed it in place since.
        edge: the output's place in autograd's graph; ``torch.autograd.grad`` takes it in place of the output.
        version: the output's version counter when the module returned it.
    """

    output: Tensor
    edge: GradientEdge
    version: int

    @property
    def overwritten(self) -> bool:
        """Whether the model has changed the output in place."""
        return self.output._version != self.version


class Capture:
    """The activations of one pass.

    Attributes:
        found: by the activation's index; None until its module has run and returned a tensor with a gradient.
        wanted: as from ``_wanted_calls``.
    """

    def __init__(self, activations: Sequence[Activation]) -> None:
        self.found: list[Captured | None] = [None] * len(activations)
        self.wanted = _wanted_calls(activations)
        self._activations = activations
        self._calls = dict.fromkeys(self.wanted, 0)
        self._thread = threading.get_ident()

    def see(self, key: int, module: nn.Module, arguments: object, output: object) -> None:
        """Keep the output of a call that is wanted; with the module's key, which its twin has not, a forward hook."""
        if threading.get_ident() != self._thread:
            return
        place = self.wanted[key].places.get(self._calls[key])
        self._calls[key] += 1
        tensor = None if place is None else _tensor_in(output)
        if place is None or tensor is None:
            return
        activation = self._activations[place]
        if activation.begins and not tensor.requires_grad:
            tensor.requires_grad_(True)
        if tensor.requires_grad:
            kept = tensor.detach().clone() if activation.overwritten else tensor
            self.found[place] = Captured(kept, get_gradient_edge(tensor), kept._version)


@contextmanager
def capture(activations: Sequence[Activation]) -> Iterator[Capture]:
    """Capture the activations of the one pass made inside the context, in this thread; its hooks are then removed.

    Where the images and the parameters need no gradient, autograd's graph begins at the activations whose ``begins``
    is set: earlier operations are neither stored nor differentiated.
    """
    captured = Capture(activations)
    with ExitStack() as hooks:
        for key, one in captured.wanted.items():
            hooks.callback(one.module.register_forward_hook(partial(captured.see, key)).remove)
        yield captured


class Tap:
    """Adds zeros to activations in a compiled pass, where gradients of intermediate tensors cannot be asked for.

    The gradient with respect to the zeros is that of the activation. The hooks act only between ``start`` and
    ``finish``, and only while the compiler traces: passes that run uncompiled or in another thread get no zeros.

    Attributes:
        activations: those that get zeros.
    """

    def __init__(self, activations: Sequence[Activation]) -> None:
        self.activations = tuple(activations)
        self._outputs: dict[int, Tensor] = {}
        self._zeros: Sequence[Tensor] = ()
        self._calls: dict[int, int] = {}
        self._lock, self._users, self._hooks = threading.Lock(), 0, ExitStack()

    def zeros(self, images: Tensor) -> list[Tensor]:
        """Make the zeros for a pass of images (P, C, H, W): leaves of a graph, float32."""
        return [
            torch.zeros(len(images), *one.shape, dtype=torch.float32, device=images.device, requires_grad=True)
            for one in self.activations
        ]

    def start(self, zeros: Sequence[Tensor]) -> None:
        """Begin a pass."""
        self._zeros, self._calls, self._outputs = zeros, {}, {}

    def finish(self) -> list[Tensor]:
        """End the pass and return its activations, keeping no reference to them."""
        found = [self._outputs[place] for place in range(len(self._zeros))]
        self._zeros, self._calls, self._outputs = (), {}, {}
        return found

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Install the hooks, once for all threads inside the context; the last one removes them."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._register()
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._hooks.close()

    def _register(self) -> None:
        for key, one in _wanted_calls(self.activations).items():
            self._hooks.callback(one.module.register_forward_hook(self._hook(key, one.places)).remove)

    def _hook(self, key: int, places: dict[int, int]) -> Callable[[nn.Module, Any, Any], Any]:
        def see(module: nn.Module, arguments: Any, output: Any) -> Any:
            if not self._zeros:
                return None
            number = self._calls.get(key, 0)
            self._calls[key] = number + 1
            if number not in places:
                return None
            first = output[0] if isinstance(output, (tuple, list)) else output
            place = places[number]
            tapped = first + self._zeros[place].to(first.dtype)
            self._outputs[place] = tapped.clone() if self.activations[place].overwritten else tapped
            return (tapped, *output[1:]) if isinstance(output, (tuple, list)) else tapped

        return see


def passed_on_in_pieces(name: str, seen: int, images: int) -> ValueError:
    """Make the error for a model that shows a layer fewer images at a time than it was given."""
    return ValueError(
        f"the layer {name!r} was shown {seen} of {images} images: the model passes them on in pieces; set "
        "internal_batch_size=1 (--internal-batch-size 1)"
    )


@contextmanager
def uncompiled(model: Model) -> Iterator[None]:
    """Run the user's compiled modules uncompiled, as compiled ones skip hooks; several threads may be inside."""
    if not holds_compiled(model):
        yield
        return
    with _STANCE:
        if not _STANCES:
            stance: Any = torch.compiler.set_stance("force_eager")  # type: ignore[no-untyped-call]
            stance.__enter__()
            _STANCES.append(stance)
        else:
            _STANCES.append(_STANCES[0])
    try:
        yield
    finally:
        with _STANCE:
            stance = _STANCES.pop()
            if not _STANCES:
                stance.__exit__(None, None, None)


_STANCE = threading.Lock()
_STANCES: list[Any] = []


# Finding --------------------------------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """A module's call: its output, the output's place in the graph on return, and the number of the next node."""

    module: nn.Module
    number: int
    output: Tensor
    edge: GradientEdge
    version: int
    next_node: int

    @property
    def overwritten(self) -> bool:
        """Whether the output was changed in place since."""
        return self.output._version != self.version


class _Pass:
    """A pass of one image whose modules' outputs are kept."""

    def __init__(self, model: Model, image: Tensor, probed: ModelInfo) -> None:
        self.model, self.image = model, image
        self.calls: list[_Call] = []
        self.frame: tuple[int, int] | None = None
        thread, numbers = threading.get_ident(), dict[int, int]()

        def see(module: nn.Module, arguments: object, output: object) -> None:
            if threading.get_ident() != thread or isinstance(module, torch.jit.ScriptModule):
                return
            number = numbers.get(id(module), 0)
            numbers[id(module)] = number + 1
            tensor = _tensor_in(output)
            self.frame = self.frame or _frame_of(module, arguments, image)
            if tensor is not None and tensor.grad_fn is not None:
                edge, next_node = get_gradient_edge(tensor), torch._C._autograd._get_sequence_nr()
                self.calls.append(_Call(module, number, tensor, edge, tensor._version, next_node))

        # An exported program has no hooks; only modules may hold others that are not registered.
        own = [module for _, module in _modules_of(model) if not isinstance(module, torch.jit.ScriptModule)]
        with frozen_parameters(model), torch.enable_grad(), uncompiled(model):
            self.leaf = image.detach().clone().requires_grad_(True)
            with ExitStack() as hooks:
                if len(own) > 1:
                    for module in own:
                        hooks.callback(module.register_forward_hook(see).remove)
                else:
                    hooks.callback(register_module_forward_hook(see).remove)
                self.output = call(model, self.leaf.clone() if probed.writes_input else self.leaf)

    @property
    def grids(self) -> list[tuple[int, int]]:
        """The sizes of the pass's outputs (1, C, h, w), patch grids among them, coarsest first."""
        sizes = {
            (one.output.shape[2], one.output.shape[3])
            for one in self.calls
            if one.output.ndim == 4 and _like((one.output.shape[2], one.output.shape[3]), *self.size)
        }
        return sorted(sizes, key=math.prod)

    @property
    def size(self) -> tuple[int, int]:
        """The size of the image in the model, as far as it is known: its proportions are those of the activations."""
        return self.frame or (self.image.shape[-2], self.image.shape[-1])

    @cached_property
    def first_uses(self) -> dict[Node, int]:
        """For each node, the autograd sequence number of the first node towards the output that used its result."""
        first: dict[Node, int] = {}
        for node, befores in nodes_between(self.output, self.leaf).items():
            for before in befores:
                first[before] = min(node._sequence_nr(), first.get(before, node._sequence_nr()))
        return first

    def activation(self, one: _Call, name: str) -> Activation | None:
        """Describe the output of a call; None if it has no spatial positions."""
        shape = _shape_of(one.output, self.size, self.grids)
        if shape is None:
            return None
        begins = not one.overwritten and self.first_uses.get(one.edge.node, one.next_node) >= one.next_node
        return Activation(name, one.number, *shape, ref(one.module), one.overwritten, begins, self.size)

    def gradients(self, edges: Sequence[GradientEdge]) -> tuple[Tensor | None, ...]:
        """Compute the gradients of all classes together, with unequal weights: one class alone may be constant."""
        if not edges:
            return ()
        with torch.enable_grad():
            scores = self.output.flatten()
            score = (scores * torch.linspace(1, 2, len(scores), dtype=scores.dtype, device=scores.device)).sum()
        with frozen_parameters(self.model):  # as in the pass, parts of which gradient checkpointing repeats here
            return torch.autograd.grad(score, edges, allow_unused=True, retain_graph=True)


def _cut_activations(seen: _Pass) -> tuple[Activation, ...]:
    cut = {node: place for place, node in enumerate(cut_nodes(seen.output, seen.leaf))}
    names = {module: name for name, module in _modules_of(seen.model)}
    found: dict[int, tuple[Activation, GradientEdge]] = {}
    for one in seen.calls:
        place = cut.get(one.edge.node)
        activation = None if place is None else seen.activation(one, names.get(one.module, type(one.module).__name__))
        if place is not None and activation is not None:
            # An outer module's hook runs after those of its inner modules, and so replaces their entry.
            found[place] = activation, one.edge
    ordered = [found[place] for place in sorted(found, reverse=True)]
    gradients = seen.gradients([edge for _, edge in ordered])
    return tuple(
        activation
        for (activation, _), gradient in zip(ordered, gradients, strict=True)
        if gradient is not None and bool((activation.spatial(gradient) != 0).any())
    )


def _named(seen: _Pass, names: Sequence[str]) -> tuple[Activation, ...]:
    found: dict[int, Activation] = {}
    for name in names:
        own, _, number = name.partition("#")
        module = layer_of(seen.model, name)
        calls = [(place, one) for place, one in enumerate(seen.calls) if one.module is module]
        if not calls:
            raise ValueError(f"the layer {own!r} does not run in a pass, or gives no tensor: name one that does")
        if number:
            calls = [(place, one) for place, one in calls if str(one.number) == number]
            if not calls:
                raise ValueError(f"the layer {own!r} has no call {number!r} in a pass: they count from 0")
        if len(calls) > 1:
            raise ValueError(
                f"the layer {own!r} runs {len(calls)} times in a pass: choose {own}#0 to {own}#{len(calls) - 1}"
            )
        place, one = calls[0]
        activation = seen.activation(one, name)
        if activation is None:
            raise ValueError(
                f"the layer {own!r} gives {tuple(one.output.shape)} for an image, without spatial positions: name one "
                "of shape (1, C, h, w), (1, h, w, C) or (1, tokens, C), with more than 1 x 1 positions"
            )
        (gradient,) = seen.gradients([one.edge])
        if gradient is None or not bool((activation.spatial(gradient) != 0).any()):
            raise ValueError(
                f"the layer {own!r} has no gradient at any image position (behind a class token's head, the last "
                "block's other tokens have none): name an earlier one"
            )
        found[place] = activation
    return tuple(found[place] for place in sorted(found))


def _modules_of(model: Model) -> list[tuple[str, nn.Module]]:
    return list(parts_of(model).modules)


def _tensor_in(output: object) -> Tensor | None:
    """Take the tensor out of a module's output, the first entry of a tuple (as in Hugging Face's layers)."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) and output.is_floating_point() else None


def _shape_of(
    output: Tensor, image: tuple[int, int], grids: Sequence[tuple[int, int]] = ()
) -> tuple[Layout, int, tuple[int, int], int] | None:
    """Read (layout, prefix, size, channels) from a tensor's shape; None if it has no spatial positions.

    Args:
        output: output of a module for one image.
        image: (H, W) of the image in the model.
        grids: sizes of the pass's patch grids, which tell how tokens are arranged: their number may fit several.
    """
    height, width = image
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
        most = min(_MOST_PREFIX_TOKENS, shape[1] - 1)
        for h, w in grids:
            if 0 <= shape[1] - h * w <= most:
                return "tokens", shape[1] - h * w, (h, w), shape[2]
        for prefix in range(most + 1):
            size = _grid(shape[1] - prefix, height, width)
            if size is not None:
                return "tokens", prefix, size, shape[2]
    return None


def _frame_of(module: nn.Module, arguments: object, image: Tensor) -> tuple[int, int] | None:
    """Read the image's size at the model's first convolution, where its proportions are no longer the image's."""
    shown = arguments[0] if isinstance(arguments, tuple) and arguments else None
    weight = getattr(module, "weight", None)
    if not isinstance(shown, Tensor) or shown.ndim != 4 or not isinstance(weight, Tensor) or weight.ndim != 4:
        return None
    (height, width), (own_height, own_width) = image.shape[-2:], shown.shape[-2:]
    change = (own_height * width) / (own_width * height)
    # Padding changes them a little.
    return (own_height, own_width) if not 1 / _PADDED < change < _PADDED else (height, width)


def _like(size: tuple[int, int], height: int, width: int) -> bool:
    """Tell whether (h, w) is the image's size divided by some stride, up to rounding."""
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
