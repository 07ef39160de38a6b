"""Find the radius of FORGrad's low-pass for a model and a method, and make maps at that radius.

    python examples/tune_forgrad.py
    python examples/tune_forgrad.py --model resnet50 --photographs photos/ --method smoothgrad

FORGrad takes the high frequencies out of a map. Which ones depends on the model and the method: the radius is searched
on validation images, by the mean of insertion minus deletion; judge the maps on others. Prints the score of the maps
as they are and at every radius tried; writes the outcome to a file that ``TunedCutoff.load`` reads, and maps of four
images before and after.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.data import DataLoader, TensorDataset

from fampe_fast import FORGrad, create_method, load_classifier, load_embedded_classifier, tune_cutoff
from fampe_fast.images import find_images, read_image
from fampe_fast.images.generated import generate
from fampe_fast.plots import contact_sheet, save_figure


def main() -> None:
    """Tune, and show the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="saliency", help="a name of fampe_fast.create_method")
    parser.add_argument("--model", help="a timm or torchvision name, or a folder; default: the embedded classifier")
    parser.add_argument("--photographs", help="a folder of validation images; default: generated images")
    parser.add_argument("--images", type=int, default=32, help="number of them")
    parser.add_argument("--metric-steps", type=int, default=28, help="steps of insertion and deletion")
    parser.add_argument("--out", default="forgrad", help="writes OUT.json and OUT.png")
    arguments = parser.parse_args()

    clf = load_classifier(arguments.model) if arguments.model else load_embedded_classifier()
    if arguments.photographs:
        paths = find_images(arguments.photographs)[: arguments.images]
        images = torch.stack([clf.transform(read_image(path)) for path in paths])
    else:
        images = generate(arguments.images).images
    with torch.inference_mode():
        targets = clf(images).argmax(1)  # where you know the images' classes, give those
    method = create_method(arguments.method, clf)
    loader = DataLoader(TensorDataset(images, targets), batch_size=8)
    tuned = tune_cutoff(clf, loader, method, metric_steps=arguments.metric_steps)

    print(f"radius   insertion - deletion of {arguments.method}, {clf.name}")
    print(f"   all   {tuned.unfiltered}")
    for radius, score in tuned.curve.items():
        print(f"{radius:6d}   {score}{'   the best' if radius == tuned.cutoff else ''}")
    tuned.save(f"{arguments.out}.json")
    shown = images[:4]
    before, after = (found.attribute(shown, targets[:4]) for found in (method, FORGrad(method, tuned.cutoff)))
    titles = [clf.class_name(target) for target in targets[:4]]
    sheet = contact_sheet(shown, {arguments.method: before, f"radius {tuned.cutoff}": after}, titles)
    save_figure(sheet, f"{arguments.out}.png")


if __name__ == "__main__":
    main()
