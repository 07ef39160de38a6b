"""Attack with FAMPE's path and a perturbation limited to one band of frequencies.

After the proposal of Wang et al., "Towards Frequency-Based Explanation for Robust CNN", arXiv 2005.03141. The path is
that of iterative sign attacks with momentum (Dong et al., MI-FGSM, arXiv 1710.06081).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..catalog import ATTACK_DEFAULTS
from ..checks import check_count
from ..engine.config import PathConfig
from ..engine.path import Constraint, follow_path
from ..engine.request import prepared
from ..engine.targets import Target
from ..progress import progress
from ..reference.radius import squared_radius
from ..runtime.model import Model, check_callable
from .attack_bands import Band as Band
from .attack_bands import BandLimit, share_inside
from .guided_smoothing import GuidedSmoothing, check_smoothness

DEFAULT_CONFIG = PathConfig(samples=1, **ATTACK_DEFAULTS)  # type: ignore[arg-type]
"""The plain iterative sign attack: one gradient a step, momentum 1, 8/255."""


@dataclass(frozen=True, eq=False)
class AdversarialImages:
    """The result of an attack.

    Attributes:
        images: (B, C, H, W) float32, inside the ball around the originals and inside the bounds.
        target: (B,) int64, the attacked class.
        band_share: (B,) float64 on the CPU, the share of the perturbation's energy in the band; the rest is due to the
            last clamp. 1 for a perturbation of zero.
        model_passes: largest number of passes per image: T * N forward and backward passes, or queries.
        queries: (B,) int64 on the CPU, the passes of each image; None if each took ``model_passes``.
    """

    images: Tensor
    target: Tensor
    band_share: Tensor
    model_passes: int
    queries: Tensor | None = None


class BandLimitedAttack:
    """Increase the loss of a class within a maximum-norm ball, with a perturbation in one band of frequencies.

    Each step projects the gradient onto the band, moves by ``eps/T * sign(g)`` of the result g, and brings the
    perturbation back into the band, the ball and the bounds by projecting onto the band and clamping in turn
    (alternating projections onto convex sets, whose intersection contains zero). The clamp comes last, so ball and
    bounds hold exactly and the band approximately: ``AdversarialImages.band_share`` reports how well (for MobileNetV2
    and eight photographs above 0.9999 with the default projections, 0.997 with one each). Scaling the perturbation down
    instead would satisfy all three exactly, but leave nothing if a single pixel lies on a bound.

    Args:
        model: nn.Module or callable from pixels (B, C, H, W) to logits (B, classes), in evaluation mode.
        band: ``low``: ``r <= cutoff``, the mean included; ``middle``: ``cutoff < r <= upper_cutoff``; ``high``: all
            beyond; ``all``: no limit.
        cutoff: radius where the low band ends, in cycles over the shorter side, 0 or more; has no effect for ``all``.
        config: steps, eps, momentum, seed... A ``PathConfig`` uses the gradient at the images themselves; a
            ``FAMPEConfig`` or an ``AttEXploreConfig`` averages it over the method's samples. Its direction is set to
            ``ascend``, and its views, which only maps have, to 0. Smoothing weakens gradients above about 0.2 cycles
            per pixel: switch it off for the high band.
        step_projections: number of alternating projections after each step.
        final_projections: number of alternating projections after the last step.
        upper_cutoff: radius where the high band begins; None is the cut-off, without a middle band.
        smoothness: strength of smoothing each step along the image before the band, in [0, 1): 0 for none; near 1 the
            perturbation follows the image, smooth in flat areas and sharp at edges (``GuidedSmoothing``).

    Raises:
        TypeError: a model that cannot be called, a configuration or a number of a wrong type.
        ValueError: an unknown band, a middle band without a radius, a radius or a smoothness out of range, fewer than
            one projection.

    Example:
        >>> attack = BandLimitedAttack(load_classifier("resnet50"), band="low", cutoff=15)
        >>> fooled = attack(images, labels).images
    """

    def __init__(
        self,
        model: Model,
        band: Band = "all",
        cutoff: float = 30.0,
        config: PathConfig | None = None,
        *,
        step_projections: int = 2,
        final_projections: int = 30,
        upper_cutoff: float | None = None,
        smoothness: float = 0.0,
    ) -> None:
        check_callable(model)
        if config is not None and not isinstance(config, PathConfig):
            raise TypeError(f"config must be a PathConfig, got {type(config).__name__}")
        self.forward_func = model
        self.limit = BandLimit(band, cutoff, upper_cutoff)
        self.config = dataclasses.replace(DEFAULT_CONFIG if config is None else config, direction="ascend", views=0)
        self.step_projections = check_count("step_projections", step_projections)
        self.final_projections = check_count("final_projections", final_projections)
        self.smoothness = check_smoothness(smoothness)

    def __call__(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        image_ids: Sequence[int] | Tensor | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> AdversarialImages:
        """Attack a batch of images.

        Args:
            inputs: (B, C, H, W), floating-point, values in ``config.bounds``, at least 8 x 8 pixels.
            target: the class whose loss is increased: None for the model's argmax; an int for all images; a list or a
                tensor (B,); for models with several output dimensions a tuple (class, position...).
            image_ids: (B,) integers that name the images in the random stream; default: their position.
            internal_batch_size: samples per model pass. Default: 8 on a CPU, 64 on a GPU.
            show_progress: show a progress bar of the steps on standard error.

        Returns:
            ``AdversarialImages``, on the inputs' device.

        Raises:
            TypeError, ValueError: as for an attribution method's inputs, target, ids and chunk size; ValueError also
                for a band without frequencies for images of this size.
        """
        config = self.config
        with prepared(
            (self.forward_func,),
            inputs,
            target,
            bounds=config.bounds,
            image_ids=image_ids,
            internal_batch_size=internal_batch_size,
            precision=config.precision,
            input_diversity=config.input_diversity,
        ) as request:
            self.check_size(*request.images.shape[-2:])
            constraint: Constraint = _BandConstraint(self.limit, config, self.step_projections)
            if self.smoothness:
                constraint = _SmoothConstraint(constraint, request.images, self.smoothness)
            with progress(config.steps, f"attack, {self.limit.band} band", show_progress) as advance:
                details = follow_path(request, config, advance, constraint)
            last = _BandConstraint(self.limit, config, self.final_projections)
            final = last.images(details.perturbed, request.images)
            share = self.band_share(final - request.images)
        return AdversarialImages(final, request.targets.classes, share, config.steps * config.samples)

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of H x W pixels if none of their frequencies lies in the band.

        Raises:
            ValueError: the band is empty.
        """
        self.limit.check_size(height, width, squared_radius(height, width, dtype=torch.float64))

    def band_share(self, perturbation: Tensor) -> Tensor:
        """Compute the share of a perturbation's energy in the band, (B,) float64 on the CPU; 1 for one of zero."""
        values = perturbation.detach().cpu().double()
        return share_inside(self.limit.project(values), values)


