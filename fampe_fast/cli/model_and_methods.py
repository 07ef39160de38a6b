"""From parsed arguments to what they choose: the classifier, the methods' options."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from ..checks import check_size
from ..errors import first_line
from ..files import Output, check_outputs, read_text
from ..images import FoundImages, survey_images
from ..methods.registry import options_of
from ..models import load_classifier
from ..models.classifier import Classifier
from ..ops.backends import choice
from ..runs.labels import check_label, labels_of, read_labels
from ..runtime.model_probe import ModelInfo, probe
from .arguments import METHOD_OPTIONS


def classifier_of(arguments: argparse.Namespace) -> Classifier:
    """Load the classifier.

    Raises:
        ValueError: a device that cannot be used, another number of class names than the model has classes, or what
            ``load_classifier`` refuses.
    """
    device = _device_of(arguments)
    names = None if arguments.class_names is None else _class_names(arguments.class_names)
    classifier = load_classifier(
        arguments.model,
        weights=arguments.weights,
        mean=arguments.mean,
        std=arguments.std,
        input_size=arguments.input_size,
        interpolation=arguments.interpolation,
        device=device,
        model_args=dict(arguments.model_arg),
        fold_batch_norm=False if arguments.keep_batch_norm else None,
        output=arguments.model_output,
    )
    classes = _ask(classifier).shape[0]
    if names is not None:
        if len(names) != classes:
            raise ValueError(
                f"--class-names: {arguments.class_names} has {len(names)} names, and {classifier.name} has {classes} "
                "classes; expected a name per class, one a line"
            )
        classifier.class_names, classifier.num_classes = tuple(names), classes
    return classifier


def _ask(classifier: Classifier) -> ModelInfo:
    """Show the classifier an image of noise: what is wrong with it ends the command, and not every image.

    Raises:
        ValueError, TypeError: it takes images that files do not have or no method explains, fails, or its output is not
            what was said of it.
    """
    if classifier.channels not in (1, 3):
        raise ValueError(f"{classifier.name} takes images of {classifier.channels} channels; image files have 1 or 3")
    shape = classifier.channels, *classifier.input_size
    check_size(shape)
    noise = torch.rand((1, *shape), generator=torch.Generator().manual_seed(0)).to(classifier.mean.device)
    try:
        return probe(classifier, noise)
    except (ValueError, TypeError):
        raise
    except Exception as error:  # of foreign code
        height, width = classifier.input_size
        raise ValueError(f"{classifier.name} fails on an image of {height} x {width}: {first_line(error)}") from error


def _device_of(arguments: argparse.Namespace) -> str:
    """Choose the device; one that cannot compute, or has no backend that runs, ends the command and not every image."""
    device: str = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        float(torch.zeros(1, device=device) + 1)
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError, ImportError, by device
        raise ValueError(f"--device {device}: it cannot be used here: {first_line(error)}") from error
    choice(device)
    return device


def _class_names(path: Path) -> list[str]:
    names = read_text(path, "class names").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while names and not names[-1].strip():
        names.pop()
    return names


def other_classifier_of(arguments: argparse.Namespace, name: str) -> Classifier | None:
    """The classifier of ``--NAME`` and of what begins with it; None where it is not given.

    What else there is to a model (how images are shown to it, the device) it has in common with the first one.
    """
    own = {part: getattr(arguments, f"{name}_{part}") for part in ("weights", "arg", "mean", "std", "output")}
    model = getattr(arguments, name)
    if model is None:
        option = name.replace("_", "-")
        for part, value in own.items():
            if value not in (None, []):
                raise ValueError(f"--{option}-{part} belongs to a model: name it with --{option}")
        return None
    other = {"model": model, "model_arg": own.pop("arg"), "model_output": own.pop("output"), **own}
    return classifier_of(argparse.Namespace(**{**vars(arguments), **other}))


def options_by_method(arguments: argparse.Namespace, methods: list[str]) -> dict[str, dict[str, Any]]:
    """What each method is given of the options; ValueError for one that none of them has."""
    given = {name: getattr(arguments, name) for name in METHOD_OPTIONS}
    chosen = {name: value for name, value in given.items() if value is not None} | dict(arguments.option)
    unused = [name for name in chosen if not any(name in options_of(method) for method in methods)]
    if unused:
        known = sorted({name for method in methods for name in options_of(method)})
        raise ValueError(f"{', '.join(methods)}: no such option(s): {', '.join(unused)}; known are {', '.join(known)}")
    return {method: {k: v for k, v in chosen.items() if k in options_of(method)} for method in methods}


def check_target(target: int, classifier: Classifier) -> None:
    """Refuse a ``--target`` that is no class of the classifier."""
    classes = _ask(classifier).shape[0]
    if not 0 <= target < classes:
        raise ValueError(f"--target {target} is out of range: {classifier.name} has {classes} classes")


def labelled_images(arguments: argparse.Namespace) -> tuple[FoundImages, list[int] | None]:
    """Find the images of a folder and, where they are given, their labels, which may not be the model's classes yet.

    Raises:
        ValueError: no folder, no images, or images without a label.
    """
    if not arguments.images.is_dir():
        raise ValueError(f"{arguments.images} is not a folder; {arguments.command} takes a folder of images")
    found = found_images(arguments, arguments.images)
    found.paths = found.paths[: arguments.limit]
    if arguments.labels is None:
        return found, None
    return found, labels_of(found.paths, read_labels(arguments.labels), None)


def found_images(arguments: argparse.Namespace, given: Path | list[Path]) -> FoundImages:
    """Find images, and what is left out of their folders; the command's other files go without saying."""
    return survey_images(given, known=other_inputs(arguments))


def other_inputs(arguments: argparse.Namespace) -> list[Path]:
    """The files and folders that a command reads besides images: models, checkpoints, labels, names."""
    values = [value for name, value in vars(arguments).items() if name not in ("out", "command", "images")]
    paths = [Path(value) for value in values if isinstance(value, str | Path) and str(value)]
    return [path for path in paths if os.path.exists(path)]


def check_all_outputs(arguments: argparse.Namespace, outputs: list[Output], images: list[Path]) -> None:
    """Refuse outputs that would replace an input, or a file of another's, before there is any work to lose."""
    check_outputs(outputs, [*images, *other_inputs(arguments)])


def targets_of(found: FoundImages, labels: list[int] | None, classifier: Classifier) -> list[int] | None:
    """The class of each image; ValueError for one that is no class of the model."""
    if labels is not None:
        for path, label in zip(found.paths, labels, strict=True):
            check_label(path, label, classifier.num_classes)
    return labels
