"""The path from an image through its neighbourhood, and the attribution it collects."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .. import ops
from ..errors import warn
from ..frequency.low_pass import low_pass
from ..runtime.model import frozen_parameters
from .aggregation import GradientLoop
from .request import Request
from .samplers import Prepared, Stream
from .schedule import Schedule

_RADIUS = 3


@dataclass(frozen=True)
class PathDetails:
    """What a run knows beyond the maps.

    Attributes:
        target: (B,) int64, the class explained.
        attribution: (B, C, H, W) float32, what the path collected, before anything is made of it.
        cutoff: (B,) float32, cut-off in cycles over the shorter side, or None for methods without one.
        perturbed: (B, C, H, W) float32, the end of the path, x_T.
        gradient_scale: (T, B) float32, mean absolute value of the smoothed mean gradient at each step.
        model_passes: forward and backward passes per image: T * N, twice that with an explorer.
    """

    target: Tensor
    attribution: Tensor
    cutoff: Tensor | None
    perturbed: Tensor
    gradient_scale: Tensor
    model_passes: int


class Constraint(Protocol):
    """Keeps a path in a set of its own, such as a band of frequencies, on top of the ball and the bounds."""

    def gradient(self, gradient_sum: Tensor) -> Tensor:
        """A summed gradient (B, C, H, W) as the path is to see it."""

    def images(self, images: Tensor, origin: Tensor) -> Tensor:
        """x_{t+1}, (B, C, H, W), brought into the set; inside the ball around x_0, ``origin``, and the bounds."""


def smoothing_kernel(device: torch.device) -> Tensor:
    """Seven values of the normal density at -3..3, summing to 1."""
    points = torch.arange(-_RADIUS, _RADIUS + 1, dtype=torch.float64, device="cpu")
    density = torch.exp(-(points**2) / 2) / math.sqrt(2 * math.pi)
    return (density / density.sum()).float().to(device)


def follow_path(
    loop: GradientLoop,
    request: Request,
    on_step: Callable[[int], None] = lambda done: None,
    constraint: Constraint | None = None,
    explorer: GradientLoop | None = None,
) -> PathDetails:
    """Walk T steps and collect ``A = -sum_t (x_{t+1} - x_t) * g_t``.

    Args:
        loop: sums the gradients of a model, in evaluation mode and on the images' device, over a step's samples.
        request: x_0, targets and ids of the images, samples per model pass, and what is known of the models.
        on_step: called with 1 after every step.
        constraint: of the images; the attribution then is that of the steps before they were brought into it.
        explorer: another model's gradients, which decide the steps in place of the loop's own.

    Returns:
        The details, the attribution among them. Warns (``FampeWarning``) of images whose gradient was zero at every
        step, whose map is zero, and of those whose gradient was not finite at some step.
    """
    images, config = request.images, loop.config
    device = images.device
    stream = Stream(torch.tensor(config.seed, device=device), request.image_ids)
    kernel = smoothing_kernel(device) if config.smoothing else torch.zeros(0, dtype=torch.float32, device=device)
    # The one place that decides the direction: a negative step climbs the loss.
    step_size = config.eps / config.steps * (1 if config.direction == "descend" else -1)
    batch, _, height, width = images.shape
    schedule = Schedule(config, batch, height, width, device)
    forms = {
        of: of.form(probed, height, width, device, takes_frames)
        for of, probed, takes_frames in zip(
            (loop, explorer) if explorer else (loop,), request.probed, request.takes_frames, strict=True
        )
    }

    def gradients(of: GradientLoop, spectrum: Tensor, prepared: Prepared, step: int) -> Tensor:
        total = request.chunks.run(
            lambda size: of(spectrum, prepared, request.targets, stream, schedule, step, size, forms[of]),
            schedule.most_rows,
        )
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
    gradient_scale = torch.empty(config.steps, batch, dtype=torch.float32, device=device)
    with (
        torch.no_grad(),
        frozen_parameters(loop.model),
        frozen_parameters(explorer.model) if explorer else nullcontext(),
    ):
        spectrum = loop.sampler.transform(images)
        prepared = loop.sampler.prepare(images, spectrum)
        for step in range(config.steps):
            own = advance(current, gradients(loop, spectrum, prepared, step), momentum, attribution)
            if explorer is None:
                arrived, attribution = own.images, own.attribution
            else:
                led = advance(current, gradients(explorer, spectrum, prepared, step), guide, attribution)
                arrived, guide = led.images, led.momentum
                attribution = attribution - math.copysign(1, step_size) * (arrived - current) * own.momentum
            momentum = own.momentum
            current = arrived if constraint is None else constraint.images(arrived, images)
            gradient_scale[step] = own.scale
            if step + 1 < config.steps:
                spectrum = loop.sampler.transform(current)
            on_step(1)
    _warn_of_unusable(gradient_scale, request.image_ids)
    passes = config.steps * config.samples * (1 if explorer is None else 2)
    return PathDetails(request.targets.classes, attribution, prepared.cutoff, current, gradient_scale, passes)


def _warn_of_unusable(scale: Tensor, image_ids: Tensor) -> None:
    zero = (scale == 0).all(0)
    strange = ~scale.isfinite().all(0)
    if not bool((zero | strange).any()):
        return
    for flags, what in (
        (zero, "is zero at every step: the map is zero"),
        (strange, "was NaN or infinite: steps left out"),
    ):
        if bool(flags.any()):
            ids = image_ids[flags].tolist()
            warn(f"the gradient of image(s) {ids[:5]} {what}")
