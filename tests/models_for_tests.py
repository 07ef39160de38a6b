"""Small models whose gradients or outputs are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from fampe_fast import FAMPE, FAMPEConfig
from fampe_fast.runtime.model_probe import probe


def published(model: nn.Module, **options: Any) -> FAMPE:
    """``FAMPEConfig.published()``, for tests that compare maps: all of the engine at work, and the attribution."""
    explorer = options.pop("explorer", None)
    return FAMPE(model, FAMPEConfig.published(**options), explorer=explorer)


class TwoClassLinear(nn.Module):
    """Logits (<w, x>, 0): the gradient of the loss of class 0 is (p - 1) w everywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        score = (pixels * self.weight).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


class Smooth(nn.Module):
    """A small convolutional net without kinks, for tests that compare two ways of computing the same path."""

    def __init__(self, channels: int = 3, classes: int = 5, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.features = nn.Sequential(nn.Conv2d(channels, 8, 5, stride=2), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh())
            self.head = nn.Linear(8, classes)
            nn.init.normal_(self.head.weight, std=3)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels).mean((2, 3)))


def exchange_weight(model: Smooth) -> None:
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())


def exchange_module(model: Smooth) -> None:
    model.head = nn.Linear(8, 5).eval()


def move_data(model: Smooth) -> None:
    model.head.weight.data = model.head.weight.data.clone()


class Rolled(nn.Module):
    """The logit of class 0 is a weighted sum of cells of 4 pixels; a layer on the way shows each at another's place.

    For images of 64 x 64; the last layer has one place for each quadrant.
    """

    def __init__(self, weight: Tensor, cells: int) -> None:
        super().__init__()
        self.small, self.weight = nn.AvgPool2d(4), nn.Parameter(weight, requires_grad=False)
        self.rolled, self.unrolled, self.coarse = _Roll(cells), _Roll(-cells), nn.AvgPool2d(8)
        self.eval()

    @classmethod
    def misled(cls) -> Rolled:
        """Cells count by chance, and the rolled layer shows each where another one is."""
        weight = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) ** 3
        return cls(2 * weight, 5)

    @classmethod
    def right(cls) -> Rolled:
        """The left half counts, and every layer shows it where it is."""
        return cls((torch.arange(16) < 8).float().expand(16, 16).clone(), 0)

    def forward(self, pixels: Tensor) -> Tensor:
        cells = self.unrolled(self.rolled(self.small(pixels)))
        logit = 2.0 * self.coarse(cells * self.weight).sum((1, 2, 3)) - 3.0
        return torch.stack([logit, torch.zeros_like(logit)], 1)


class _Roll(nn.Module):
    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells = cells

    def forward(self, cells: Tensor) -> Tensor:
        return cells.roll(self.cells, 3)


def suited(name: str, classes: int = 5) -> nn.Module:
    """A small smooth model that a method takes, by its name: one of tokens for those that look at attention.

    The test is skipped where the package that a method comes from is not installed.
    """
    if name.endswith(("cam", "gradcam_plus_plus", "fullgrad")):
        pytest.importorskip("pytorch_grad_cam")
    if "attention" not in name:
        return Smooth(classes=classes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(img_size=24, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=classes)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


class Constant(nn.Module):
    """The same logits for every image: no gradient at all."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.new_zeros(len(pixels), 4) + 0 * pixels.sum((1, 2, 3))[:, None]


def asked(model: nn.Module, images: Tensor) -> nn.Module:
    """A model that the package has asked what its output is like, with nothing kept of what it was shown for that."""
    probe(model, images)
    for name in ("shown", "batches", "seen", "forward_images"):
        getattr(model, name, []).clear()
    return model


def some_images(batch: int = 2, channels: int = 3, height: int = 24, width: int = 24, seed: int = 0) -> Tensor:
    """Images away from the bounds, so that no clamp acts on a short path."""
    generator = torch.Generator().manual_seed(seed)
    return 0.25 + 0.5 * torch.rand(batch, channels, height, width, generator=generator)
