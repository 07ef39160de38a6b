"""List every method, metric, protocol and study in a table, as data without imports.

``create_method``, ``evaluate``, ``study``, ``tune`` and the command line read these tables, so a new method or metric
needs only its file and its row here. The functions below read the rows' options, also without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from .options import Option, read_options

_PACKAGE = __name__.partition(".")[0]


def load(home: str) -> Any:
    """Import an object by its path, ``package.module:Name`` or ``package.module:Class.method``."""
    module, _, name = home.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


@dataclass(frozen=True)
class MethodRow:
    """A method: its class, its options and its fixed arguments.

    Attributes:
        home: path of the callable that takes the model and the options, and returns an object with ``attribute``.
        options: path of the object whose fields or arguments are the options.
        only: the accepted options; None for all.
        given: fixed arguments.
        explorer: whether another model may decide the steps of its path.
        defaults: defaults of options that differ from those of ``options``.
        split: arguments of ``home`` that are also options: the class of ``options`` splits them into its fields.
        own: further options, which only ``home`` understands.
        family: name in the help for the methods with these options; default: the class of ``home``.
    """

    home: str
    options: str
    only: tuple[str, ...] | None = None
    given: Mapping[str, object] = field(default_factory=dict)
    explorer: bool = False
    defaults: Mapping[str, object] = field(default_factory=dict)
    family: str = ""
    split: tuple[str, ...] = ()
    own: tuple[str, ...] = ()


_CAPTUM = f"{_PACKAGE}.methods.captum_methods:CaptumMethod"
_FAMPE = f"{_PACKAGE}.engine.config:FAMPEConfig"


def _captum(name: str, *only: str) -> MethodRow:
    options = (*only, "bounds", "absolute", "blur_cutoff", "area_cutoff")
    return MethodRow(_CAPTUM, _CAPTUM, options, {"name": name}, family="Captum's methods")


def _cam(name: str, *only: str) -> MethodRow:
    home = f"{_PACKAGE}.methods.grad_cam_methods:GradCAMMethod"
    return MethodRow(home, home, (*only, "bounds"), {"name": name}, family="class activation maps")


def _attention(name: str) -> MethodRow:
    home = f"{_PACKAGE}.methods.attention:AttentionMethod"
    return MethodRow(home, home, ("bounds",), {"name": name}, family="attention")


def _floor(kind: str, *only: str) -> MethodRow:
    home = f"{_PACKAGE}.methods.floors:{kind}"
    return MethodRow(home, home, (*only, "bounds"), family="the baselines")


PLAIN_METHODS: dict[str, MethodRow] = {
    "fampe": MethodRow(
        f"{_PACKAGE}.methods.fampe:FAMPE", _FAMPE, explorer=True, split=("passes",), own=("calibration",)
    ),
    "fampe_published": MethodRow(
        f"{_PACKAGE}.methods.fampe:FAMPE.published",
        _FAMPE,
        explorer=True,
        defaults={"mode": "mix", "steps": 10, "samples": 20, "views": 0, "input_diversity": True, "area_cutoff": None},
    ),
    "attexplore": MethodRow(
        f"{_PACKAGE}.methods.attexplore:AttEXplore",
        f"{_PACKAGE}.engine.config:AttEXploreConfig",
        explorer=True,
    ),
    "integrated_gradients": _captum("integrated_gradients", "passes"),
    "smoothgrad": _captum("smoothgrad", "passes", "noise", "seed", "squared"),
    "saliency": _captum("saliency"),
    "gradcam": _cam("gradcam", "layer"),
    "gradcam_plus_plus": _cam("gradcam_plus_plus", "layer"),
    "hirescam": _cam("hirescam", "layer"),
    "layercam": _cam("layercam", "layer"),
    "fullgrad": _cam("fullgrad"),
    "attention_rollout": _attention("attention_rollout"),
    "attention_gradient": _attention("attention_gradient"),
    "rise": MethodRow(f"{_PACKAGE}.methods.rise:RISE", f"{_PACKAGE}.methods.rise:RISEConfig"),
    "spectral_ig": MethodRow(
        f"{_PACKAGE}.methods.spectral_ig:SpectralIG", f"{_PACKAGE}.methods.spectral_ig:SpectralIGConfig"
    ),
    "centre_prior": _floor("CentrePrior"),
    "random_map": _floor("RandomMap", "seed"),
}
"""Methods without filters. ``fampe_published`` is ``FAMPEConfig.published()``."""

FILTERS: dict[str, Mapping[str, object]] = {"forgrad_": {"signed": False}, "forgrad_signed_": {"signed": True}}
"""Prefixes of a method's name with which FORGrad filters its maps, as the authors do or with signs."""

METHODS: tuple[str, ...] = (*PLAIN_METHODS, *(prefix + name for prefix in FILTERS for name in PLAIN_METHODS))
"""Every name that ``create_method`` accepts."""


