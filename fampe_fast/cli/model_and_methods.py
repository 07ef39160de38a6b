"""Turn parsed arguments into the classifier, the methods' options and the images."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..catalog import DEPTH_OPTIONS, METRICS, method_options
from ..checks import check_size
from ..errors import first_line
from ..files import Output, check_outputs, read_text
from ..images import FoundImages, survey_images
from ..methods.registry import check_options
from ..models import load_classifier
from ..models.classifier import Classifier
from ..ops.backends import choice
from ..runs.batches import check_run_ids
from ..runs.labels import check_label, image_ids_of, labels_of, read_image_ids, read_labels
from ..runs.measurement import Measurement
from ..runtime.model_probe import ModelInfo, probe
from .flags import flag_of, given


def classifier_of(arguments: argparse.Namespace) -> Classifier:
    """Load the classifier.

    Raises:
        ValueError: a device that cannot be used, a wrong number of class names, or arguments that ``load_classifier``
            refuses.
    """
    device = device_of(arguments.device)
    names = None if arguments.class_names is None else class_names_in(arguments.class_names)
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
                "classes; expected one name per class, each on its own line"
            )
        classifier.class_names, classifier.num_classes = tuple(names), classes
    return classifier


def _ask(classifier: Classifier) -> ModelInfo:
    """Probe the classifier with an image of noise, so that a wrong model ends the command before any image.

    Raises:
        ValueError, TypeError: it needs images that files do not have or no method explains, it fails, or its output
            contradicts its declared meaning.
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
    except Exception as error:  # foreign code may raise anything
        height, width = classifier.input_size
        raise ValueError(f"{classifier.name} fails on an image of {height} x {width}: {first_line(error)}") from error


def device_of(given: str | None) -> str:
    """Choose the device; one that cannot compute, or has no working backend, ends the command before any image."""
    device = given or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        float(torch.zeros(1, device=device) + 1)
    except Exception as error:  # RuntimeError, AssertionError, NotImplementedError, ImportError, by device
        raise ValueError(f"--device {device}: cannot be used here: {first_line(error)}") from error
    choice(device)
    return device


def class_names_in(path: Path) -> list[str]:
    """Read class names, one per line."""
    names = read_text(path, "class names").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    while names and not names[-1].strip():
        names.pop()
    return names


def other_classifier_of(arguments: argparse.Namespace, name: str) -> Classifier | None:
    """Load the classifier of ``--NAME`` and its further options; None if it is not given.

    All other settings (transform of the images, device) are those of the first classifier.
    """
    own = {part: getattr(arguments, f"{name}_{part}") for part in ("weights", "arg", "mean", "std", "output")}
    model = getattr(arguments, name)
    if model is None:
        option = name.replace("_", "-")
        for part, value in own.items():
            if value not in (None, []):
                raise ValueError(f"--{option}-{part} needs a model: name it with --{option}")
        return None
    other = {"model": model, "model_arg": own.pop("arg"), "model_output": own.pop("output"), **own}
    return classifier_of(argparse.Namespace(**{**vars(arguments), **other}))


def options_by_method(
    arguments: argparse.Namespace, methods: list[str], measurement: Measurement | None = None
) -> dict[str, dict[str, Any]]:
    """Distribute the given options to the methods that have them.

    Args:
        arguments: the command's arguments.
        methods: by name.
        measurement: the command's measurement, whose metrics may use the seed if no method does.

    Raises:
        ValueError: an option that no method has, or a value out of range.
        TypeError: a value of a wrong type.
    """
    defaults = {method: {option.name: option.default for option in method_options(method)} for method in methods}
    known = {method: set(own) for method, own in defaults.items()}
    options = given(arguments, "method")
    # Methods without views do not get the options of views that are meant for others.
    if "views" not in options and any(own.get("views") for own in defaults.values()):
        known = {
            method: own if defaults[method].get("views") else own - set(DEPTH_OPTIONS) for method, own in known.items()
        }
    if measurement is not None and any("seed" in found for found in measurement.options.values()):
        known["the metrics"] = {"seed"}
    found = shared_out(options, known)
    found.pop("the metrics", None)
    for method, options in found.items():
        check_options(method, **options)  # before the model is loaded, as far as possible
    return found


