"""Measure how strided layers and pooling change the spectrum of a gradient that passes back through them.

After Muzellec et al., arXiv 2307.09591: a layer with a stride, or that takes the largest of several values, passes its
gradient back to single places of a finer grid, and so repeats its spectrum at new, higher frequencies.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from ..engine.request import Request, prepared
from ..engine.targets import Target
from ..frequency.bands import bands_between
from ..frequency.signature import fourier_signature
from ..runtime.activations import uncompiled
from ..runtime.model import Model, check_callable, frozen_parameters
from ..runtime.model_probe import call
from ..runtime.outputs import scores

_SMALLEST = 4
"""Least side of a layer's output; smaller ones have no meaningful spectrum."""


@dataclass(frozen=True, eq=False)
class LayerSpectrum:
    """The spectra of gradients on both sides of one layer, for B images; float64 on the CPU.

    Radii are in cycles over the shorter side of the map, so that they are comparable on both sides.

    Attributes:
        name: the layer's name in ``model.named_modules()``.
        kind: the name of its class.
        fine: (H, W), size of its input.
        coarse: (h, w), size of its output.
        arriving: (B, min(h, w)//2 + 1), mean amplitude per radius, over angles and channels, of the gradient with
            respect to the output (``fourier_signature``).
        leaving: (B, min(H, W)//2 + 1), likewise with respect to the input.
        beyond: (B,), share of the energy of the gradient with respect to the input above radius min(h, w)/2, the
            highest that the output has along its shorter side; 0 for no gradient.
    """

    name: str
    kind: str
    fine: tuple[int, int]
    coarse: tuple[int, int]
    arriving: Tensor
    leaving: Tensor
    beyond: Tensor


class _Crossing:
    """A layer's first call in a pass: the places of its input and output in autograd's graph."""

    def __init__(self, module: nn.Module, given: Tensor, made: Tensor) -> None:
        self.kind = type(module).__name__
        self.fine = int(given.shape[-2]), int(given.shape[-1])
        self.coarse = int(made.shape[-2]), int(made.shape[-1])
        self.edges: tuple[GradientEdge, GradientEdge] = get_gradient_edge(made), get_gradient_edge(given)


def layer_spectra(
    model: Model,
    inputs: Tensor,
    target: Target = None,
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    internal_batch_size: int | None = None,
) -> list[LayerSpectrum]:
    """Measure the spectra of the target's gradient before and after every layer that halves its input's size or more.

    Such layers are strided convolutions and pooling, of any class: modules that turn one tensor (B, C, H, W) into
    another with at most half the rows and columns, rounded up, and at least 4 of each. Of nested modules the innermost
    counts, of several calls in a pass the first.

    Args:
        model: an nn.Module from pixels (B, C, H, W) to logits (B, classes), in evaluation mode.
        inputs: (B, C, H, W), floating-point, values in ``bounds``, B at least 1.
        target: None for the model's own argmax; an int for all images; a list or a tensor (B,); for models with several
            output dimensions a tuple (class, position...).
        bounds: smallest and largest pixel value.
        internal_batch_size: images per model pass. Default: 8 on a CPU, 64 on a GPU.

    Returns:
        The layers in the order of a pass; empty for a model without such layers, or whose modules have no hooks, such
        as an exported program.

    Raises:
        TypeError: a model that is not an ``nn.Module``; inputs, target or chunk size of a wrong type.
        ValueError: as for an attribution method's inputs and target, or no image.
    """
    check_callable(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"layers can only be found in an nn.Module, but the model is a {type(model).__name__}")
    with prepared((model,), inputs, target, bounds=bounds, internal_batch_size=internal_batch_size) as request:
        if not len(request.images):
            raise ValueError("expected at least one image, got none")
        chunks = request.chunks.each(len(request.images), lambda part: _measured(model, request, part))
        parts = [found for _, found in chunks]
    return [
        replace(
            layer,
            arriving=torch.cat([part[k].arriving for part in parts]),
            leaving=torch.cat([part[k].leaving for part in parts]),
            beyond=torch.cat([part[k].beyond for part in parts]),
        )
        for k, layer in enumerate(parts[0])
    ]


def _measured(model: nn.Module, request: Request, part: slice) -> list[LayerSpectrum]:
    """Measure the layers for some of the images."""
    rows = torch.arange(part.start, part.stop, device=request.images.device)
    with frozen_parameters(model), torch.enable_grad(), uncompiled(model):
        leaf = request.images[part].clone().requires_grad_(True)
        with _watching(model) as crossings:
            output = request.targets.logits(call(model, leaf, request.probed[0]), rows)
        found = _innermost(crossings)
        if not found:
            return []
        score = scores(output, request.reading).gather(1, request.targets.classes[rows][:, None]).sum()
        edges = [edge for crossing in found.values() for edge in crossing.edges]
        gradients = torch.autograd.grad(score, edges, allow_unused=True)
    measured = []
    for k, (name, crossing) in enumerate(found.items()):
        arriving, leaving = gradients[2 * k : 2 * k + 2]
        if arriving is None or leaving is None:  # the score does not depend on this layer
            continue
        rings = bands_between(*crossing.fine, [min(crossing.coarse) / 2], include_dc=True)
        energy = rings.energy(leaving.float())
        beyond = energy[:, -1] / energy.sum(1).clamp(min=1e-300)
        spectra = _signature(arriving), _signature(leaving)
        measured.append(LayerSpectrum(name, crossing.kind, crossing.fine, crossing.coarse, *spectra, beyond))
    return measured


def _signature(gradient: Tensor) -> Tensor:
    """Average the amplitude per radius over the channels, (B, K) float64."""
    batch, channels = gradient.shape[:2]
    return fourier_signature(gradient.float().flatten(0, 1)[:, None]).view(batch, channels, -1).mean(1)


def _innermost(crossings: dict[str, _Crossing]) -> dict[str, _Crossing]:
    outer = {name for name in crossings for other in crossings if other != name and other.startswith(f"{name}.")}
    return {name: crossing for name, crossing in crossings.items() if name not in outer and name}


@contextmanager
def _watching(model: nn.Module) -> Iterator[dict[str, _Crossing]]:
    """Record the modules that at least halve their input's rows and columns, as they run in this thread."""
    crossings: dict[str, _Crossing] = {}
    thread = threading.get_ident()

    def hook(name: str) -> Any:
        def see(module: nn.Module, arguments: tuple[object, ...], output: object) -> None:
            given = arguments[0] if arguments else None
            if threading.get_ident() != thread or name in crossings:
                return
            if not (isinstance(given, Tensor) and isinstance(output, Tensor) and given.ndim == output.ndim == 4):
                return
            sides = zip(output.shape[-2:], given.shape[-2:], strict=True)
            halved = all(new >= _SMALLEST and 2 * new <= old + 1 for new, old in sides)
            if halved and given.requires_grad and output.requires_grad:
                crossings[name] = _Crossing(module, given, output)

        return see

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_hook(hook(name)).remove)
        yield crossings
