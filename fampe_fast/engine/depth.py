"""Collect the evidence of every depth: each layer's activations times gradients, in views of the image."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointError

from .. import ops
from ..errors import warn
from ..ops.backends import VARIABLE as BACKEND
from ..runtime.activations import Activation, Captured, Tap, capture, passed_on_in_pieces, uncompiled
from ..runtime.auto_compile import auto_compile, work_of
from ..runtime.cast_weights import cast_weights
from ..runtime.chunking import are_pinned, even_parts
from ..runtime.compilation import Compiled
from ..runtime.cuda_graphs import graphed_calls
from ..runtime.graph_capture import can_capture
from ..runtime.model import Model, frozen_parameters
from ..runtime.model_probe import holds_compiled
from ..runtime.model_state import State, state_of
from ..runtime.parts import parts_of
from ..runtime.per_model import cache_of
from .aggregation import ModelForm, form_of, objective, shown_to, turned, turns_channels_last
from .config import PathConfig, Precision
from .levels import levels_of
from .precision import cast_dtype, matrix_precision
from .request import Request
from .targets import Targets

# Weight of a path's evidence of the pixels; that of a single gradient is noise compared with the finest layer's.
_PATH_WEIGHT = 4.0


class DepthEvidence(NamedTuple):
    """The evidence of an image's pixels and of its layers, none of it negative.

    Attributes:
        pixels: (B, H, W) float32: absolute gradient, summed over the channels; zero if it was not collected.
        layers: (B, K) float32: the layers' evidence from fine to coarse, each row by row.
        sizes: h and w of every layer; K is the sum of their products.
        names: names of the layers.
    """

    pixels: Tensor
    layers: Tensor
    sizes: tuple[int, ...]
    names: tuple[str, ...]


def collect_depths(
    request: Request,
    config: PathConfig,
    on_step: Callable[[int], None] = lambda done: None,
    with_pixels: bool = True,
) -> DepthEvidence:
    """Collect the evidence of each view in one pass: its pixels' gradients, and activation times gradient per layer.

    If the pixels' evidence is not collected, a pass's autograd graph begins at the first layer.

    At a layer ``relu(-sum_c dloss/da * a)``: HiResCAM's product (Draelos & Carin, arXiv 2011.08891), place by place as
    LayerCAM takes shallow layers (Jiang et al., IEEE TIP 2021). The evidence of two views is divided by its mean, and
    that of the mirror image is mirrored back, before they are averaged.

    Args:
        request: images, targets and models, of which the first one is explained.
        config: the views, layers, loss and precision.
        on_step: called with the number of views when they are done.
        with_pixels: collect the pixels' evidence even if the map does not use it.

    Returns:
        The evidence. Warns (``FampeWarning``) of images without any evidence for the map, and of images whose evidence
        was not finite: it is set to zero.

    Raises:
        TypeError, ValueError: as ``levels_of``.
    """
    images, views = request.images, config.views
    if not len(images):
        on_step(views)
        return DepthEvidence(images.new_zeros(0, *images.shape[-2:]), images.new_zeros(0, 0), (), ())
    model, probed = request.models[0], request.probed[0]
    levels = levels_of(model, images, probed, config.layer_names)
    entering = pixels_enter([level.name for level in levels], config)
    pixels = entering or with_pixels
    with (
        torch.no_grad(),
        frozen_parameters(model),
        uncompiled(model),
        matrix_precision(config.precision, images.device),
    ):
        # An image's views are neighbouring rows, so that one image alone fills a chunk.
        shown = images if views == 1 else torch.stack([images, images.flip(-1)], 1).flatten(0, 1)
        of_image = torch.arange(len(shown), device=images.device).div(views, rounding_mode="floor")
        found = _graphed(request, config, levels, shown, of_image, pixels)
        if found is None:
            found = _in_chunks(request, config, levels, shown, of_image, pixels)
        if views > 1:
            found = [_average(level) for level in found]
    on_step(views)
    own = found.pop(0) if pixels else images.new_zeros(()).expand(len(images), *images.shape[-2:])
    layers = torch.cat([level.flatten(1) for level in found], 1)
    sizes = tuple(side for level in levels for side in level.size)
    evidence = DepthEvidence(own, layers, sizes, tuple(level.name for level in levels))
    return _usable(evidence, pixels, entering, request.image_ids)


def _in_chunks(
    request: Request, config: PathConfig, levels: Sequence[Activation], shown: Tensor, of_image: Tensor, pixels: bool
) -> list[Tensor]:
    """Make the passes of rows (P, C, H, W), plain or compiled; see ``_evidence``."""
    model, images, probed = request.models[0], request.images, request.probed[0]
    # A single pass uses the compiled graph of several; there is no gain in a graph of its own.
    compiled = _compiles(request, config, levels)
    several = compiled or len(shown) > request.chunks.size
    channels_last = several and turns_channels_last(model, images, probed, config)
    form = turned(form_of(model, probed, config), channels_last)
    with cast_weights(model, cast_dtype(config.precision) if several else None, channels_last) as twin:

        def collect(chunk_size: int) -> list[Tensor]:
            count = even_parts(len(shown), chunk_size)
            parts = [
                _evidence(request, twin, config, form, levels, part, index, pixels, compiled)
                for part, index in zip(shown.chunk(count), of_image.chunk(count), strict=True)
            ]
            return [torch.cat(level) for level in zip(*parts, strict=True)]

        return request.chunks.run(collect, len(shown))


def _graphed(
    request: Request, config: PathConfig, levels: Sequence[Activation], shown: Tensor, of_image: Tensor, pixels: bool
) -> list[Tensor] | None:
    """Make a plain pass of all rows by a CUDA graph; None where there is none, or it would not pay.

    Its results are the plain pass's to the bit. Where sizes are pinned, what cannot be captured stays plain: whether it
    was may depend on earlier calls, and results may not.
    """
    model, probed, device, wanted = request.models[0], request.probed[0], shown.device, config.compile
    if not can_capture(device) or wanted not in ("auto", "graphs") or (wanted == "auto" and are_pinned()):
        return None
    if len(shown) > request.chunks.size or probed.hidden:
        return None
    form, places = form_of(model, probed, config), request.targets.places

    def one_pass(shown: Tensor, *targets: Tensor) -> list[Tensor]:
        own = replace(request, targets=Targets(targets[0], targets[1] if places is not None else None))
        rows = torch.arange(len(shown), device=device)
        return _evidence(own, model, config, form, levels, shown, rows, pixels, compiled=False)

    backend, named = os.environ.get(BACKEND), bool(config.layer_names)
    kind = backend, config.loss, config.precision, form, tuple(levels), named, pixels
    arguments = [shown, *(part[of_image] for part in (request.targets.classes, places) if part is not None)]
    calls = graphed_calls(model, "depths", kind, "the depths")

    def state() -> State | None:
        return state_of(parts_of(model))

    found = calls.run(one_pass, arguments, state, probed.saved_bytes, always=wanted == "graphs")
    return one_pass(*arguments) if found is None and are_pinned() else found


def combined_map(depths: DepthEvidence, pixels: Tensor, config: PathConfig) -> Tensor:
    """Combine the evidence of all depths into a map, (B, 1, H, W): details, gated by the last layer.

    ``(w p + sum of the other layers) * (floor + the last layer)``, each part divided by its mean: fine layers locate
    the details, the last one selects those of the class. Guided Grad-CAM (Selvaraju et al., ICCV 2017) and Poly-CAM
    (Englebert et al., arXiv 2204.13359) also multiply a fine and a coarse map; sum, floor and weights were chosen by
    measurement (``docs/results/maps.md``).

    Args:
        depths: the evidence.
        pixels: (B, H, W), the pixels' evidence p, not negative.
        config: its weights of the pixels and the layers, and the floor of the gate.

    Raises:
        ValueError: weights for another number of layers.
    """
    weights, gates = _weights(depths.names, config), [0.0] * len(depths.names) + [1.0]
    found = ops.combine_layers(pixels, depths.layers, list(depths.sizes), weights, gates, config.gate_floor)
    return found[:, None]


def pixel_weight_of(config: PathConfig) -> float:
    """Return the weight of the pixels' evidence: the configured one, or the default for a path or a plain gradient."""
    if config.pixel_weight is not None:
        return config.pixel_weight
    return _PATH_WEIGHT if config.steps else 0.0


