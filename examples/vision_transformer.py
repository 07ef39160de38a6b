"""Explain a vision transformer: tokens have places in the image as a convolution's outputs have.

    python examples/vision_transformer.py
    python examples/vision_transformer.py dog.jpg --model deit3_small_patch16_224.fb_in1k --out dog_vit.png

Prints the layers whose tokens FAMPE combines, which it finds by itself. Then insertion (higher is better) and deletion
(lower is better) of FAMPE with one and with ten passes, of attention rollout, of attention weighted by its gradient,
and of the centre prior, a blob in the middle that no model has made. Writes the maps side by side.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image
from skimage.data import chelsea

from fampe_fast import FAMPE, create_method, insertion_deletion, load_classifier
from fampe_fast.images import read_image
from fampe_fast.plots import contact_sheet, save_figure


def main() -> None:
    """Compare five maps of a photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", nargs="?", help="default: the cat of scikit-image")
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="a timm name, or a folder in timm's layout")
    parser.add_argument("--metric-passes", type=int, default=65, help="steps measured of each curve")
    parser.add_argument("--out", default="vision_transformer.png")
    arguments = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    clf = load_classifier(arguments.model, device=device)
    photograph = read_image(arguments.photograph) if arguments.photograph else Image.fromarray(chelsea())
    image = clf.transform(photograph)[None].to(device)
    _, details = FAMPE(clf).attribute(image, return_details=True)
    target, depths = int(details.target), details.depths
    sizes = zip(depths.sizes[::2], depths.sizes[1::2], strict=True)
    layers = ", ".join(f"{name} ({h} x {w})" for name, (h, w) in zip(depths.names, sizes, strict=True))
    print(f"{clf.class_name(target)}; layers: {layers}")

    methods = {
        "fampe": FAMPE(clf),
        "fampe, 10 passes": FAMPE(clf, passes=10),
        "rollout": create_method("attention_rollout", clf),  # the same for every class
        "attention, gradient": create_method("attention_gradient", clf),
        "centre prior": create_method("centre_prior", clf),
    }
    maps = {name: method.attribute(image, target) for name, method in methods.items()}
    insertion = {}
    for name, found in maps.items():
        scores = insertion_deletion(clf, image, found, target, passes=arguments.metric_passes)
        insertion[name] = scores.insertion.cpu()
        print(f"{name:20} insertion {float(scores.insertion):.3f}  deletion {float(scores.deletion):.3f}")
    sheet = contact_sheet(image, maps, [clf.class_name(target)], scores=insertion, score_name="insertion")
    save_figure(sheet, arguments.out)


if __name__ == "__main__":
    main()
