"""Compare FAMPE with pytorch-grad-cam on one photograph: faithfulness, time and a picture.

    python examples/compare_with_grad_cam.py
    python examples/compare_with_grad_cam.py dog.jpg --model convnext_tiny.in12k_ft_in1k --out dog_compared.png

Prints insertion (higher is better), deletion (lower is better) and seconds per map of FAMPE with one and ten passes, of
Grad-CAM, and of the centre prior, a blob in the middle that no model has made. Then the largest difference between
Grad-CAM's map through this package and through its own library. Writes the maps side by side. One photograph decides
nothing, least of all one whose object fills it, as the cat does: ``fampe-fast evaluate`` takes a folder of them.
"""

from __future__ import annotations

import argparse
import time

import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from skimage.data import chelsea

from fampe_fast import FAMPE, create_method, insertion_deletion, load_classifier
from fampe_fast.images import read_image
from fampe_fast.plots import contact_sheet, save_figure


def main() -> None:
    """Compare four maps of a photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", nargs="?", help="default: the cat of scikit-image")
    parser.add_argument("--model", default="resnet50", help="a timm or torchvision name, or a folder in timm's layout")
    parser.add_argument("--repeats", type=int, default=5, help="maps that the time is an average of")
    parser.add_argument("--metric-passes", type=int, default=65, help="steps measured of each curve")
    parser.add_argument("--out", default="compared.png")
    arguments = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    clf = load_classifier(arguments.model, device=device)
    photograph = read_image(arguments.photograph) if arguments.photograph else Image.fromarray(chelsea())
    image = clf.transform(photograph)[None].to(device)
    maps, details = FAMPE(clf).attribute(image, return_details=True)
    target = int(details.target)
    layer = details.depths.names[-1]  # the last layer with places in the image, where Grad-CAM looks as well
    print(f"{clf.class_name(target)}; Grad-CAM explains the layer {layer}")

    methods = {
        "fampe": FAMPE(clf),
        "fampe, 10 passes": FAMPE(clf, passes=10),
        "gradcam": create_method("gradcam", clf, layer=layer),
        "centre prior": create_method("centre_prior", clf),
    }
    found, insertion = {}, {}
    for name, method in methods.items():
        maps = method.attribute(image, target)  # the first call looks at the model and is not timed
        start = time.perf_counter()
        for _ in range(arguments.repeats):
            found[name] = method.attribute(image, target).cpu()  # .cpu() waits for a GPU
        seconds = (time.perf_counter() - start) / arguments.repeats
        scores = insertion_deletion(clf, image, maps, target, passes=arguments.metric_passes)
        insertion[name] = scores.insertion.cpu()
        print(f"{name:17} insertion {float(scores.insertion):.3f}  deletion {float(scores.deletion):.3f}  ", end="")
        print(f"{seconds:.4f} s")

    # The same map from the library itself; clone, because layers that work in place would change what it has kept.
    cam = GradCAM(clf, [clf.get_submodule(layer)], reshape_transform=torch.clone)
    direct = torch.from_numpy(cam(image, [ClassifierOutputTarget(target)]))
    print(f"Grad-CAM by itself: largest difference {float((direct - found['gradcam'][:, 0]).abs().max()):.1e}")
    sheet = contact_sheet(image, found, [clf.class_name(target)], scores=insertion, score_name="insertion")
    save_figure(sheet, arguments.out)


if __name__ == "__main__":
    main()
