"""Explain one photograph: the class that a classifier sees in it, and the pixels that speak for that class.

    python examples/ten_lines.py                                           # scikit-image's cat, timm's resnet50
    python examples/ten_lines.py dog.jpg --model convnext_tiny.in12k_ft_in1k --out dog_explained.png

Prints the class, its probability and how faithful the map is (insertion, higher is better; deletion, lower is better);
writes a picture of the image, the map, both together and the image's spectrum with its energy cut-off.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image
from skimage.data import chelsea

from fampe_fast import FAMPE, insertion_deletion, load_classifier
from fampe_fast.images import read_image
from fampe_fast.plots import explanation_figure, save_figure


def main() -> None:
    """Explain a photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", nargs="?", help="default: the cat of scikit-image")
    parser.add_argument("--model", default="resnet50", help="a timm or torchvision name, or a folder in timm's layout")
    parser.add_argument("--out", default="explained.png")
    arguments = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    clf = load_classifier(arguments.model, device=device)
    photograph = read_image(arguments.photograph) if arguments.photograph else Image.fromarray(chelsea())
    image = clf.transform(photograph)[None].to(device)  # (1, 3, H, W), pixels in [0, 1]
    with torch.inference_mode():
        probabilities = clf(image).softmax(1)[0]
    target = int(probabilities.argmax())
    name, probability = clf.class_name(target), float(probabilities[target])
    method = FAMPE(clf, include_dc=False)  # the cut-off then leaves out the mean colour, which holds most of the energy
    maps, details = method.attribute(image, target, return_details=True)  # (1, 3, H, W)
    cutoff = float(details.cutoff[0])  # cycles over the shorter side
    figure = explanation_figure(image[0], maps[0], class_name=name, probability=probability, cutoff=cutoff)
    save_figure(figure, arguments.out)
    scores = insertion_deletion(clf, image, maps, target, passes=33)
    print(f"{name}, probability {probability:.3f}; energy cut-off {cutoff:.0f}")
    print(f"insertion {float(scores.insertion):.3f}, deletion {float(scores.deletion):.3f}; see {arguments.out}")


if __name__ == "__main__":
    main()
