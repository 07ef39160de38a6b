"""Probe a model with an image before work starts: find its output's shape and meaning, its memory and its limits."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..errors import kind_and_line
from .autograd_graph import nodes_between
from .model import Model, frozen_parameters, input_dtype, memory_format
from .out_of_memory import is_out_of_memory, with_advice
from .outputs import Output, Reading, declared_output, logits_in, probabilities, resolve_reading
from .parts import parts_of, walk_again
from .per_model import cache_of


class ModelInfo(NamedTuple):
    """The facts that ``probe`` finds out about a model; the defaults describe a model that was not probed."""

    shape: tuple[int, ...] = ()
    """Shape of the output for one image, without the batch: (classes,) or (classes, ...)."""
    saved_bytes: int | None = None
    """Bytes stored for one image's backward pass; None if unknown."""
    reading: Reading = "softmax"
    """Meaning of the output."""
    writes_input: bool = False
    """Whether the model changes its input in place."""
    single: str = ""
    """The reason why it takes only one image at a time; empty if it takes several."""
    no_gradient: str = ""
    """The reason why there is no gradient from the output to the image; empty if there is one."""
    hidden: tuple[ref[nn.Module], ...] = ()
    """Modules that ran without being registered in the model."""


# Largest change of an output by another image, as a share of the largest: dynamic quantisation causes half a percent.
_COMPANY = 0.05


def probe(model: Model, images: Tensor) -> ModelInfo:
    """Probe a model with the first image, once per image shape and dtype; callables that are no modules every time.

    Args:
        model: returns (B, classes) or (B, classes, ...).
        images: (B, C, H, W); nothing is probed if B is 0.

    Raises:
        TypeError: the output is no tensor and holds none.
        ValueError: its first dimension is not the batch, it has no class dimension, its values contradict its declared
            meaning (``outputs.resolve_reading``), or a module is in training mode: one that runs without being
            registered in the model, or that makes the outputs of equal images differ.
    """
    if not len(images):
        return ModelInfo()
    declared = declared_output(model)
    if not isinstance(model, nn.Module):  # its modules may change: probe it in every call, beside another image once
        return _probe_once(model, images, declared, cache_of(model, "beside another image"))
    known: dict[Hashable, ModelInfo] = cache_of(model, "probed")
    # A head that was exchanged since shows in the parameters' shapes, and a softmax that was added in the modules.
    parts = parts_of(model).shapes, tuple(type(module) for _, module in parts_of(model).modules)
    key = images.device, input_dtype(model), images.shape[1:], parts, declared
    if key not in known:
        known[key] = _probe_once(model, images, declared, {})
        walk_again(model)
    found = known[key]
    for hidden in found.hidden:
        module = hidden()
        if module is not None:
            _refuse_training(module)
    return found


def _probe_once(
    model: Model, images: Tensor, declared: Output | None, paired: dict[Hashable, tuple[bool, str]]
) -> ModelInfo:
    try:
        return _probe(model, images[:1], declared, paired)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise with_advice(error, 1, images.shape) from error
        raise


def takes_size(model: Model, images: Tensor, probed: ModelInfo, height: int, width: int) -> bool:
    """Tell whether a model takes images of another size than those it was made for; many transformers do not.

    Args:
        model: the model, in evaluation mode.
        images: (B, C, H, W), B at least 1, of a size that the model takes.
        probed: the model's ``ModelInfo``.
        height: height of the other size, in pixels, at least H.
        width: its width, at least W.
    """
    key = images.device, input_dtype(model), images.shape[1:], height, width
    known: dict[Hashable, bool] = cache_of(model, "takes a size") if isinstance(model, nn.Module) else {}
    if key not in known:
        padding = (0, width - images.shape[-1], 0, height - images.shape[-2])
        padded = nn.functional.pad(images[:1], padding)
        try:
            with torch.no_grad():
                known[key] = call(model, padded, probed).shape[1:] == probed.shape
        except Exception as error:  # every library refuses a size with its own error
            if is_out_of_memory(error):
                raise
            known[key] = False
    return known[key]


