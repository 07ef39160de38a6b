"""Read the photographs, classifier and targets that a command was given."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fampe_fast.cli.model_and_methods import classifier_of, labelled_images, targets_of
from fampe_fast.images import load_images
from fampe_fast.models.classifier import Classifier


def photographs(arguments: argparse.Namespace) -> tuple[Classifier, list[Path], Iterator[tuple[Tensor, int]]]:
    """Load the classifier, and each photograph with its target when it is asked for, with a line of progress.

    Returns:
        The classifier, the files, and of each file the image (1, C, H, W) on the classifier's device and its label, or
        the classifier's first choice where no labels were given.

    Raises:
        SystemExit: while iterating, a file is no image.
    """
    files, labels = labelled_images(arguments)
    classifier = classifier_of(arguments)
    targets = targets_of(files, labels, classifier)

    def each() -> Iterator[tuple[Tensor, int]]:
        for number, (path, image) in enumerate(load_images(files.paths, classifier.transform)):
            if not isinstance(image, Tensor):
                raise SystemExit(f"{path}: {image.reason}")
            batch = image[None].to(classifier.mean.device)
            with torch.no_grad():
                target = int(classifier(batch).argmax()) if targets is None else targets[number]
            yield batch, target
            print(f"{number + 1} of {len(files.paths)}: {path.name}", flush=True)

    return classifier, files.paths, each()
