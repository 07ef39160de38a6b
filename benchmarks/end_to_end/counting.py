"""Count the passes of a model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn


class _CountBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor, owner: Counted) -> Tensor:
        ctx.owner = owner
        return pixels.view_as(pixels)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.owner.backward_images[tuple(gradients[0].shape[-2:])] += len(gradients[0])
        return gradients[0], None


class Counted(nn.Module):
    """A model's outputs, and how many images passed through it, by their size (height, width).

    Attributes:
        forward_images: forward passes.
        backward_images: backward passes that reach the image.
        begun_images: backward passes, whether they reach it or end on the way.
        batches: (images, height, width) of every forward pass, in their order.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forward_images: Counter[tuple[int, int]] = Counter()
        self.backward_images: Counter[tuple[int, int]] = Counter()
        self.begun_images: Counter[tuple[int, int]] = Counter()
        self.batches: list[tuple[int, int, int]] = []
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of the model within."""
        size = (pixels.shape[-2], pixels.shape[-1])
        self.forward_images[size] += len(pixels)
        self.batches.append((len(pixels), *size))
        if pixels.requires_grad:
            pixels = _CountBackward.apply(pixels, self)
        found: Tensor = self.model(pixels)
        if found.requires_grad:
            found.register_hook(lambda gradient: self.begun_images.update({size: len(gradient)}))  # type: ignore[no-untyped-call]
        return found


class SmallConvolution(nn.Module):
    """Logits of a layer's activation: as little to compute as a method that looks into a model can do with."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, classes, 3, stride=2)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (P, classes)."""
        return self.layer(pixels).relu().mean((2, 3))


class MeanColour(nn.Module):
    """Logits of an image's mean colour: next to nothing to compute, and never a zero gradient."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        weight = torch.eye(classes, 3) - 0.5
        self.weight = nn.Parameter(weight)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (P, classes)."""
        return pixels.mean((2, 3)) @ self.weight.T
