"""Compare methods on image files: explain every image with each, and measure the maps.

``evaluate`` runs it with the user's methods, and ``study`` with the variants of a study.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import remove_leftovers
from ..methods.base import AttributionMethod, asks_for_gradients, describe, passes_of
from ..methods.explained import check_targets
from ..methods.settings import everything_of
from ..metrics import Estimate, Partners, mean_and_error, paired_difference
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..runtime.model_probe import probabilities_of
from .batches import Batch, Failure, Group, check_run_ids, device_of, groups_of, settle_all
from .map_store import MapStore
from .measurement import Measurement, Scores
from .partners import partners_of_run
from .records import Item, Records

SCORES_FILE, MAPS_FOLDER = "scores.jsonl", "maps"
"""Files and folders of a comparison that let it be resumed."""


@dataclass
class Comparison:
    """The state of a comparison, complete for every image it names.

    Attributes:
        measurement: the metrics and their options.
        model: name and fingerprint.
        methods: for each method, by label, its settings, its model passes per image, and whether it needs gradients.
        paths: images that were scored with every method.
        image_ids: each image's id in the random stream.
        targets: class of each image.
        probabilities: the model's probability of that class.
        scores: the scores by label.
        failures: images that were left out.
        earlier: number of images that an earlier run had finished.
    """

    measurement: Measurement
    model: dict[str, object]
    methods: dict[str, dict[str, object]]
    paths: list[Path] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    earlier: int = 0

    def columns(self, label: str) -> dict[str, list[float]]:
        """List every score of a method's maps by name, with an entry per image."""
        return self.scores[label].columns(self.measurement.scores)

    def seconds(self, label: str) -> float:
        """Return the measured seconds per image of a method's maps."""
        return self.scores[label].seconds / max(1, len(self.paths))

    def summary(self) -> dict[str, dict[str, Estimate]]:
        """Compute means with standard errors, and paired differences to the first method as ``..._minus_first``."""
        if not self.paths:
            return {}
        columns = {label: self.columns(label) for label in self.scores}
        first = next(iter(columns.values()))
        return {
            label: {
                **{name: mean_and_error(values) for name, values in found.items()},
                **{f"{name}_minus_first": paired_difference(values, first[name]) for name, values in found.items()},
            }
            for label, found in columns.items()
        }

    def as_json(self) -> dict[str, Any]:
        """Return everything as values for JSON."""
        measured = [score.name for score in self.measurement.scores if isinstance(score.field, str)]
        return {
            **({"protocol": self.measurement.protocol} if self.measurement.protocol else {}),
            "metrics": self.measurement.options,
            **self.model,
            "methods": self.methods,
            "summary": {
                label: {name: vars(estimate) for name, estimate in row.items()} for label, row in self.summary().items()
            },
            "seconds_per_image": {label: self.seconds(label) for label in self.scores},
            "images": [
                {
                    "file": path.name,
                    "id": self.image_ids[k],
                    "target": self.targets[k],
                    "probability": self.probabilities[k],
                    **{
                        name: {label: found.values[name][k] for label, found in self.scores.items()}
                        for name in measured
                    },
                }
                for k, path in enumerate(self.paths)
            ],
            "failures": [{"file": failure.path.name, "reason": failure.reason} for failure in self.failures],
        }


class Maps:
    """The maps of a comparison's first images, for its pictures."""

    def __init__(self, store: MapStore, contexts: Mapping[str, str], items: Sequence[Item]) -> None:
        self._store, self._contexts, self._items = store, contexts, items

    @property
    def paths(self) -> list[Path]:
        """The images' files."""
        return [item.path for item in self._items]

    def of(self, label: str) -> list[Tensor]:
        """Load a method's maps, one (C, H, W) per image."""
        return [self._store.load(self._contexts[label], item) for item in self._items]


