"""Explain a segmentation network: which pixels made it see a class in a region.

    python examples/segmentation.py                                    # scikit-image's cat, weights from torchvision
    python examples/segmentation.py dog.jpg --category dog --weights lraspp.pth

A wrapper makes a classifier of the network: the mean logit of each class over a region, here the pixels in which the
network sees the class. The map shows what raises that mean against the other classes. Evidence may well lie outside of
the region, since a network judges a pixel by its surroundings. Prints the share of the map inside the region beside the
region's share of the image, and insertion and deletion; writes the picture with the region outlined.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image
from skimage.data import chelsea
from torch import Tensor, nn
from torchvision.models.segmentation import LRASPP_MobileNet_V3_Large_Weights, lraspp_mobilenet_v3_large
from torchvision.transforms.functional import resize, to_tensor

from fampe_fast import FAMPE, Classifier, insertion_deletion
from fampe_fast.images import read_image
from fampe_fast.metrics import relevance_mass
from fampe_fast.plots import explanation_figure, save_figure

WEIGHTS = LRASPP_MobileNet_V3_Large_Weights.DEFAULT
# Layers of the backbone, from fine to coarse. By itself FAMPE takes the map of scores as the last one.
LAYERS = tuple(f"model.network.backbone.{block}" for block in (1, 3, 6, 16))


class RegionScores(nn.Module):
    """Average every class's logit over a region."""

    region: Tensor

    def __init__(self, network: nn.Module, region: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("region", region)  # (H, W) bool

    def forward(self, images: Tensor) -> Tensor:
        """Compute scores (B, classes) of normalised images (B, 3, H, W)."""
        logits = self.network(images)["out"]  # (B, classes, H, W)
        scores: Tensor = logits[:, :, self.region].mean(2)
        return scores


def main() -> None:
    """Explain a class that the network sees."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", nargs="?", help="default: the cat of scikit-image")
    parser.add_argument("--category", default="cat", choices=WEIGHTS.meta["categories"])
    parser.add_argument("--size", type=int, default=520, help="pixels of the shorter side")
    parser.add_argument("--weights", help="a file of torchvision's weights, or none: random ones; default: fetch them")
    parser.add_argument("--metric-passes", type=int, default=33, help="steps measured of each curve")
    parser.add_argument("--out", default="segmentation.png")
    arguments = parser.parse_args()

    network = lraspp_mobilenet_v3_large(weights=None if arguments.weights else WEIGHTS, weights_backbone=None)
    if arguments.weights not in (None, "none"):
        network.load_state_dict(torch.load(arguments.weights, weights_only=True))
    network.eval()
    photograph = read_image(arguments.photograph) if arguments.photograph else Image.fromarray(chelsea())
    image = resize(to_tensor(photograph), arguments.size, antialias=True)[None]  # (1, 3, H, W) in [0, 1]
    preset = WEIGHTS.transforms()
    mean, std = (torch.tensor(values)[:, None, None] for values in (preset.mean, preset.std))
    target = WEIGHTS.meta["categories"].index(arguments.category)
    with torch.inference_mode():
        seen = network((image - mean) / std)["out"][0].argmax(0)  # (H, W), the class of each pixel
    region = seen == target
    if not region.any():
        print(f"the network sees no {arguments.category}: the middle of the image is explained")
        height, width = region.shape
        region[height // 4 : -height // 4, width // 4 : -width // 4] = True

    clf = Classifier(
        RegionScores(network, region), mean=preset.mean, std=preset.std, input_size=region.shape,
        class_names=WEIGHTS.meta["categories"],
    ).eval()  # fmt: skip
    maps = FAMPE(clf, layers=LAYERS).attribute(image, target)
    scores = insertion_deletion(clf, image, maps, target, passes=arguments.metric_passes)
    inside, share = float(relevance_mass(maps, region[None])), float(region.float().mean())
    note = f"{inside:.0%} of the map in the region, {share:.0%} of the image"
    print(f"{note}; insertion {float(scores.insertion):.3f}, deletion {float(scores.deletion):.3f}")
    figure = explanation_figure(image[0], maps[0], class_name=arguments.category, note=note, mask=region)
    save_figure(figure, arguments.out)


if __name__ == "__main__":
    main()
