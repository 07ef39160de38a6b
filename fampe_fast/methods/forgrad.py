"""Define FORGrad, a low-pass that removes the high frequencies of gradients, which are artefacts of downsampling.

Muzellec, Fel, Boutin, Andéol, VanRullen and Serre, "Saliency strikes back: how filtering out high frequencies improves
white-box explanations", ICML 2024, arXiv 2307.09591. ``FORGrad`` filters finished maps as the authors' public code
does. ``LowPassGradients`` (inside any gradient method, Captum's included) and ``gradient_cutoff`` (inside FAMPE's own
aggregation) low-pass the signed gradient of every channel with the same disc; neither is the authors' filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import check_cutoff, check_flag
from ..engine.targets import Target
from ..frequency.low_pass import DEFAULT_CUTOFF, filtered_map, low_pass
from ..runtime.model import Model, check_callable
from ..runtime.outputs import Output, declared_output, logits_in
from .base import asks_for_gradients, captum_call, describe, passes_of


class FORGrad:
    """Low-pass any method's maps: the channels' mean, its absolute value, the hard disc, and its absolute value.

    Args:
        method: the method whose maps are filtered: one of this package, or a Captum ``Attribution`` (which must accept
            ``attribute(inputs, target=...)``).
        cutoff: radius of the disc in cycles over the shorter side, 0 or more; ``tune_cutoff`` finds the best one.
        signed: filter the channels' mean with its signs, without the first absolute value, unlike the authors' public
            code (``frequency.filtered_map``). It needs a method with signed maps.

    Raises:
        TypeError: a method without ``attribute``, a cut-off that is not a number, or ``signed`` that is not a bool.
        ValueError: a cut-off that is negative or not finite.
    """

    def __init__(self, method: Any, cutoff: float = DEFAULT_CUTOFF, *, signed: bool = False) -> None:
        if not callable(getattr(method, "attribute", None)):
            raise TypeError(f"method must have a method 'attribute', got {type(method).__name__}")
        self.method = method
        self.cutoff = check_cutoff("cutoff", cutoff)
        self.signed = check_flag("signed", signed)
        self.forward_func = getattr(method, "forward_func", None)

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self).__name__

    @property
    def passes(self) -> int:
        """Passes of the filtered method; 1 if it does not tell."""
        return passes_of(self.method)

    @property
    def gradients(self) -> bool:
        """Whether the filtered method needs the model's gradients."""
        return asks_for_gradients(self.method)

    def describe(self) -> dict[str, object]:
        """Describe the filter, and under ``filtered`` the method."""
        return {
            "method": self.name,
            "map_cutoff": self.cutoff,
            "filtered": describe(self.method),
            "signed": self.signed,
        }

    @property
    def multiplies_by_inputs(self) -> bool:
        """The filtered method's own."""
        return bool(getattr(self.method, "multiplies_by_inputs", False))

    def has_convergence_delta(self) -> bool:
        """Return False: a filtered map need not sum to any value."""
        return False

    @captum_call
    def attribute(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        image_ids: Sequence[int] | Tensor | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Explain a batch of images.

        Args:
            inputs: (B, C, H, W), as for the method.
            target: as for the method.
            image_ids: passed on to the method if given.
            internal_batch_size: passed on to the method if given.
            show_progress: passed on to the method if true.

        Returns:
            (B, C, H, W), not negative, the same in every channel.

        Raises:
            Whatever the method raises.
        """
        options: dict[str, Any] = {"image_ids": image_ids, "internal_batch_size": internal_batch_size}
        options = {name: value for name, value in options.items() if value is not None}
        if show_progress:
            options["show_progress"] = True
        maps: Tensor = self.method.attribute(inputs, target=target, **options)
        return filtered_map(maps.detach(), self.cutoff, signed=self.signed).expand(maps.shape).contiguous()


class _LowPassBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, cutoff: float) -> Tensor:
        ctx.cutoff = cutoff
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return low_pass(gradients[0], ctx.cutoff), None


class LowPassGradients(nn.Module):
    """A model with unchanged outputs whose gradients with respect to its input are low-passed, channel by channel.

    Every gradient method gets filtered gradients, before it squares, averages or multiplies them. They keep their
    signs: this is the filter of ``FORGrad(..., signed=True)``, not that of the authors' public code.

    Args:
        model: classifier in pixel space.
        cutoff: radius of the disc in cycles over the shorter side, 0 or more.

    Raises:
        TypeError: a model that cannot be called, or a cut-off that is not a number.
        ValueError: a cut-off that is negative or not finite.
    """

    def __init__(self, model: Model, cutoff: float = DEFAULT_CUTOFF) -> None:
        super().__init__()
        check_callable(model)
        self.model = model
        self.cutoff = check_cutoff("cutoff", cutoff)
        self.training = model.training if isinstance(model, nn.Module) else False

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the logits of images (B, C, H, W)."""
        return logits_in(self.model(_LowPassBackward.apply(pixels, self.cutoff)))

    @property
    def output(self) -> Output | None:
        """The meaning of the model's output, as ``Classifier.output``."""
        return declared_output(self.model)