def pixels_enter(names: Sequence[str], config: PathConfig) -> bool:
    """Tell whether the map uses the pixels' evidence of these layers' passes; a path provides its own.

    Raises:
        ValueError: the configuration's weights are for another number of layers.
    """
    return _weights(names, config)[0] > 0 and not config.steps


def layer_weights_of(names: Sequence[str], config: PathConfig) -> tuple[float, ...]:
    """Return the weights of these layers in the sum.

    Raises:
        ValueError: the configuration's are for another number of layers.
    """
    weights, count = config.summed_weights, len(names)
    if not count:  # without images
        return ()
    if config.layer_weights is None:
        return (*([1.0] * (count - 1)), 0.0)
    if len(weights) != count:
        raise ValueError(
            f"layer_weights must be {count} numbers, one for each of the layers {', '.join(names)}; got {len(weights)}"
        )
    return weights


def _weights(names: Sequence[str], config: PathConfig) -> list[float]:
    """Return the weights of the pixels and of these layers in the sum."""
    weights = [pixel_weight_of(config), *layer_weights_of(names, config)]
    if not any(weights):  # with a single layer, only the pixels have detail
        weights[0] = 1.0
    return weights


def evidence_of_pixels(attribution: Tensor) -> Tensor:
    """Make the pixels' evidence (B, H, W), not negative, of an attribution (B, C, H, W): the areas are the layers'."""
    return attribution.sum(1).clamp(min=0)