class _BandConstraint:
    """Keeps band, ball and bounds by alternating projections, the clamp last."""

    def __init__(self, limit: BandLimit, config: PathConfig, rounds: int) -> None:
        self._limit, self._config, self._rounds = limit, config, rounds

    def gradient(self, gradient_sum: Tensor) -> Tensor:
        return self._limit.project(gradient_sum)

    def images(self, images: Tensor, origin: Tensor) -> Tensor:
        config = self._config
        lower = (origin - config.eps).clamp(min=config.bounds[0])
        upper = (origin + config.eps).clamp(max=config.bounds[1])
        if self._limit.band == "all":
            return images.clamp(lower, upper)
        current = images
        for _ in range(self._rounds):
            current = (origin + self._limit.project(current - origin)).clamp(lower, upper)
        return current


class _SmoothConstraint:
    """Smooths steps along the image before another constraint; a weighted mean of steps stays in the ball."""

    def __init__(self, inner: Constraint, origin: Tensor, smoothness: float) -> None:
        self._inner, self._smooth, self._current = inner, GuidedSmoothing(origin, smoothness), origin

    def gradient(self, gradient_sum: Tensor) -> Tensor:
        return self._inner.gradient(gradient_sum)

    def images(self, images: Tensor, origin: Tensor) -> Tensor:
        moved = self._current + self._smooth(images - self._current)
        self._current = self._inner.images(moved, origin)
        return self._current
