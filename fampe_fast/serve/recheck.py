"""Compute the map of a service's record again, and compare it with the record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..answers.comparison import Comparison, compare
from ..answers.environment import processor_of, reasons_for_other_bits, versions_now
from ..answers.explainer import Explainer, Item, explain_noise, map_shape, noise_for
from ..answers.pixels import pixels_of
from ..answers.result import Result, RowError, RowResult, result_values
from ..images import read_image_bytes
from ..methods.registry import create_method
from ..methods.settings import everything_of
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..ops.backends import choice
from .method_book import configuration_digest
from .record import decode_map, name_of


class Rechecked(NamedTuple):
    """A record and the newly computed map."""

    found: Result
    comparison: Comparison
    changed: list[str]
    """Differences to the environment of the record's making, which allow other bits."""


def recheck(record: Mapping[str, Any], image: bytes, classifier: Classifier) -> Rechecked:
    """Compute a record's map again.

    Args:
        record: a record from ``read_record``; with the map itself, if the bits may differ.
        image: the explained image file.
        classifier: the model.

    Raises:
        ImageReadError: the image cannot be read.
        ValueError: the image, the model or the configuration is not the record's.
    """
    decoded = read_image_bytes(image, "the image")
    name = name_of(decoded)
    if name.sha256 != record["image_sha256"]:
        raise ValueError(
            f"the image is not the one that was explained: the SHA-256 of its pixels is {name.sha256}, and "
            f"{record['image_sha256']} in the record"
        )
    fingerprint = identity_of(classifier)["fingerprint"]
    if fingerprint != record["model_fingerprint"]:
        raise ValueError(
            f"the record is of another model: its fingerprint is {record['model_fingerprint']}, but {fingerprint} here"
        )
    method = create_method(record["method"], classifier, **record["options"])
    configuration = configuration_digest(everything_of(method, classifier))
    if configuration != record["configuration"]:
        raise ValueError(
            f"the method is configured otherwise than in the record ({configuration} here, {record['configuration']} "
            "there): by options that name files, which a record does not hold, or in another version of this package"
        )
    device = classifier.mean.device
    if device.type == "cpu":
        torch.set_num_threads(record["threads"])
    chunk = record["internal_batch_size"]
    shape = map_shape(explain_noise(method, noise_for(classifier), chunk))
    explainer = Explainer(method, classifier, shape)
    item = Item(pixels_of(decoded, classifier.transform), record["target"], record["image_id"])
    (answer,) = explainer([item], chunk)
    changed = _changes(record, device)
    if isinstance(answer, RowError):
        return Rechecked(answer, Comparison("different", f"it has a map, and gets none now: {answer.reason}"), changed)
    found = _as_recorded(explainer.finish(answer, record["map_dtype"], overlay=False))
    if "map" not in record:
        return Rechecked(found, _compare_digests(record, found, changed), changed)
    return Rechecked(found, compare(_stored(record, found), found, exact=not changed), changed)


def _changes(record: Mapping[str, Any], device: torch.device) -> list[str]:
    here = {"device": device.type, "backend": choice(device)[0], "processor": processor_of(device)}
    there = {name: record.get(name) for name in here}
    changed = reasons_for_other_bits({**there, **record["versions"]}, {**here, **versions_now()})
    if record["batch_size"] > 1:
        changed.append(f"explained in a batch of {record['batch_size']} then, alone now")
    return changed


def _as_recorded(found: RowResult) -> RowResult:
    """Round the values that a record rounds."""
    rounded = result_values(found)
    return found._replace(probability=rounded["probability"], cutoff=rounded["cutoff"])


def _stored(record: Mapping[str, Any], found: RowResult) -> RowResult:
    """Read the record's result, with the new summaries and overlay, which a record does not contain."""
    stored = found._replace(
        target=record["target"],
        class_name=record["class"],
        probability=record["probability"],
        predicted=record["predicted"],
        cutoff=record["cutoff"],
        scale=record["map_scale"],
        map=decode_map(record["map"]),
    )
    if result_values(stored)["map_sha256"] != record["map_sha256"]:
        raise ValueError("the record contradicts itself: its map has another SHA-256 than it says")
    if stored.map.shape != found.map.shape:
        raise ValueError(f"the record's map is {stored.map.shape}, and the method makes {found.map.shape}")
    return stored


def _compare_digests(record: Mapping[str, Any], found: RowResult, changed: list[str]) -> Comparison:
    now = result_values(found)
    others = [name for name, value in now.items() if record.get(name) != value]
    if not others:
        return Comparison("same", "")
    if changed:
        raise ValueError(
            f"the record holds no map, so that only equal bits could confirm it, and they may differ here "
            f"({'; '.join(changed)}): save the answer in JSON, which holds the map"
        )
    return Comparison("different", f"other values: {', '.join(others)}")
