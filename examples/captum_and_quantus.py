"""Judge a method of this package by the metrics of Captum and of Quantus.

    python examples/captum_and_quantus.py
    python examples/captum_and_quantus.py --method gradcam --model resnet50 --photographs photos/

Every method here has the interface of a Captum ``Attribution``, and ``fampe_fast.methods.quantus.explain`` is an
``explain_func`` of Quantus. For some images (by default generated ones, with the classifier that ships with this
package) prints Captum's infidelity and its sensitivity to small changes, both better when low; the correlation of the
map with its mean over noisy copies, by Captum's NoiseTunnel; and the mean probability while Quantus flips the pixels,
the strongest first, better when low.
"""

from __future__ import annotations

import argparse

import numpy as np
import quantus
import torch
from captum.attr import NoiseTunnel
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor

from fampe_fast import create_method, load_classifier, load_embedded_classifier
from fampe_fast.images import find_images, read_image
from fampe_fast.images.generated import generate
from fampe_fast.methods.quantus import explain


def take_squares_away(images: Tensor) -> tuple[Tensor, Tensor]:
    """Make a square grey, and say where: what a map says of its pixels should be what the score loses with them."""
    side = images.shape[-1] // 4
    places = [torch.arange(size) - torch.randint(size - side, (len(images), 1)) for size in images.shape[2:]]
    rows, columns = ((place >= 0) & (place < side) for place in places)  # (B, H) and (B, W)
    taken = (rows[:, None, :, None] & columns[:, None, None, :]).float().expand_as(images)
    return taken, images + taken * (0.5 - images)


def main() -> None:
    """Judge one method by both libraries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="fampe", help="a name of fampe_fast.create_method")
    parser.add_argument("--model", help="a timm or torchvision name, or a folder; default: the embedded classifier")
    parser.add_argument("--photographs", help="a folder; default: four generated images")
    parser.add_argument("--draws", type=int, default=50, help="random changes of each image")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - Quantus draws from NumPy's global generator
    clf = load_classifier(arguments.model) if arguments.model else load_embedded_classifier()
    if arguments.photographs:
        images = torch.stack([clf.transform(read_image(path)) for path in find_images(arguments.photographs)])
    else:
        images = generate(4).images
    with torch.inference_mode():
        targets = clf(images).argmax(1)
    method = create_method(arguments.method, clf)
    maps = method.attribute(images, targets)

    draws, few = arguments.draws, min(arguments.draws, 5)
    options = {"target": targets, "n_perturb_samples": draws, "normalize": True}  # a map has no units of the score
    print(f"Captum's infidelity: {float(infidelity(clf, take_squares_away, images, maps, **options).mean()):.3g}")

    # Captum's noise leaves [0, 1], which a method refuses unless its bounds are wider.
    tolerant = create_method(arguments.method, clf, bounds=(-1.0, 2.0))
    sensitivity = sensitivity_max(tolerant.attribute, images, target=targets, n_perturb_samples=few)
    print(f"Captum's sensitivity: {float(sensitivity.mean()):.3g}")
    smoothed = NoiseTunnel(tolerant).attribute(images, nt_samples=few, stdevs=0.05, target=targets)
    correlation = torch.corrcoef(torch.stack([smoothed.flatten(), maps.flatten()]))[0, 1]
    print(f"Captum's NoiseTunnel: correlation with the map {float(correlation):.3f}")

    step = images[0, 0].numel() // 16
    metric = quantus.PixelFlipping(features_in_step=step, disable_warnings=True)
    curves = metric(
        model=clf,
        x_batch=images.numpy(),
        y_batch=targets.numpy(),
        a_batch=None,  # Quantus asks for the maps
        explain_func=explain,
        explain_func_kwargs={"method": arguments.method},
        softmax=True,
        device="cpu",
    )
    print(f"Quantus's pixel flipping: mean probability {float(np.mean(curves)):.3f}")


if __name__ == "__main__":
    main()
