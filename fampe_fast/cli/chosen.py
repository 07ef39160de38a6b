"""From parsed arguments to what they choose: the classifier, the methods' options."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..methods.registry import options_of
from ..models import load_classifier
from ..models.classifier import Classifier


def classifier_of(arguments: argparse.Namespace) -> Classifier:
    """The classifier, loaded."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_classifier(
        arguments.model,
        weights=arguments.weights,
        mean=arguments.mean,
        std=arguments.std,
        interpolation=arguments.interpolation,
        device=device,
        model_args=dict(arguments.model_arg),
    )


def options_by_method(arguments: argparse.Namespace, methods: list[str]) -> dict[str, dict[str, Any]]:
    """What each method is given of the options; ValueError for one that none of them has."""
    given = {name: getattr(arguments, name) for name in ("alpha", "steps", "samples", "passes", "seed")}
    chosen = {name: value for name, value in given.items() if value is not None} | dict(arguments.option)
    unused = [name for name in chosen if not any(name in options_of(method) for method in methods)]
    if unused:
        raise ValueError(f"{', '.join(methods)}: no such option(s): {', '.join(unused)}")
    return {method: {k: v for k, v in chosen.items() if k in options_of(method)} for method in methods}


def in_range(target: int, classifier: Classifier) -> int:
    """The target, if the classifier has such a class; else ValueError."""
    if target < 0 or (classifier.num_classes is not None and target >= classifier.num_classes):
        raise ValueError(f"--target {target} is out of range: {classifier.name} has {classifier.num_classes} classes")
    return target