def _average(level: Tensor) -> Tensor:
    """Average the views (2 B, h, w), every second one a mirror image, each divided by its mean, to (B, h, w)."""
    mean = level.mean((1, 2), keepdim=True)
    shares = level / torch.where(mean > 0, mean, torch.ones_like(mean))
    return (shares[0::2] + shares[1::2].flip(-1)) / 2


def _evidence(
    request: Request,
    twin: Model,
    config: PathConfig,
    form: ModelForm,
    levels: Sequence[Activation],
    images: Tensor,
    index: Tensor,
    pixels: bool,
    compiled: bool,
) -> list[Tensor]:
    """Make one pass of images (P, C, H, W) with the targets of ``index``, by the model's twin (``cast_weights``).

    Returns:
        (P, H, W) of the pixels, if asked for, and (P, h, w) of every layer.
    """
    model, classes = request.models[0], request.targets.classes[index]
    if compiled and len(images) == 1 < request.chunks.size:  # the compiler would specialise on a size of one
        two = images.expand(2, -1, -1, -1), index.expand(2)
        pair = _evidence(request, twin, config, form, levels, *two, pixels, compiled)
        return [level[:1] for level in pair]
    layout = torch.channels_last if form.channels_last else torch.contiguous_format
    shown = images.contiguous(memory_format=layout).detach()
    # Layers chosen automatically all follow the first one; named layers may be parallel.
    first = levels if config.layer_names else levels[:1]
    recomputes = cache_of(model, "recomputes activations")
    shown.requires_grad_(pixels or bool(recomputes) or not all(level.begins for level in first))
    behind: Sequence[Any]
    with torch.enable_grad():
        if not compiled:
            output, activations, behind = _watched_pass(twin, shown, form, config.precision, levels)
        else:
            body, tap = _compiled_pass(model, config, levels)
            zeros = tap.zeros(shown)
            for tensor in (shown, *zeros):
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
            with tap.hooked():
                output, activations, edges = body(twin, shown, zeros, tap, form, config.precision)
            behind = edges or zeros
        value, _ = objective(request.targets.logits(output, index), classes, config, form.reading)
        leaves = [shown] if pixels else []
        gradients: Sequence[Tensor | None] = [None]
        if value.requires_grad:
            try:
                gradients = torch.autograd.grad(value, [*leaves, *behind], allow_unused=True)
            except CheckpointError:
                if shown.requires_grad:
                    raise
                # What gradient checkpointing computes again knows nothing of a graph that begins at a layer.
                recomputes["always"] = True
                return _evidence(request, twin, config, form, levels, images, index, pixels, compiled)
    if not value.requires_grad or (pixels and gradients[0] is None):
        raise ValueError("the model's output has no gradient with respect to the image: the model detaches a tensor")
    found = [
        ops.layer_evidence(level.spatial(activation.detach()), level.spatial(_reached(level, gradient))).float()
        for level, activation, gradient in zip(levels, activations, gradients[len(leaves) :], strict=True)
    ]
    own = gradients[0]
    return [evidence_of_pixels(own.abs()).float(), *found] if pixels and own is not None else found