def measurement_of(arguments: argparse.Namespace) -> Measurement:
    """Collect the metrics, their options, and the seed, which the methods use too.

    Raises:
        ValueError: options of a metric that is not measured, or a value out of range.
        TypeError: a value of a wrong type.
    """
    options = {name: given(arguments, f"metric {name}") for name in METRICS}
    seed = given(arguments, "method").get("seed", 0)
    return Measurement(tuple(arguments.metric), {name: found for name, found in options.items() if found}, seed)


def shared_out(
    options: dict[str, Any], known: Mapping[str, Collection[str]], flags: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Distribute options to the names that know them.

    Args:
        options: the given options.
        known: the options that each name has.
        flags: flags with other names than ``flag_of`` gives, for the message.

    Raises:
        ValueError: an option that no name knows; the message lists the known flags.
    """

    def spelt(names: Iterable[str]) -> str:
        return ", ".join(dict.fromkeys((flags or {}).get(name, flag_of(name)) for name in names))

    unused = [option for option in options if not any(option in own for own in known.values())]
    if unused:
        every = sorted(option for own in known.values() for option in own)
        raise ValueError(f"{', '.join(known)}: no such option(s): {spelt(unused)}; known are {spelt(every)}")
    return {name: {key: value for key, value in options.items() if key in own} for name, own in known.items()}


@dataclass(frozen=True)
class ChosenImages:
    """The images of a command, with their labels, targets and ids.

    Attributes:
        found: the files, and the files left out of their folders.
        labels: label of each image, not yet checked against the model's classes; None without labels.
        target: class of all images; None if not given.
        image_ids: id of each image in the random stream; None for its position.
    """

    found: FoundImages
    labels: list[int] | None
    target: int | None
    image_ids: list[int] | None

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return self.found.paths

    def targets(self, classifier: Classifier) -> list[int] | None:
        """Return each image's class; None if the model chooses.

        Raises:
            ValueError: a label or a target that is no class of the model.
        """
        if self.target is not None:
            classes = _ask(classifier).shape[0]
            if not 0 <= self.target < classes:
                raise ValueError(f"--target {self.target} is out of range: {classifier.name} has {classes} classes")
            return [self.target] * len(self.paths)
        if self.labels is not None:
            for path, label in zip(self.paths, self.labels, strict=True):
                check_label(path, label, classifier.num_classes)
        return self.labels


def chosen_images(arguments: argparse.Namespace) -> ChosenImages:
    """Find the images of a command, without its other files, and read their labels and ids.

    Raises:
        ValueError: no folder where one is expected, no images, images without a label or an id, or ids that are not
            unique.
    """
    given_paths = arguments.images
    if isinstance(given_paths, Path) and not given_paths.is_dir():
        raise ValueError(f"{given_paths} is not a folder; {arguments.command} takes a folder of images")
    found = survey_images(given_paths, known=other_inputs(arguments))
    found.paths = found.paths[: arguments.limit]
    labels = None if arguments.labels is None else labels_of(found.paths, read_labels(arguments.labels), None)
    ids = None
    if arguments.image_ids is not None:
        ids = check_run_ids(found.paths, image_ids_of(found.paths, read_image_ids(arguments.image_ids)))
    return ChosenImages(found, labels, arguments.target, ids)


def other_inputs(arguments: argparse.Namespace) -> list[Path]:
    """List the files and folders that a command reads besides images: models, checkpoints, labels, names."""
    known = vars(arguments).items()
    values = [value for name, value in known if name not in ("out", "save", "command", "images") and ":" not in name]
    paths = [Path(value) for value in values if isinstance(value, str | Path) and str(value)]
    return [path for path in paths if os.path.exists(path)]


def check_all_outputs(arguments: argparse.Namespace, outputs: list[Output], images: list[Path]) -> None:
    """Refuse outputs that would replace an input or a foreign file, before any work is done."""
    check_outputs(outputs, [*images, *other_inputs(arguments)])
