"""Draw the README's picture: one photograph, three classifiers, FAMPE's map and the evidence of each band.

The photograph is scikit-image's cat (CC0, by Stefan van der Walt), which comes with its package:

python -m benchmarks.draw_cat --out docs/pictures/cat.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from skimage import data

from fampe_fast import FAMPE, FrequencyAttribution, load_classifier
from fampe_fast.frequency import three_bands
from fampe_fast.frequency.bands import NAMES_OF_THREE
from fampe_fast.plots import contact_sheet, save_figure


class Shown(NamedTuple):
    """A classifier: its label, timm's name, and how to load it from a file of ``--weights``."""

    label: str
    name: str
    file: str
    options: dict[str, Any]


SHOWN = (
    Shown(
        "MobileNetV2", "mobilenetv2_100", "mobilenetv2_100_same.imagenet.safetensors",
        {"interpolation": "bilinear", "model_args": {"pad_type": "same"}},
    ),
    Shown("EfficientNet-Lite0", "tf_efficientnet_lite0", "tf_efficientnet_lite0.imagenet.safetensors", {}),
    Shown("ViT-Ti/16", "vit_tiny_patch16_224", "vit_tiny_patch16_224.imagenet.safetensors", {}),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the picture of the README.")
    parser.add_argument("--out", type=Path, required=True, help="file")
    parser.add_argument("--weights", type=Path, help="folder of the weights (default: those of timm, from the hub)")
    arguments = parser.parse_args()
    images, titles = [], []
    maps: dict[str, list[torch.Tensor]] = {"FAMPE, 1 pass": [], **{f"{name} band": [] for name in NAMES_OF_THREE}}
    for shown in SHOWN:
        local = {"weights": arguments.weights / shown.file, "mean": 0.5, "std": 0.5, **shown.options}
        classifier = load_classifier(shown.name, **({} if arguments.weights is None else local))
        image = classifier.transform(Image.fromarray(data.chelsea()))[None]
        with torch.no_grad():
            target = classifier(image).argmax(1)
        places = FrequencyAttribution(classifier)(image, target).places(three_bands(*image.shape[-2:]))[0]
        for column, found in zip(maps.values(), (FAMPE(classifier).attribute(image, target)[0], *places), strict=True):
            column.append(found)
        images.append(image[0])
        titles.append(f"{shown.label}: {classifier.class_name(int(target))}")
    save_figure(contact_sheet(images, maps, titles), arguments.out)


if __name__ == "__main__":
    main()