def _watched_pass(
    model: Model, images: Tensor, form: ModelForm, precision: Precision, levels: Sequence[Activation]
) -> tuple[Tensor, list[Tensor], list[Any]]:
    """Return the model's output, its levels' activations, and the activations' places in autograd's graph."""
    with capture(levels) as captured:
        output = shown_to(model, images, form, precision)
    kept = [_captured(level, one, len(images)) for level, one in zip(levels, captured.found, strict=True)]
    return output, [one.output for one in kept], [one.edge for one in kept]


def _tapped_pass(
    model: Model, images: Tensor, zeros: list[Tensor], tap: Tap, form: ModelForm, precision: Precision
) -> tuple[Tensor, list[Tensor], list[Any]]:
    """Do the same for the compiler, without places in a graph: gradients are then those of the zeros."""
    if not torch.compiler.is_dynamo_compiling():  # is_compiling is true for every thread while one compiles
        return _watched_pass(model, images, form, precision, tap.activations)
    tap.start(zeros)
    output = shown_to(model, images, form, precision)
    return output, tap.finish(), []


def _compiles(request: Request, config: PathConfig, levels: Sequence[Activation]) -> bool:
    """Tell whether the passes are compiled; a model that its owner has compiled stays as it is."""
    model, rows = request.models[0], len(request.images) * config.views
    kind = ("depths", config.precision, tuple(levels))
    choice = auto_compile(model, kind, "the depths", config.compile, request.images.device)
    if holds_compiled(model):
        return False
    if not isinstance(choice, str):
        choice = choice.mode(work_of(rows, request.chunks.size, request.probed[0].saved_bytes), ())
    return choice != "off"


def _compiled_pass(model: Model, config: PathConfig, levels: Sequence[Activation]) -> tuple[Compiled, Tap]:
    known: dict[Hashable, tuple[Compiled, Tap]] = cache_of(model, "depths")
    key = config.precision, tuple(levels)
    if key not in known:
        # The tap is an argument: compiled graphs are looked up by function, which all taps share.
        known[key] = Compiled(_tapped_pass, f"the depths of {type(model).__name__}"), Tap(levels)
    return known[key]


def _reached(level: Activation, gradient: Tensor | None) -> Tensor:
    if gradient is None:
        raise ValueError(
            f"the layer {level.name!r} has no gradient in a pass of other images than the first: name layers that "
            "always lead to the output, layers=(...)"
        )
    return gradient


def _captured(level: Activation, found: Captured | None, images: int) -> Captured:
    if found is None:
        raise ValueError(
            f"the layer {level.name!r} did not run, or without a gradient, in a pass of other images than the first: "
            "name layers that always run, layers=(...)"
        )
    if len(found.output) != images:
        raise passed_on_in_pieces(level.name, len(found.output), images)
    if found.overwritten:
        raise ValueError(
            f"the layer {level.name!r} was changed in place in a pass of other images than the first: name layers that "
            "the model always leaves as they are, layers=(...)"
        )
    return found


def _usable(evidence: DepthEvidence, collected: bool, entering: bool, image_ids: Tensor) -> DepthEvidence:
    """Warn of images without evidence, and zero the evidence where it is not finite.

    Args:
        evidence: the evidence, not negative.
        collected: whether the pixels' evidence was collected.
        entering: whether the map uses the pixels' evidence; if not, it is checked separately.
        image_ids: the images' names in the warning.
    """
    pixels, layers = evidence.pixels, evidence.layers
    peaks = layers.amax(1)  # NaN where a value is
    usable = clean = peaks < math.inf
    if collected:
        own = pixels.amax((1, 2))
        clean = usable & (own < math.inf)
        if entering:
            peaks, usable = torch.maximum(peaks, own), clean
    if bool((clean & (peaks > 0)).all()):
        return evidence
    where = "in every layer and at every pixel" if entering else "in every layer"
    for flags, what in (
        (peaks == 0, f"is zero {where}: it adds nothing to the map"),
        (~usable, "was NaN or infinite: it is left out of the map"),
        (usable & ~clean, "was NaN or infinite at pixels, which the map does not use: these are set to zero"),
    ):
        if bool(flags.any()):
            warn(f"the evidence of image(s) {image_ids[flags].tolist()[:5]} {what}")
    return evidence._replace(
        pixels=torch.where(clean[:, None, None], pixels, torch.zeros_like(pixels)),
        layers=torch.where(usable[:, None], layers, torch.zeros_like(layers)),
    )
