"""From parsed arguments to what they choose: the classifier, the methods' options."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ..images import find_images
from ..methods.registry import options_of
from ..models import load_classifier
from ..models.classifier import Classifier
from ..ops.backends import choice
from ..pipelines.labels import labels_of, read_labels


def classifier_of(arguments: argparse.Namespace) -> Classifier:
    """The classifier, loaded."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    choice(device)  # a backend that cannot run ends the command here, and not once for every image
    return load_classifier(
        arguments.model,
        weights=arguments.weights,
        mean=arguments.mean,
        std=arguments.std,
        input_size=arguments.input_size,
        class_names=None if arguments.class_names is None else _lines_of(arguments.class_names),
        interpolation=arguments.interpolation,
        device=device,
        model_args=dict(arguments.model_arg),
        fold_batch_norm=False if arguments.keep_batch_norm else None,
    )


def _lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def other_classifier_of(arguments: argparse.Namespace, name: str) -> Classifier | None:
    """The classifier of ``--NAME`` and of what begins with it; None where it is not given.

    What else there is to a model (how images are shown to it, the device) it has in common with the first one.
    """
    own = {part: getattr(arguments, f"{name}_{part}") for part in ("weights", "arg", "mean", "std")}
    model = getattr(arguments, name)
    if model is None:
        option = name.replace("_", "-")
        for part, value in own.items():
            if value not in (None, []):
                raise ValueError(f"--{option}-{part} belongs to a model: name it with --{option}")
        return None
    other = {"model": model, "model_arg": own.pop("arg"), **own}
    return classifier_of(argparse.Namespace(**{**vars(arguments), **other}))


def options_by_method(arguments: argparse.Namespace, methods: list[str]) -> dict[str, dict[str, Any]]:
    """What each method is given of the options; ValueError for one that none of them has."""
    given = {name: getattr(arguments, name) for name in ("alpha", "steps", "samples", "passes", "seed")}
    chosen = {name: value for name, value in given.items() if value is not None} | dict(arguments.option)
    unused = [name for name in chosen if not any(name in options_of(method) for method in methods)]
    if unused:
        known = sorted({name for method in methods for name in options_of(method)})
        raise ValueError(f"{', '.join(methods)}: no such option(s): {', '.join(unused)}; known are {', '.join(known)}")
    return {method: {k: v for k, v in chosen.items() if k in options_of(method)} for method in methods}


def in_range(target: int, classifier: Classifier) -> int:
    """The target, if the classifier has such a class; else ValueError."""
    if target < 0 or (classifier.num_classes is not None and target >= classifier.num_classes):
        raise ValueError(f"--target {target} is out of range: {classifier.name} has {classifier.num_classes} classes")
    return target


def labelled_images(arguments: argparse.Namespace) -> tuple[list[Path], dict[str, int] | None]:
    """The images of a folder and, where they are given, labels by file name; ValueError where there are none."""
    if not arguments.images.is_dir():
        raise ValueError(f"{arguments.images} is not a folder; {arguments.command} takes a folder of images")
    paths = find_images(arguments.images)[: arguments.limit]
    return paths, None if arguments.labels is None else read_labels(arguments.labels)


def targets_of(paths: list[Path], labels: dict[str, int] | None, classifier: Classifier) -> list[int] | None:
    """The class of each image; ValueError for one without a label, or with one that is no class of the model."""
    return None if labels is None else labels_of(paths, labels, classifier.num_classes)
