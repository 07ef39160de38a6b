"""Define networks that train in seconds on the images of the defence experiment."""

from __future__ import annotations

from torch import Tensor, nn


class SmallNet(nn.Module):
    """Two convolutions and an average over the image, for textures; trains in seconds."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(16, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (B, classes)."""
        logits: Tensor = self.head(self.features(pixels).mean((2, 3)))
        return logits


class DigitNet(nn.Module):
    """Two convolutions at full resolution and a head over all positions, for grey images of 8 x 8 pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AvgPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(32 * 4 * 4, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (B, classes)."""
        logits: Tensor = self.head(self.features(pixels).flatten(1))
        return logits
