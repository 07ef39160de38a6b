"""Read the photographs, classifier and targets of a command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fampe_fast.cli.arguments import positive
from fampe_fast.cli.model_and_methods import chosen_images, classifier_of
from fampe_fast.images import load_images
from fampe_fast.models.classifier import Classifier


def add_photographs(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add the folder of the photographs, their labels and their number."""
    parser.add_argument("images", type=Path, metavar="DIR", nargs="?" if optional else None, help="a folder of images")
    parser.add_argument("--labels", type=Path, help="JSON or CSV from file name to class (default: the model's choice)")
    parser.add_argument("--limit", type=positive, help="use only the first LIMIT images")
    parser.set_defaults(target=None, image_ids=None)


def photographs(arguments: argparse.Namespace) -> tuple[Classifier, list[Path], Iterator[tuple[Tensor, int]]]:
    """Load the classifier, and each photograph with its target when it is asked for, with a line of progress.

    Returns:
        The classifier, the files, and of each file the image (1, C, H, W) on the classifier's device and its label, or
        the classifier's first choice where no labels were given.

    Raises:
        SystemExit: while iterating, a file is no image.
    """
    chosen = chosen_images(arguments)
    classifier = classifier_of(arguments)
    targets = chosen.targets(classifier)

    def each() -> Iterator[tuple[Tensor, int]]:
        for number, (path, image) in enumerate(load_images(chosen.paths, classifier.transform)):
            if not isinstance(image, Tensor):
                raise SystemExit(f"{path}: {image.reason}")
            batch = image[None].to(classifier.mean.device)
            with torch.no_grad():
                target = int(classifier(batch).argmax()) if targets is None else targets[number]
            yield batch, target
            print(f"{number + 1} of {len(chosen.paths)}: {path.name}", flush=True)

    return classifier, chosen.paths, each()
