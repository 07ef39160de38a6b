"""See which frequencies a robust and a plain classifier rely on.

    python examples/robust_and_plain.py

Two small networks learn to tell images with a texture from images without one, in under a minute. The texture has a
coarse and a fine part, and either tells the class: which one a network relies on is up to its training. One is trained
plainly, the other adversarially, on images changed by PGD. For both, prints the accuracy without and under attack, and
for each band of frequencies the drop in the class's probability without the band (occluded frequency) and the band's
share of what all bands add to the logit (integrated gradients of the spectrum); writes the drops as curves.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn

from fampe_fast import PGD, Classifier, FrequencyAttribution, OccludedFrequency
from fampe_fast.images.generated import BANDS, band_texture, generate
from fampe_fast.plots import save_figure
from fampe_fast.plots.bands import BandCurve, bands_figure

SIZE = 64  # pixels; the coarse texture has 5 to 9 cycles over the side, the fine one 16 to 26


def textured(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images (count, 3, SIZE, SIZE) in [0, 1], every second one with both textures, and their classes."""
    labels = torch.arange(count) % 2
    rng = np.random.default_rng(seed)
    textures = np.stack([sum(band_texture(rng, band, SIZE) for band in BANDS.values()) for _ in range(count)])
    added = 0.12 * torch.from_numpy(textures).float() * labels[:, None, None]
    return (0.25 + 0.5 * generate(count, seed=seed, size=SIZE).backgrounds + added[:, None]).clamp(0, 1), labels


def trained(attack: PGD | None, steps: int) -> Classifier:
    """Train a network; with an attack, on what it makes of each batch."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 12, 7, 2, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 5, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
    )  # fmt: skip
    clf = Classifier(network, mean=0.5, std=0.25, input_size=SIZE, class_names=("plain", "textured"))
    images, labels = textured(256, seed=0)
    optimiser = torch.optim.AdamW(clf.parameters(), 5e-3, weight_decay=0.05)
    clf.train()
    for _ in range(steps):
        rows = torch.randint(len(images), (32,))
        batch = images[rows] if attack is None else attack(clf, images[rows], labels[rows])
        loss = nn.functional.cross_entropy(clf(batch), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return clf.eval()


def main() -> None:
    """Train both, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-steps", type=int, default=150)
    parser.add_argument("--images", type=int, default=64, help="number of test images")
    parser.add_argument("--out", default="reliance.png")
    arguments = parser.parse_args()

    images, labels = textured(arguments.images, seed=1)
    curves, columns = {}, []
    for name, attack in (("plain", None), ("robust", PGD(4 / 255))):
        clf = trained(attack, arguments.train_steps)
        attacked = PGD(4 / 255, steps=10, seed=1)(clf, images, labels)
        with torch.inference_mode():
            clean, under = (float((clf(shown).argmax(1) == labels).float().mean()) for shown in (images, attacked))
        print(f"{name}: accuracy {clean:.2f}, under attack {under:.2f}")
        occluded = OccludedFrequency(clf, bands=10)
        drops = occluded(images, labels)
        evidence = occluded.bands_of(images).sums(FrequencyAttribution(clf)(images, labels).coefficients())
        # A band's part of what all bands do, whichever way each of them acts.
        shares = evidence.abs().mean(0) / evidence.abs().mean(0).sum()
        columns += [drops.drops.mean(0).tolist(), shares.tolist()]
        curves[name] = BandCurve(drops.edges[0], drops.drops.double().mean(0))
    print("cycles over the side   plain: drop, share   robust: drop, share")
    edges = drops.edges[0].tolist()
    for low, high, *values in zip(edges, edges[1:], *columns, strict=False):
        print("{:8.1f} to {:4.1f} {:15.3f} {:7.1%} {:15.3f} {:7.1%}".format(low, high, *values))
    save_figure(bands_figure(curves, title="drop in probability without a band of frequencies"), arguments.out)


if __name__ == "__main__":
    main()
