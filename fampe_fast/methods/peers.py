"""Captum's gradient methods behind the same call, for comparison; nothing of them is written again here."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from ..checks import check_count, check_image_ids
from ..cpu_memory import kept_memory
from ..engine.targets import Target, Targets, resolve_targets
from ..engine.validation import check_images
from ..model_care import Model, check_model, chunk_size, frozen_parameters, memory_format
from ..progress import progress
from .base import wrapped

PeerName = Literal["integrated_gradients", "smoothgrad", "saliency"]


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ImportError as error:
        raise ImportError(
            "integrated_gradients, smoothgrad and saliency come from Captum, which is not installed: "
            "pip install 'fampe_fast[peers]'"
        ) from error
    module: ModuleType = captum.attr
    return module


class CaptumMethod:
    """One of Captum's methods, image by image, so that a map does not depend on its batch.

    Args:
        model: classifier in pixel space, in evaluation mode.
        name: ``integrated_gradients`` (black baseline, Gauss-Legendre), ``smoothgrad`` (squared gradients off, absolute
            value off) or ``saliency`` (absolute gradient).
        passes: forward and backward passes per image; ``saliency`` needs one and ignores it.
        noise: standard deviation of SmoothGrad's noise, in pixel units.
        seed: of SmoothGrad's noise; with the image's id it names the image's stream.
        bounds: smallest and largest pixel value; the smallest is the baseline of integrated gradients.
        absolute: whether ``saliency`` loses its signs; the others keep theirs.

    Raises:
        ImportError: Captum is not installed; the message says how to get it.
        ValueError: an unknown name, or passes below 1.
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
        absolute: bool = True,
    ) -> None:
        attr = _captum()
        if name not in ("integrated_gradients", "smoothgrad", "saliency"):
            raise ValueError(f"unknown method {name!r} of Captum")
        self.forward_func, self.name, self.passes = model, name, check_count("passes", passes)
        self.noise, self.seed, self.bounds, self.absolute = noise, seed, bounds, absolute
        self._layout = memory_format(model)
        if name == "integrated_gradients":
            self._method = attr.IntegratedGradients(self._logits)
        else:
            self._method = attr.Saliency(self._logits)
        self._tunnel = attr.NoiseTunnel(self._method) if name == "smoothgrad" else None

    @property
    def multiplies_by_inputs(self) -> bool:
        """What Captum's method says."""
        return bool(getattr(self._method, "multiplies_by_inputs", False))

    def has_convergence_delta(self) -> bool:
        """False: the delta is Captum's to compute, on its own method."""
        return False

    def _logits(self, pixels: Tensor) -> Tensor:
        return self.forward_func(pixels.contiguous(memory_format=self._layout))

    @wrapped
    def attribute(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        image_ids: Sequence[int] | Tensor | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Explain a batch of images; arguments, result and errors as of ``FAMPE.attribute``."""
        images = check_images(inputs, self.bounds)
        check_model(self.forward_func, images)
        ids = check_image_ids(image_ids, images).tolist()
        chunk = chunk_size(internal_batch_size, images.device)
        targets = resolve_targets(self.forward_func, images, target)
        maps = torch.empty_like(images)
        with (
            progress(len(images), self.name, show_progress) as advance,
            frozen_parameters(self.forward_func),
            kept_memory(images.device),
        ):
            for index in range(len(images)):
                maps[index] = self._one(images[index : index + 1], self._target(targets, index), ids[index], chunk)[0]
                advance(1)
        return maps

    def _one(self, image: Tensor, target: int | tuple[int, ...], image_id: int, chunk: int) -> Tensor:
        image = image.clone().requires_grad_()  # Captum warns where it has to ask for it
        if self._tunnel is not None:
            # Captum draws from the global generator: seed it, and leave it as it was.
            devices = [image.device] if image.device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed((self.seed * 0x9E3779B97F4A7C15 + image_id) % 2**63)
                found: Tensor = self._tunnel.attribute(
                    image,
                    nt_type="smoothgrad",
                    nt_samples=self.passes,
                    nt_samples_batch_size=min(chunk, self.passes),
                    stdevs=self.noise,
                    target=target,
                    abs=False,
                )
        elif self.name == "integrated_gradients":
            found = self._method.attribute(
                image, baselines=self.bounds[0], target=target, n_steps=self.passes, internal_batch_size=chunk
            )
        else:
            found = self._method.attribute(image, target=target, abs=self.absolute)
        return found.detach().float()

    @staticmethod
    def _target(targets: Targets, index: int) -> int | tuple[int, ...]:
        chosen = int(targets.classes[index])
        return (chosen, *targets.place) if targets.place else chosen