def call(
    model: Model, images: Tensor, probed: ModelInfo | None = None, layout: torch.memory_format | None = None
) -> Tensor:
    """Compute the model's output for images, in its dtype and memory format, and leave the images unchanged.

    Args:
        model: the model, in evaluation mode.
        images: (P, C, H, W).
        probed: the model's ``ModelInfo``; without it a model that writes to its input would change the images.
        layout: memory format to use instead of the model's own.

    Raises:
        TypeError, ValueError: as ``probe``.
    """
    shown = images.to(input_dtype(model)).contiguous(memory_format=layout or memory_format(model))
    if probed is not None and probed.writes_input and shown.data_ptr() == images.data_ptr():
        shown = shown.clone()
    return forward(model, shown)


def forward(model: Model, images: Tensor) -> Tensor:
    """Call a model and extract the tensor of scores from its result, with a row for each image.

    Raises:
        TypeError, ValueError: as ``probe``.
    """
    output = logits_in(model(images))
    if not torch.compiler.is_compiling():
        _check_form(output, images)
    return output


def _check_form(output: Tensor, images: Tensor) -> None:
    shape = tuple(output.shape)
    if output.layout != torch.strided or output.is_complex():
        kind = output.dtype if output.layout == torch.strided else output.layout
        raise TypeError(f"the model's output must be a dense tensor of real numbers, got one of {kind}")
    if output.ndim < 2 or len(output) != len(images) or 0 in shape[1:]:
        hint = ""
        if shape == (len(images),):
            hint = ": one value per image is (B, 1), as of output.unsqueeze(1)"
        elif shape[:1] == (1,) and len(images) > 1:
            hint = ": it takes one image at a time, so set internal_batch_size=1"
        raise ValueError(
            f"the model's output must be (B, classes); for images {tuple(images.shape)} it is {shape}{hint}"
        )


def outputs(model: Model, images: Tensor, chunk: int, probed: ModelInfo | None = None) -> Tensor:
    """Compute the model's output for all images, ``chunk`` of them at a time, without gradients.

    Raises:
        TypeError, ValueError: as ``probe``.
    """
    probed = probe(model, images) if probed is None else probed
    with torch.no_grad():
        return torch.cat([call(model, images[k : k + chunk], probed) for k in range(0, len(images), chunk)])


def probabilities_of(model: Model, images: Tensor, chunk: int | None = None) -> Tensor:
    """Compute the model's probability of every class, according to the meaning of its output.

    Args:
        model: returns (B, classes).
        images: (B, C, H, W), B at least 1.
        chunk: images per model pass; None for one pass of all.

    Returns:
        (B, classes) in [0, 1].

    Raises:
        TypeError, ValueError: as ``probe``.
    """
    probed = probe(model, images)
    return probabilities(outputs(model, images, chunk or len(images), probed), probed.reading)


def _probe(model: Model, image: Tensor, declared: Output | None, paired: dict[Hashable, tuple[bool, str]]) -> ModelInfo:
    if holds_compiled(model):
        # A pass with hooks, or of another size, would make it compile again.
        with torch.no_grad():
            output = call(model, image)
        return ModelInfo(tuple(output.shape[1:]), reading=resolve_reading(output, declared))
    ran: list[nn.Module] = []
    key = image.device, image.shape
    with watched(ran):
        seen = key in paired
        pair, writes_input, single = (None, *paired[key]) if seen else _show_pair(model, image)
        output, saved, no_gradient = _with_gradients(model, image, writes_input)
    if pair is not None:
        _compare(model, image, output.detach(), pair[:1])
    reading = resolve_reading(output, declared, pair)
    paired[key] = writes_input, single
    registered = set(model.modules()) if isinstance(model, nn.Module) else set()
    return ModelInfo(
        tuple(output.shape[1:]),
        saved,
        reading,
        writes_input,
        single,
        no_gradient,
        tuple(ref(module) for module in dict.fromkeys(ran) if module not in registered),
    )


def _show_pair(model: Model, image: Tensor) -> tuple[Tensor | None, bool, str]:
    """Show the image beside its negative.

    Returns:
        Their outputs, (2, classes, ...), or None if the model does not take two images; whether it wrote to its input;
        and the reason why it does not take two.
    """
    negative = image.amax() + image.amin() - image
    pair = torch.cat([image, negative])
    single = ""
    with torch.no_grad():
        try:
            shown, version = _shown(model, pair)
            return forward(model, shown), shown._version != version, ""
        except Exception as error:
            if not is_out_of_memory(error):  # one image may fit
                single = f"for two it fails with {kind_and_line(error)}"
        shown, version = _shown(model, image)
        forward(model, shown)
        return None, shown._version != version, single


