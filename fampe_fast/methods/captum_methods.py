"""Call Captum's gradient methods through the same interface as all others, for comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..checks import check_bounds, check_count, check_flag, check_gaussian_cutoff, check_number, check_seed
from ..engine.request import Request
from ..frequency.two_scale import blurred_map, two_scale_map
from ..progress import progress
from ..runtime.model import Model, check_callable, frozen_parameters
from ..runtime.model_probe import call
from .base import RequestMethod, warn_of_strange

PeerName = Literal["integrated_gradients", "smoothgrad", "saliency"]


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError(
            "integrated_gradients, smoothgrad and saliency come from Captum, which is not installed: pip install captum"
        ) from error
    module: ModuleType = captum.attr
    return module


class CaptumMethod(RequestMethod):
    """One of Captum's methods, applied image by image, so that a map does not depend on its batch.

    It explains the model's output for the target unchanged: a logit, or a probability if the model returns those.

    Args:
        model: classifier in pixel space, in evaluation mode.
        name: ``integrated_gradients`` (black baseline, Gauss-Legendre), ``smoothgrad`` (the mean gradient of noisy
            copies) or ``saliency`` (the gradient).
        passes: number of forward and backward passes per image, at least 1; ``saliency`` makes one.
        noise: standard deviation of SmoothGrad's noise, in pixel units, 0 or more.
        seed: seed of SmoothGrad's noise, any 64-bit integer; together with the image's id it determines the noise.
        bounds: smallest and largest pixel value; the smallest is the baseline of integrated gradients.
        absolute: take the map's absolute values, so that pixels are ranked by magnitude, whatever their sign. None is
            the method's usual choice: yes for ``saliency`` and for squares, no for the others.
        squared: average the squares of SmoothGrad's gradients (Hooker et al., NeurIPS 2019), not the gradients.
        blur_cutoff: blur the map with a Gaussian of this cut-off, in cycles over the shorter side
            (``frequency.blurred_map``); None for no blur.
        area_cutoff: cut-off of ``frequency.two_scale_map``, as in FAMPE; None leaves the map unchanged.

    Raises:
        ImportError: Captum is not installed; the message says how to install it.
        TypeError: a value of a wrong type.
        ValueError: an unknown name, a value out of range, or both cut-offs.
    """

    def __init__(
        self,
        model: Model,
        name: PeerName,
        *,
        passes: int = 50,
        noise: float = 0.15,
        seed: int = 0,
        bounds: tuple[float, float] = (0.0, 1.0),
        absolute: bool | None = None,
        squared: bool = False,
        blur_cutoff: float | None = None,
        area_cutoff: float | None = None,
    ) -> None:
        attr = _captum()
        if name not in get_args(PeerName):
            raise ValueError(f"unknown method {name!r} of Captum; known are {', '.join(get_args(PeerName))}")
        check_callable(model)
        if not isinstance(absolute, bool | None):
            raise TypeError(f"absolute must be True, False or None, got {absolute!r}")
        self.forward_func, self.name = model, name
        self.passes = 1 if name == "saliency" else check_count("passes", passes)
        self.noise: float = check_number("noise", noise, 0, math.inf)
        self.seed, self.bounds = check_seed(seed), check_bounds(bounds)
        self.squared = check_flag("squared", squared)
        self.absolute = (name == "saliency" or self.squared) if absolute is None else absolute
        if blur_cutoff is not None and area_cutoff is not None:
            raise ValueError(f"give blur_cutoff or area_cutoff, not both; got {blur_cutoff!r} and {area_cutoff!r}")
        self.blur_cutoff = None if blur_cutoff is None else check_gaussian_cutoff("blur_cutoff", blur_cutoff)
        self.area_cutoff = None if area_cutoff is None else check_gaussian_cutoff("area_cutoff", area_cutoff)
        self._attr = attr

    @property
    def multiplies_by_inputs(self) -> bool:
        """True for integrated gradients, as in Captum."""
        return self.name == "integrated_gradients"

    def describe(self) -> dict[str, object]:
        """Describe all options, including those that this method does not use."""
        options = ("passes", "noise", "seed", "bounds", "absolute", "squared", "blur_cutoff", "area_cutoff")
        return {"method": self.name, "config": {option: getattr(self, option) for option in options}}

    def _explain(self, request: Request, show_progress: bool) -> Tensor:
        model, (probed,) = self.forward_func, request.probed

        def forward(pixels: Tensor) -> Tensor:
            return call(model, pixels, probed)

        maps = torch.empty_like(request.images)
        with (
            progress(len(maps), self.name, show_progress) as advance,
            frozen_parameters(model),
            torch.enable_grad(),
        ):
            for index in range(len(maps)):
                maps[index] = request.chunks.run(partial(self._one, forward, request, index), self.passes)
                advance(1)
        warn_of_strange(maps, request.image_ids)
        maps = maps.abs() if self.absolute else maps
        if self.area_cutoff is not None:
            return two_scale_map(maps, self.area_cutoff).expand_as(maps).contiguous()
        if self.blur_cutoff is not None:
            return blurred_map(maps, self.blur_cutoff).expand_as(maps).contiguous()
        return maps

    def _one(self, forward: Callable[[Tensor], Tensor], request: Request, index: int, chunk: int) -> Tensor:
        """Compute the signed map of one image, (C, H, W) float32."""
        image = request.images[index : index + 1].clone()
        target = request.targets.of(index)
        if self.name == "integrated_gradients":
            with _usual_defaults(image.device):
                found: Tensor = self._attr.IntegratedGradients(forward).attribute(
                    image.requires_grad_(),  # Captum warns when it sets this itself
                    baselines=self.bounds[0],
                    target=target,
                    n_steps=self.passes,
                    internal_batch_size=chunk,
                )
            return found[0].detach().float()
        saliency = self._attr.Saliency(forward)
        if self.name == "saliency":
            found = saliency.attribute(image.requires_grad_(), target=target, abs=False)
            return found[0].detach().float()
        # Captum's NoiseTunnel draws from the global generator, which the caller and all threads share.
        generator = torch.Generator("cpu").manual_seed(_stream(self.seed, int(request.image_ids[index])))
        total = torch.zeros_like(image)
        for start in range(0, self.passes, chunk):
            shape = (min(chunk, self.passes - start), *image.shape[1:])
            noise = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            samples = image + self.noise * noise.to(image.device)
            gradients: Tensor = saliency.attribute(samples.requires_grad_(), target=target, abs=False)
            gradients = gradients.detach().float()
            total += (gradients.square() if self.squared else gradients).sum(0, keepdim=True)
        return total[0] / self.passes


class _InDouble(TorchFunctionMode):
    """Make the tensors that Captum builds from Python floats float64; Captum itself rounds them to float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.tensor and not kwargs and found.dtype in (torch.float16, torch.bfloat16):
            return torch.tensor(args[0], dtype=torch.float64)
        return found


@contextmanager
def _usual_defaults(device: torch.device) -> Iterator[None]:
    """Keep a default device, and a default dtype below float32, out of Captum's own tensors in this thread."""
    with ExitStack() as stack:
        if torch.get_default_device().type != device.type:
            stack.enter_context(device)
        if torch.get_default_dtype() in (torch.float16, torch.bfloat16):
            stack.enter_context(_InDouble())
        yield


def _stream(seed: int, image_id: int) -> int:
    """Compute the seed of an image's generator, different for neighbouring seeds and neighbouring ids."""
    return (seed * 0x9E3779B97F4A7C15 + image_id) % 2**63
