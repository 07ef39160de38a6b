"""Follow the path from an image through its neighbourhood, and collect the attribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import ops
from ..errors import warn
from ..frequency.low_pass import low_pass
from ..runtime.cast_weights import cast_weights
from ..runtime.model import frozen_parameters
from .aggregation import GradientLoop
from .config import PathConfig
from .depth import DepthEvidence
from .precision import cast_dtype
from .request import Request
from .samplers import Batch, sampler_of
from .schedule import Schedule

_RADIUS = 3


@dataclass(frozen=True)
class PathDetails:
    """The details of a run beyond its maps.

    Attributes:
        target: (B,) int64, the class explained.
        attribution: (B, C, H, W) float32, the path's attribution, before any post-processing.
        cutoff: (B,) float32, cut-off in cycles over the shorter side, or None for methods without one.
        perturbed: (B, C, H, W) float32, the end of the path, x_T.
        gradient_scale: (T, B) float32, mean absolute value of the smoothed mean gradient at each step.
        model_passes: forward and backward passes per image: T * N, twice that with an explorer, and one for each view.
        depths: the evidence of the pixels and of every layer, if there were views.
    """

    target: Tensor
    attribution: Tensor
    cutoff: Tensor | None
    perturbed: Tensor
    gradient_scale: Tensor
    model_passes: int
    depths: DepthEvidence | None = None


class Constraint(Protocol):
    """Restricts a path to a set, such as a band of frequencies, in addition to the ball and the bounds."""

    def gradient(self, gradient_sum: Tensor) -> Tensor:
        """Project a summed gradient (B, C, H, W) onto the set."""

    def images(self, images: Tensor, origin: Tensor) -> Tensor:
        """Project x_{t+1}, (B, C, H, W), onto the set, within the ball around x_0 (``origin``) and the bounds."""


def smoothing_kernel(device: torch.device) -> Tensor:
    """Compute seven values of the normal density at -3..3, scaled to sum to 1."""
    points = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64, device="cpu")
    density = torch.exp(-(points**2) / 2) / math.sqrt(2 * math.pi)
    return (density / density.sum()).float().to(device)


def follow_path(
    request: Request,
    config: PathConfig,
    on_step: Callable[[int], None] = lambda done: None,
    constraint: Constraint | None = None,
) -> PathDetails:
    """Walk T steps and collect ``A = -sum_t (x_{t+1} - x_t) * g_t``.

    Args:
        request: x_0, targets and ids of the images, samples per model pass, and the models; if there is a second one,
            its gradients decide the steps in place of the first one's.
        config: the configuration of the path and its samples.
        on_step: called with 1 after every step.
        constraint: constraint on the images; the attribution is then that of the steps before projection.

    Returns:
        The details, the attribution among them. Warns (``FampeWarning``) of images whose gradient was zero at every
        step, whose map is zero, and of those whose gradient was not finite at some step.
    """
    images, device = request.images, request.images.device
    seed = torch.tensor(config.seed, device=device)
    kernel = smoothing_kernel(device) if config.smoothing else torch.zeros(0, dtype=torch.float32, device=device)
    # Only this sign decides the direction: a negative step ascends the loss.
    step_size = config.eps / max(config.steps, 1) * (1 if config.direction == "descend" else -1)
    count, _, height, width = images.shape
    sampler, schedule = sampler_of(config), Schedule(config, count, height, width, device)
    # A CUDA graph holds the casts, and is recorded again for weights that lie elsewhere in every call.
    dtype = None if config.compile == "graphs" else cast_dtype(config.precision)

    def gradients(of: GradientLoop, batch: Batch, step: int) -> Tensor:
        total = of(batch, step)
        if config.gradient_cutoff is not None:
            total = low_pass(total, config.gradient_cutoff)
        return total if constraint is None else constraint.gradient(total)

    def advance(current: Tensor, gradient_sum: Tensor, momentum: Tensor, attribution: Tensor) -> ops.StepResult:
        return ops.gradient_step(
            current,
            images,
            gradient_sum,
            momentum,
            attribution,
            kernel,
            config.samples,
            config.decay,
            step_size,
            config.eps,
            *config.bounds,
        )

    current, momentum, attribution = images, torch.zeros_like(images), torch.zeros_like(images)
    guide = momentum
    # Made before the loop: small results kept from every step would lie between the large blocks that are freed.
    gradient_scale = torch.empty(config.steps, count, dtype=torch.float32, device=device)
    with torch.no_grad(), ExitStack() as held:
        loops = []
        for model, probed, takes_frames in zip(request.models, request.probed, request.takes_frames, strict=True):
            held.enter_context(frozen_parameters(model))
            loops.append(
                GradientLoop(
                    model,
                    probed,
                    takes_frames,
                    twin=held.enter_context(cast_weights(model, dtype)),
                    sampler=sampler,
                    config=config,
                    schedule=schedule,
                    chunks=request.chunks,
                )
            )
        loop, explorer = loops[0], loops[1] if len(loops) > 1 else None
        spectrum = sampler.transform(images)
        prepared = sampler.prepare(images, spectrum)
        for step in range(config.steps):
            if step > 0:
                spectrum = sampler.transform(current)
            number = schedule.step_number(step)
            batch = Batch(spectrum, prepared, seed, number, request.image_ids, request.targets, height, width)
            own = advance(current, gradients(loop, batch, step), momentum, attribution)
            if explorer is None:
                arrived, attribution = own.images, own.attribution
            else:
                led = advance(current, gradients(explorer, batch, step), guide, attribution)
                arrived, guide = led.images, led.momentum
                attribution = attribution - math.copysign(1, step_size) * (arrived - current) * own.momentum
            momentum = own.momentum
            current = arrived if constraint is None else constraint.images(arrived, images)
            gradient_scale[step] = own.scale
            on_step(1)
    if config.steps:
        _warn_of_unusable(gradient_scale, request.image_ids)
    passes = config.steps * config.samples * len(request.models)
    return PathDetails(request.targets.classes, attribution, prepared.cutoff, current, gradient_scale, passes)


def _warn_of_unusable(scale: Tensor, image_ids: Tensor) -> None:
    zero = (scale == 0).all(0)
    strange = ~scale.isfinite().all(0)
    if not bool((zero | strange).any()):
        return
    for flags, what in (
        (zero, "is zero at every step: the path adds nothing to the map"),
        (strange, "was NaN or infinite: steps left out"),
    ):
        if bool(flags.any()):
            ids = image_ids[flags].tolist()
            warn(f"the gradient of image(s) {ids[:5]} {what}")
