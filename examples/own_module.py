"""Explain a module of your own, and say in one word whether it returns logits, probabilities or independent scores.

    python examples/own_module.py

A small network learns, in seconds, to tell fine textures from coarse ones in images that this package generates. It is
explained in four forms: with one logit for "fine", with a logit for each class, with probabilities, and as a plain
function. Of fine images that the network gets right, prints the share of each form's map that lies in the textured
object; a map made by chance has the object's share of the image. Then the refusal of a form without its word.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

from fampe_fast import FAMPE, Classifier
from fampe_fast.images.generated import CLASS_NAMES, generate
from fampe_fast.metrics import relevance_mass


class FineTexture(nn.Module):
    """Score "the texture is fine" by one logit, of pixels in [0, 1]: the normalisation is a part of the model."""

    output = "sigmoid"  # the meaning of the logit; without this word a model of one value per image is refused

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 7, 2, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()
        )
        self.head = nn.Linear(32, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (B, 1) of images (B, 3, H, W) in [0, 1]."""
        logits: Tensor = self.head(self.features((pixels - 0.5) / 0.25).amax((2, 3)))
        return logits


class TwoLogits(nn.Module):
    """Give "coarse" a logit too, so that either class can be explained; the softmax of (0, z) is the sigmoid of z."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (B, 2)."""
        fine = self.network(pixels)
        return torch.cat([torch.zeros_like(fine), fine], 1)


def main() -> None:
    """Train the network, and explain it in four forms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-steps", type=int, default=200)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    known = generate(256, size=64)
    fine = torch.tensor([CLASS_NAMES[label].startswith("fine") for label in known.labels])
    network = FineTexture()
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(arguments.train_steps):
        rows = torch.randint(len(known), (32,))
        loss = nn.functional.binary_cross_entropy_with_logits(network(known.images[rows])[:, 0], fine[rows].float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()

    new = generate(32, seed=1, size=64)
    fine = torch.tensor([CLASS_NAMES[label].startswith("fine") for label in new.labels])
    with torch.inference_mode():
        chosen = fine & (network(new.images)[:, 0] > 0)
    images, masks = new.images[chosen], new.masks[chosen]
    share = float(masks.float().mean())
    print(f"{len(images)} of {int(fine.sum())} fine images are right; the object's share: {share:.2f}")

    logits = TwoLogits(network).eval()
    probabilities = nn.Sequential(logits, nn.Softmax(1)).eval()
    forms = {
        "one logit": (network, 0),
        "a logit for each class": (logits, 1),
        "probabilities": (Classifier(probabilities, output="probabilities").eval(), 1),
        "a plain function": (lambda pixels: logits(pixels), 1),
    }
    for name, (model, target) in forms.items():
        maps = FAMPE(model).attribute(images, target)
        print(f"{name}: {float(relevance_mass(maps, masks).mean()):.2f} of the map in the object")
    try:
        FAMPE(probabilities).attribute(images, 1)
    except ValueError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