def compare_files(
    command: str,
    classifier: Classifier,
    methods: Mapping[str, AttributionMethod],
    paths: Sequence[Path],
    out: Path,
    write: Callable[[Comparison, Maps], None],
    *,
    measurement: Measurement,
    targets: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    maps_kept: int = 0,
    on_scores: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Comparison:
    """Explain every file with every method, and measure the maps; finished work is stored and not repeated.

    A method's scores of a batch are stored in ``out/scores.jsonl`` at once, and are reused for the same image, id,
    target, model and settings. All methods process a batch before the next one is read, so an interrupted comparison is
    a complete one of fewer images: it is written, and the interrupt is raised again.

    Args:
        command: name of the command in the records.
        classifier: the model.
        methods: by label, made for this classifier; the others are compared with the first.
        paths: image files.
        out: folder, made if missing.
        write: writes the result's files; called once, if any image has been scored with all methods.
        measurement: the metrics and their options.
        targets: class of each file; None uses the model's prediction.
        image_ids: unique id of each file in the random stream, 0 to 2^32 - 2; default: its position in ``paths``.
            A file with the same id has the same scores in any other call, order or subset of the files; for metrics
            with partner images, in any order of the same files.
        batch_size: images read together.
        internal_batch_size: samples per model pass.
        maps_kept: number of images whose maps are kept for ``write``.
        on_scores: called with the number of newly scored maps (images times methods).
        on_failure: called for each image that is left out.

    Raises:
        OSError: the results cannot be written.
        ValueError: the records are another command's; an option of a metric does not fit the images' size, the methods
            or the number of classes, or image ids are not unique or out of range.
    """
    image_ids = check_run_ids(paths, image_ids)
    none = torch.zeros(0, classifier.channels, *classifier.input_size, device=device_of(classifier))
    for method in methods.values():
        measurement.check(classifier, none, method)
    for folder in (out, out / MAPS_FOLDER):
        remove_leftovers(folder)
    settings = {
        label: {**describe(method), "passes": passes_of(method), "gradients": asks_for_gradients(method)}
        for label, method in methods.items()
    }
    result = Comparison(measurement, identity_of(classifier), settings, scores={label: Scores() for label in methods})
    store = MapStore(out / MAPS_FOLDER)
    groups: list[Group] = []

    def failed(failure: Failure) -> None:
        result.failures.append(failure)
        on_failure(failure)

    with Records(out / SCORES_FILE, command) as records:
        answers = records.context({"of": "answers", **result.model})
        answer = partial(_answers, classifier, targets)
        partners: Partners | None = None
        beside: dict[str, str] = {}
        if measurement.needs_partners:
            # Partners are chosen by class, so all predictions come first. Failures are reported later, in order.
            groups_to_ask = groups_of(classifier, paths, targets, batch_size, lambda failure: None, image_ids)
            partners, name = partners_of_run(classifier, groups_to_ask, records, answers, answer)
            measurement.check(classifier, none, partners=partners)
            beside = {"partners": name}
        contexts = {
            label: records.context(
                {
                    "of": "scores",
                    **result.model,
                    "method": everything_of(method, classifier),
                    "metrics": measurement.options,
                    **beside,
                }
            )
            for label, method in methods.items()
        }

        def settle(group: Group, label: str, kept: bool) -> None:
            method, context = methods[label], contexts[label]
            items = {item.position: item for item in group.items}

            def done(item: Item) -> bool:
                return records.get(context, item) is not None and (not kept or store.holds(context, item))

            def score(batch: Batch) -> tuple[Tensor, list[dict[str, Any]]]:
                known = [records.get(answers, items[position]) for position in batch.positions]
                chosen = torch.tensor([found["target"] for found in known if found], device=batch.images.device)
                began = time.perf_counter()
                maps = method.attribute(
                    batch.images, chosen, image_ids=batch.ids, internal_batch_size=internal_batch_size
                )
                seconds = (time.perf_counter() - began) / len(batch.paths)
                values = measurement(
                    classifier, method, batch.images, maps, chosen, batch.ids, internal_batch_size, partners
                )
                return maps, [
                    {"values": {name: found[k] for name, found in values.items()}, "seconds": seconds}
                    for k in range(len(batch.paths))
                ]

            def keep(batch: Batch, part: list[Item], found: tuple[Tensor, list[dict[str, Any]]]) -> None:
                maps, values = found
                if kept:
                    for item, attribution in zip(part, maps, strict=True):
                        store.save(context, item, attribution)
                records.add(context, part, values)

            group.settle(done, score, keep)

        def complete(item: Item) -> bool:
            return all(records.get(context, item) is not None for context in (answers, *contexts.values()))

        def settle_whole(group: Group) -> None:
            count = len(group.items)
            group.settle_in(records, answers, answer)
            # For every image of the groups in the picture: if one fails, another takes its place.
            kept = sum(len(earlier.items) for earlier in groups) < maps_kept
            groups.append(group)
            for label in methods:
                settle(group, label, kept)
                on_scores(count)

        def finish(scored: list[Item], earlier: int) -> None:
            result.earlier = earlier
            if scored:
                _fill(result, records, answers, contexts, scored)
                write(result, Maps(store, contexts, scored[:maps_kept]))

        every = groups_of(classifier, paths, targets, batch_size, failed, image_ids)
        settle_all(every, complete, settle_whole, finish)
    return result


def _answers(classifier: Classifier, targets: Sequence[int] | None, batch: Batch) -> list[dict[str, Any]]:
    """Compute the class that each image of a batch is explained for, and the model's probability of it."""
    probabilities = probabilities_of(classifier, batch.images)
    chosen = probabilities.argmax(1)
    if targets is not None:
        chosen = torch.tensor([targets[position] for position in batch.positions], device=chosen.device)
        check_targets(chosen, probabilities)
    right = probabilities.gather(1, chosen[:, None])[:, 0]
    for target in chosen.tolist():
        classifier.class_name(target)  # a class without a name fails this image, not the whole run at its end
    return [
        {"target": target, "probability": probability}
        for target, probability in zip(chosen.tolist(), right.tolist(), strict=True)
    ]


def _fill(
    result: Comparison, records: Records, answers: str, contexts: Mapping[str, str], scored: Sequence[Item]
) -> None:
    """Fill the result from the records."""
    for item in scored:
        found = records.get(answers, item)
        assert found is not None
        result.paths.append(item.path)
        result.image_ids.append(item.image_id)
        result.targets.append(found["target"])
        result.probabilities.append(_number(found["probability"]))
        for label, context in contexts.items():
            of_method = records.get(context, item)
            assert of_method is not None
            values = {name: [_number(value)] for name, value in of_method["values"].items()}
            result.scores[label].add(values, of_method["seconds"])


def _number(value: float | None) -> float:
    """Read a number of a record, in which NaN is null."""
    return math.nan if value is None else float(value)
