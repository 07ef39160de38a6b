"""Make a plan for a model and a method, and make the method of a plan."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..answers.environment import versions_now
from ..answers.explainer import explain_noise, map_shape, noise_for
from ..checks import check_choice, check_count
from ..engine.config import PathConfig, Precision
from ..engine.precision import arithmetic, settled_precision
from ..errors import warn
from ..files import json_text
from ..images.reading import MAX_PIXELS
from ..methods.base import AttributionMethod
from ..methods.registry import create_method
from ..methods.settings import everything_of, unfiltered
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..ops.backends import choice
from ..runtime.chunk_probe import ENDLESS
from ..runtime.chunking import ChunkSize
from ..runtime.model_probe import probe
from .model_spec import ModelSpec
from .plan import Plan, differences
from .shards import MOST_NUMBERS
from .sources import absolute
from .urls import without_secrets

_COUNTS = ("sample", "rows_per_shard", "batch_size", "threads", "max_pixels", "max_bytes", "rows_per_piece")


def images_per_batch(device: torch.device) -> int:
    """Return the images per batch of a plan that names no number."""
    # On an H100 32 maps of one pass take little longer than 8 (docs/results/performance.md).
    return 8 if device.type == "cpu" else 32


def make_plan(
    classifier: Classifier,
    model: ModelSpec,
    method: str,
    options: Mapping[str, Any],
    sources: Sequence[str],
    *,
    internal_batch_size: int | None = None,
    **settings: Any,
) -> Plan:
    """Make a plan without its rows; explain an image of noise, to check the method and find the shape of its maps.

    Args:
        classifier: the model, on its device.
        model: the arguments with which ``classifier`` was loaded.
        method: name of the method.
        options: options of ``create_method``.
        sources: as for ``list_rows``.
        internal_batch_size: samples per model pass; None for 8 on a CPU, and as many as fit into memory elsewhere.
        **settings: values for the fields of ``Plan`` that differ from their defaults: ``target``, ``sample``, ``seed``,
            ``rows_per_shard``, ``batch_size`` (default: 8 on a CPU, else 32), ``threads`` (default: as many as torch
            has now), ``map_dtype``, ``overlay``, ``max_pixels``, ``max_bytes``, ``rows_per_piece``.

    Raises:
        ValueError, TypeError: a number out of range, or a method or model that cannot be used.
        ImportError: a package that the method needs is not installed.
    """
    settings = {"threads": torch.get_num_threads(), **settings}
    for name in _COUNTS:
        if settings.get(name) is not None:
            settings[name] = check_count(name, settings[name])
    if settings.get("max_pixels", 0) > MAX_PIXELS:
        raise ValueError(
            f"max_pixels must be {MAX_PIXELS} at most, beyond which Pillow refuses images; got {settings['max_pixels']}"
        )
    if "map_dtype" in settings:
        check_choice("map_dtype", settings["map_dtype"], ("float16", "float32"))
    maker = create_method(method, classifier, **options)
    noise = noise_for(classifier)
    if settings.get("batch_size") is None:
        settings["batch_size"] = images_per_batch(noise.device)
    info = probe(classifier, noise)
    precision = _precision_of(maker)
    chunk = internal_batch_size
    if chunk is None:
        around = partial(arithmetic, precision, noise.device)
        chunk = ChunkSize.for_gradients((classifier,), noise, None, precision, [info], ENDLESS, around).size
    shape = map_shape(explain_noise(maker, noise, chunk))
    plan = Plan(
        sources=tuple(without_secrets(absolute(source)) for source in sources),
        internal_batch_size=check_count("internal_batch_size", chunk),
        method=method,
        options=json.loads(json_text(options)),
        model=model,
        identity=identity_of(classifier),
        everything=json.loads(json_text(everything_of(maker, classifier))),
        device=noise.device.type,
        precision=settled_precision(precision, noise.device),
        backend=choice(noise.device)[0],
        shape=shape,
        classes=info.shape[0],
        versions=versions_now(),
        **settings,
    )
    most = MOST_NUMBERS // math.prod(shape)
    if plan.rows_per_shard > most:
        raise ValueError(f"rows_per_shard must be {most} at most for maps of {shape}, got {plan.rows_per_shard}")
    return plan


def method_of(plan: Plan, classifier: Classifier) -> AttributionMethod:
    """Make the method of a plan for its model.

    Args:
        plan: the plan.
        classifier: the classifier, loaded from ``plan.model``.

    Raises:
        ValueError: the model or the method's settings differ from the plan's, for example because a file of
            calibrations has changed; the message names both.

    Warns (``FampeWarning``) if this process allows tf32 differently from the one that made the plan.
    """
    identity = identity_of(classifier)
    if identity["fingerprint"] != plan.identity["fingerprint"]:
        raise ValueError(
            f"the model is not the planned one: {plan.identity['model']} has the fingerprint "
            f"{plan.identity['fingerprint']} in the plan, and {identity['model']} has {identity['fingerprint']} now"
        )
    method = create_method(plan.method, classifier, **plan.options)
    now = json.loads(json_text(everything_of(method, classifier)))
    if now != plan.everything:
        changed = differences(plan, replace(plan, everything=now))
        raise ValueError(f"the method's settings are not the planned ones: {'; '.join(changed)}")
    device = classifier.mean.device
    here = settled_precision(_precision_of(method), device)
    if here != plan.precision and device.type == plan.device:
        warn(
            f"the plan was made for passes in {plan.precision}, and in this process they are in {here}, which changes "
            "the maps: set torch.backends as they were, or make the plan with precision='fp32'"
        )
    return method


def _precision_of(method: Any) -> Precision:
    """Read the precision of the passes; of a filter's, that of the method that it filters."""
    config = getattr(unfiltered(method), "config", None)
    return config.precision if isinstance(config, PathConfig) else "auto"