def parts_of(method: str) -> tuple[str, str]:
    """Split a method's name into the filter's prefix, possibly empty, and the unfiltered method.

    Raises:
        ValueError: an unknown name.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")
    prefix = max((prefix for prefix in FILTERS if method.startswith(prefix)), key=len, default="")
    return prefix, method.removeprefix(prefix)


def method_options(method: str) -> tuple[Option, ...]:
    """Read the options of a method, except the explorer, which is a model.

    Raises:
        ValueError: an unknown name.
    """
    prefix, plain = parts_of(method)
    row = PLAIN_METHODS[plain]
    own = tuple(
        replace(option, default=row.defaults.get(option.name, option.default))
        for option in (*read_options(row.options, row.only), *_read_arguments(row))
    )
    return (*own, filter_option()) if prefix else own


def _read_arguments(row: MethodRow) -> tuple[Option, ...]:
    names = (*row.split, *row.own)
    return read_options(row.home, names) if names else ()


def filter_option() -> Option:
    """Read the single option of FORGrad's filters."""
    return replace(*read_options(f"{_PACKAGE}.methods.forgrad:FORGrad", ["cutoff"]), name="map_cutoff")


@dataclass(frozen=True)
class GradientRow:
    """A kind of gradients for an attack.

    Attributes:
        options: path of the configuration whose fields are the options.
        defaults: defaults of options that differ from those of ``options``.
    """

    options: str
    defaults: Mapping[str, object] = field(default_factory=dict)


ATTACK_DEFAULTS: Mapping[str, object] = {
    "steps": 10, "views": 0, "eps": 8 / 255, "smoothing": False, "input_diversity": False,
}  # fmt: skip
"""Defaults of an attack's path that differ from those of a map's."""

GRADIENTS: dict[str, GradientRow] = {
    "plain": GradientRow(f"{_PACKAGE}.engine.config:PathConfig", {**ATTACK_DEFAULTS, "samples": 1}),
    "fampe": GradientRow(_FAMPE, {**ATTACK_DEFAULTS, "samples": 20}),
    "attexplore": GradientRow(f"{_PACKAGE}.engine.config:AttEXploreConfig", {**ATTACK_DEFAULTS, "samples": 20}),
    "none": GradientRow(f"{_PACKAGE}.robustness.simba:SimBAConfig"),
}
"""Gradients of an attack: of the images themselves, of a method's samples, or none, for SimBA."""

DEPTH_OPTIONS: tuple[str, ...] = ("layers", "pixel_weight", "layer_weights", "gate_floor")
"""Options of path methods that only apply to views, and that a calibration sets."""

NOT_OF_ATTACKS: tuple[str, ...] = ("direction", "area_cutoff", "views", *DEPTH_OPTIONS)
"""Options that attacks do not have: they set the direction themselves, and make no map for the others."""


def gradient_options(gradients: str) -> tuple[Option, ...]:
    """Read the options of an attack with these gradients."""
    row = GRADIENTS[gradients]
    return tuple(
        replace(option, default=row.defaults.get(option.name, option.default))
        for option in read_options(row.options)
        if option.name not in NOT_OF_ATTACKS
    )


@dataclass(frozen=True)
class Score:
    """A score of a metric.

    Attributes:
        name: name in records.
        title: title in pictures.
        head: head of the column in tables.
        short: short name for the column of differences; empty without such a column.
        better: ``high`` or ``low``.
        field: field of the metric's result; or two columns, the second subtracted from the first.
    """

    name: str
    title: str
    head: str
    short: str
    better: str
    field: str | tuple[str, str]


@dataclass(frozen=True)
class MetricRow:
    """A metric: its function, its options and its scores.

    Attributes:
        home: path of the function of a model, images, maps and targets, or, if it ``explains``, of a method, images and
            targets. Its other arguments are its options.
        scores: its scores per image.
        only: the options that a run may set.
        prefix: prefix of the options' flags on the command line.
        options: path of the function that documents the options; default: ``home``.
        unprefixed: options whose flags have no prefix.
        choices: values of an option whose type does not list them.
        explains: whether it lets the method explain other images.
        named: whether its random numbers depend on image ids, so that it accepts ``image_ids``.
        partners: whether it needs other images of the run, as ``partners``.
        reading: an explanatory sentence below tables.
    """

    home: str
    scores: tuple[Score, ...]
    only: tuple[str, ...]
    prefix: str
    options: str = ""
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    explains: bool = False
    named: bool = True
    partners: bool = False
    unprefixed: tuple[str, ...] = ()
    reading: str = ""


PROTOCOLS: dict[str, str] = {
    name: f"{_PACKAGE}.metrics.protocols:{name.upper()}" for name in ("rise", "attexplore", "per_pixel", "per_element")
}
"""The protocols of insertion and deletion, and where each is defined."""

