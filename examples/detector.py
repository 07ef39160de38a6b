"""Explain a detector: which pixels made it see an object in a box.

    python examples/detector.py                                       # scikit-image's cat, weights from torchvision
    python examples/detector.py street.jpg --category bicycle --weights ssdlite.pth

A detector ends in a step without gradients: boxes that overlap a better one are dropped. The wrapper stops before it,
at the class scores of one anchor box, the one with the highest score for the class. The map shows what raises that
score against the other classes' and the background's, for this box; not why the box has its edges. Prints the score,
the box, and the share of the map inside it beside the box's share of the image; writes the picture with the box.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image
from skimage.data import chelsea
from torch import Tensor, nn
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList
from torchvision.transforms.functional import resize, to_tensor

from fampe_fast import FAMPE, Classifier, insertion_deletion
from fampe_fast.images import read_image
from fampe_fast.metrics import relevance_mass
from fampe_fast.plots import explanation_figure, save_figure

WEIGHTS = SSDLite320_MobileNet_V3_Large_Weights.DEFAULT
SIDE = 320  # pixels; the detector's transform squeezes every photograph into a square of this size
# Layers of the backbone, from fine to coarse. By itself FAMPE stops where the scales part, before the last one.
LAYERS = tuple(f"model.network.backbone.features.{part}" for part in ("0.1", "0.3", "0.6", "0", "1"))


class AnchorScores(nn.Module):
    """Give every class's score of one anchor box."""

    def __init__(self, network: nn.Module, anchor: int) -> None:
        super().__init__()
        self.network, self.anchor = network, anchor

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits (B, classes), the background's first, of normalised images (B, 3, 320, 320)."""
        scores: Tensor = heads_of(self.network, images)[0]["cls_logits"][:, self.anchor]
        return scores


def heads_of(network: nn.Module, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Run the network up to its raw scores and boxes, each (B, anchors, ...); and give the features of every scale."""
    features = list(network.backbone(images).values())
    return network.head(features), features


def main() -> None:
    """Explain the best box of a class."""
    names = WEIGHTS.meta["categories"]  # with the background as the first one
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", nargs="?", help="default: the cat of scikit-image")
    parser.add_argument("--category", default="cat", choices=names[1:])
    parser.add_argument("--weights", help="a file of torchvision's weights, or none: random ones; default: fetch them")
    parser.add_argument("--metric-passes", type=int, default=33, help="steps measured of each curve")
    parser.add_argument("--out", default="detector.png")
    arguments = parser.parse_args()

    network = ssdlite320_mobilenet_v3_large(weights=None if arguments.weights else WEIGHTS, weights_backbone=None)
    if arguments.weights not in (None, "none"):
        network.load_state_dict(torch.load(arguments.weights, weights_only=True))
    network.eval()
    photograph = read_image(arguments.photograph) if arguments.photograph else Image.fromarray(chelsea())
    image = resize(to_tensor(photograph), [SIDE, SIDE], antialias=True)[None]  # (1, 3, 320, 320) in [0, 1]
    target = names.index(arguments.category)
    with torch.inference_mode():
        found, features = heads_of(network, (image - 0.5) / 0.5)
        probabilities = found["cls_logits"][0].softmax(1)[:, target]  # (anchors,)
        anchor = int(probabilities.argmax())
        (anchors,) = network.anchor_generator(ImageList(image, [(SIDE, SIDE)]), features)
        box = network.box_coder.decode_single(found["bbox_regression"][0], anchors)[anchor]
    left, top, right, bottom = box.clamp(0, SIDE).round().int().tolist()
    print(f"{arguments.category}, score {float(probabilities[anchor]):.3f}, box {left}, {top} to {right}, {bottom}")
    inside = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    inside[top:bottom, left:right] = True

    # An anchor of the finest scale is computed from the first part of the backbone alone.
    fine = anchor < features[0][0, 0].numel() * network.anchor_generator.num_anchors_per_location()[0]
    clf = Classifier(AnchorScores(network, anchor), mean=0.5, std=0.5, input_size=SIDE, class_names=names).eval()
    maps = FAMPE(clf, layers=LAYERS[:-1] if fine else LAYERS).attribute(image, target)
    scores = insertion_deletion(clf, image, maps, target, passes=arguments.metric_passes)
    share = float(inside.float().mean())
    note = f"{float(relevance_mass(maps, inside[None])):.0%} of the map in the box, {share:.0%} of the image"
    print(f"{note}; insertion {float(scores.insertion):.3f}, deletion {float(scores.deletion):.3f}")
    figure = explanation_figure(image[0], maps[0], class_name=arguments.category, note=note, mask=inside)
    save_figure(figure, arguments.out)


if __name__ == "__main__":
    main()