def _shown(model: Model, images: Tensor) -> tuple[Tensor, int]:
    """Copy the images in the model's dtype and memory format, and count the writes to the copy so far."""
    shown = images.detach().to(input_dtype(model), copy=True).contiguous(memory_format=memory_format(model))
    return shown, shown._version


def _compare(model: Model, image: Tensor, alone: Tensor, together: Tensor) -> None:
    """Compare an image's outputs, (1, classes, ...), alone and beside another image.

    Raises:
        ValueError: they differ by more than rounding, and so do two equal passes; or they differ by more than in a
            model that finds the range of its quantised numbers in each batch.
    """
    if not alone.is_floating_point():
        return
    alone, together = alone.cpu(), together.cpu()  # some devices have no float64
    scale = alone.double().abs().max()
    rounding = float(scale) * torch.finfo(alone.dtype).eps ** 0.5

    def moved(other: Tensor) -> float:
        return float((other.double() - alone.double()).abs().max())

    advice = "dropout or batch statistics are at work. Put every part of it in evaluation mode: .eval()"
    # NaN compares false here; it is reported where it is used.
    if not (beside := moved(together)) > rounding:
        return
    with torch.no_grad():
        again = moved(call(model, image.clone()).cpu())
    if again > rounding:
        raise ValueError(
            f"the model's output for an image changed by {again:.3g} (of {float(scale):.3g}) in an equal pass, so maps "
            f"would be random: {advice}"
        )
    if beside > _COMPANY * float(scale):
        raise ValueError(
            f"the model's output for an image changed by {beside:.3g} (of {float(scale):.3g}) beside another image, so "
            f"maps would depend on their batch: {advice}"
        )


def _with_gradients(model: Model, image: Tensor, writes_input: bool) -> tuple[Tensor, int | None, str]:
    """Show the image with autograd on.

    Returns:
        The output; the bytes stored for the backward pass, None if unknown; and the reason if there is no gradient.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in _state_of(model)}
    saved: dict[int, int] = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    try:
        with (
            frozen_parameters(model),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(remember, lambda kept: kept),
        ):
            leaf = image.detach().clone().requires_grad_(True)
            output = call(model, leaf.clone() if writes_input else leaf)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # For example, it computes outside torch, which is enough for scores. The model's own errors are raised.
        with torch.no_grad():
            return call(model, image.detach().clone()), None, kind_and_line(error)
    if nodes_between(output, leaf):
        return output, sum(saved.values()), ""
    return (
        output,
        None,
        ("it runs under torch.no_grad or torch.inference_mode, detaches a tensor, or does not use the image"),
    )


@contextmanager
def watched(ran: list[nn.Module]) -> Iterator[None]:
    """Record the modules that run in this thread, and raise before one in training mode runs.

    Raises:
        ValueError: a module in training mode whose training mode matters.
    """
    thread = threading.get_ident()

    def see(module: nn.Module, arguments: object) -> None:
        if threading.get_ident() == thread:
            _refuse_training(module)
            ran.append(module)

    hook = register_module_forward_pre_hook(see)
    try:
        yield
    finally:
        hook.remove()


def _refuse_training(module: nn.Module) -> None:
    if getattr(module, "training", False) and _mode_matters(module):
        raise ValueError(
            f"the model runs a {type(module).__name__} in training mode, where dropout and batch statistics make "
            "results random: put every part of it in evaluation mode, also what a function, a method or a list holds: "
            ".eval()"
        )


def _mode_matters(module: nn.Module) -> bool:
    """Tell whether a module computes or stores something else in training mode."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        per_image = isinstance(module, nn.modules.instancenorm._InstanceNorm)
        return module.track_running_stats or not per_image
    if isinstance(module, nn.RReLU):
        return True
    if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
        return module.dropout > 0
    if "drop" in type(module).__name__.lower():  # torch's, timm's DropPath and DropBlock2d, ...
        shares = [getattr(module, name, None) for name in ("p", "drop_prob", "prob")]
        return all(share is None for share in shares) or any(bool(share) for share in shares)
    return type(module).__name__ == "StochasticDepth"  # torchvision's


def _state_of(model: Model) -> list[Tensor]:
    return [tensor for _, tensor in parts_of(model).tensors]


def holds_compiled(model: Model) -> bool:
    """Tell whether a model is or contains a module that its owner has compiled."""
    return parts_of(model).holds_compiled