METRICS: dict[str, MetricRow] = {
    "insertion_deletion": MetricRow(
        f"{_PACKAGE}.metrics.insertion_deletion:insertion_deletion",
        (
            Score("insertion", "insertion", "insertion", "ins.", "high", "insertion"),
            Score("deletion", "deletion", "deletion", "del.", "low", "deletion"),
            Score("faithfulness", "insertion − deletion", "ins. - del.", "", "high", ("insertion", "deletion")),
        ),
        ("protocol", "steps", "passes"),
        "metric-",
        choices={"protocol": tuple(PROTOCOLS)},
        named=False,
        unprefixed=("protocol",),
    ),
    "centre_gain": MetricRow(
        f"{_PACKAGE}.metrics.centre_gain:centre_gain",
        (
            Score("insertion_over_centre", "insertion over centre", "ins. - centre", "ins. o. c.", "high", "insertion"),
            Score("deletion_under_centre", "deletion under centre", "centre - del.", "del. u. c.", "high", "deletion"),
        ),
        ("protocol", "steps", "passes"),
        "centre-gain-",
        f"{_PACKAGE}.metrics.insertion_deletion:insertion_deletion",
        choices={"protocol": tuple(PROTOCOLS)},
        named=False,
        reading="centre: a central Gaussian in place of the map; above 0 is better than it",
    ),
    "mu_fidelity": MetricRow(
        f"{_PACKAGE}.metrics.mu_fidelity:mu_fidelity",
        (Score("mu_fidelity", "mu-fidelity", "mu-fidelity", "mu-f.", "high", "scores"),),
        ("samples", "grid_size", "subset_percent", "baseline", "score", "seed"),
        "mu-fidelity-",
        reading="mu-fidelity: rank correlation of random parts' relevance and the lost probability; high is faithful",
    ),
    "stability": MetricRow(
        f"{_PACKAGE}.metrics.stability:stability",
        (Score("stability", "stability", "stability", "stab.", "low", "scores"),),
        ("samples", "radius", "reduce", "distance", "normalise", "seed"),
        "stability-",
        explains=True,
        reading="stability: share of the map that changes when the image changes by up to 0.02; low is stable",
    ),
    "grid_pointing": MetricRow(
        f"{_PACKAGE}.metrics.grid_pointing:grid_pointing",
        (Score("grid_pointing", "grid pointing", "grid pointing", "grid p.", "high", "scores"),),
        ("grid", "cells", "seed"),
        "grid-pointing-",
        explains=True,
        partners=True,
        reading="grid pointing: share of the map on the right image of n x n of different classes; chance is 1 / n^2",
    ),
    "parameter_randomisation": MetricRow(
        f"{_PACKAGE}.metrics.parameter_randomisation:parameter_randomisation",
        (Score("parameter_randomisation", "parameter randomisation", "param. random.", "p. rand.", "low", "scores"),),
        ("stages", "values", "seed"),
        "parameter-randomisation-",
        explains=True,
        reading="parameter randomisation: rank correlation with a randomised model's map; low depends on the model",
    ),
}


def metric_options(metric: str) -> tuple[Option, ...]:
    """Read the options of a metric that a run may set."""
    row = METRICS[metric]
    return tuple(
        replace(option, kind="choice", choices=row.choices[option.name]) if option.name in row.choices else option
        for option in read_options(row.options or row.home, row.only)
    )


@dataclass(frozen=True)
class StudyRow:
    """A study: the function that defines it, and the parameter it varies.

    Attributes:
        home: path of the function that makes the ``Study`` for a ``Budget``.
        varies: the varied parameter, for the help.
    """

    home: str
    varies: str


_DEFINITIONS = f"{_PACKAGE}.runs.study_definitions"

STUDIES: dict[str, StudyRow] = {
    "methods": StudyRow(f"{_DEFINITIONS}:methods_study", "FAMPE's parts"),
    "peers": StudyRow(f"{_DEFINITIONS}:peers_study", "the method, including other libraries', and its passes"),
    "tokens": StudyRow(f"{_DEFINITIONS}:tokens_study", "the method, for token models"),
    "forgrad": StudyRow(f"{_DEFINITIONS}:forgrad_study", "gradient methods with FORGrad's filter, beside RISE"),
    "alpha": StudyRow(f"{_DEFINITIONS}:alpha_study", "alpha"),
    "cutoff": StudyRow(f"{_DEFINITIONS}:cutoff_study", "the cut-off between the bands"),
    "budget": StudyRow(f"{_DEFINITIONS}:budget_study", "steps and samples"),
    "noise": StudyRow(f"{_DEFINITIONS}:noise_study", "sigma and rho"),
    "shapes": StudyRow(f"{_DEFINITIONS}:shapes_study", "the shape of the mask between the bands"),
    "explorer": StudyRow(f"{_DEFINITIONS}:explorer_study", "the model that decides the steps"),
}

TRAININGS: tuple[str, ...] = ("plain", "low_pass", "band_mix", "adversarial")
"""Trainings of the classifiers that ``defend`` compares."""

TRAINING_DATA: tuple[str, ...] = ("digits", "textures")
"""Data sets on which it trains them."""
