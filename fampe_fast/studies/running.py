"""Runs a study over image files: what is on record already is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..methods.base import AttributionMethod
from ..methods.passes import passes_of
from ..methods.registry import create_method
from ..metrics import Estimate, insertion_deletion, mean_and_error, paired_difference
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..pipelines.batches import Batch, Failure, one_by_one_on_error, read_batches, targets_of_batch
from ..pipelines.explain import settings_of, unique_names
from .design import Study, Variant
from .records import Record, Records


@dataclass(frozen=True)
class Outcome:
    """One variant's scores over the images that all variants have.

    Attributes:
        variant: the variant.
        passes: forward and backward passes of the model per image.
        insertion: mean area, higher is better.
        deletion: mean area, lower is better.
        insertion_gain: paired difference of insertion to the study's first variant.
        deletion_gain: the same of deletion; below zero is better.
    """

    variant: Variant
    passes: int
    insertion: Estimate
    deletion: Estimate
    insertion_gain: Estimate
    deletion_gain: Estimate


@dataclass
class StudyResult:
    """A study, run.

    Attributes:
        study: the study.
        protocol: of insertion and deletion.
        settings: all that the scores depend on.
        files: images that every variant has scored.
        outcomes: a line per variant; empty without such images.
        records: of those images.
        failures: images left out.
    """

    study: Study
    protocol: str
    settings: dict[str, Any]
    files: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def run_study(
    study: Study,
    classifier: Classifier,
    paths: Sequence[Path],
    out: Path,
    *,
    explorer: Classifier | None = None,
    targets: Sequence[int] | None = None,
    protocol: str = "rise",
    metric_steps: int | None = None,
    metric_passes: int | None = None,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    on_scores: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> StudyResult:
    """Explain every file with every variant and score the maps; each score is on disk (``out/records.jsonl``) at once.

    Every variant sees an image before the next batch is read, so an interrupted study is a smaller study: run it again
    with the same folder and it goes on. Images are named in the random stream by their position among ``paths``.

    Args:
        study: what to run.
        classifier: the model.
        paths: image files.
        out: folder of the records.
        explorer: the other model, where a variant asks for one.
        targets: the class of each file; None takes the model's own choice.
        protocol: of insertion and deletion, by name.
        metric_steps: at most this many steps of insertion and deletion; None is the protocol's own number.
        metric_passes: at most so many of them are measured, the others interpolated; None measures all.
        batch_size: images read together.
        internal_batch_size: samples per model pass.
        on_scores: called with the number of scores (images times variants) just settled.
        on_failure: called for an image left out.

    Returns:
        The result over the images that all variants have scored.

    Raises:
        ValueError: the folder holds a study with other settings, images or labels, a variant's options are out of
            range, or an explorer is missing.
        TypeError: a variant's method does not have one of its options.
        OSError: the records cannot be written.
    """
    methods = {variant.label: _method(variant, classifier, explorer) for variant in study.variants}
    settings = {
        "study": study.name,
        "protocol": protocol,
        "metric_steps": metric_steps,
        "metric_passes": metric_passes,
        "labelled": targets is not None,
        "version": __version__,
        **identity_of(classifier),
        "explorer": None if explorer is None else identity_of(explorer),
        "variants": {label: settings_of(method) for label, method in methods.items()},
    }
    records = Records(out / "records.jsonl", settings)
    names = unique_names(paths)
    _check_same_images(records, names, targets)
    result = StudyResult(study, protocol, settings)
    place = {path: position for position, path in enumerate(paths)}
    failed_positions: set[int] = set()

    def failed(failure: Failure) -> None:
        failed_positions.add(place[failure.path])
        result.failures.append(failure)
        on_failure(failure)

    def score(label: str, batch: Batch) -> list[Record]:
        chosen = targets_of_batch(classifier, batch, targets)
        maps = methods[label].attribute(
            batch.images, chosen, image_ids=batch.positions, internal_batch_size=internal_batch_size
        )
        areas = insertion_deletion(
            classifier, batch.images, maps, chosen, protocol=protocol, steps=metric_steps, passes=metric_passes
        )
        columns = (chosen.tolist(), areas.insertion.tolist(), areas.deletion.tolist())
        return [
            Record(names[position], position, label, *row)
            for position, row in zip(batch.positions, zip(*columns, strict=True), strict=True)
        ]

    open_paths = [
        path for path, name in zip(paths, names, strict=True) if any((name, label) not in records for label in methods)
    ]
    on_scores((len(paths) - len(open_paths)) * len(methods))
    for read in read_batches(classifier, open_paths, batch_size, failed):
        whole = Batch(read.paths, [place[path] for path in read.paths], read.images)  # numbered among all paths
        for label in methods:
            keep = [
                k
                for k, position in enumerate(whole.positions)
                if position not in failed_positions and (names[position], label) not in records
            ]
            if keep:
                part = _part(whole, keep)
                for _, scored in one_by_one_on_error(part, partial(score, label), failed):
                    for record in scored:
                        records.add(record)
            on_scores(len(whole.paths))
    _summarise(result, methods, records, names)
    return result


def _check_same_images(records: Records, names: Sequence[str], targets: Sequence[int] | None) -> None:
    """What was scored must be what would be scored now; images may be added behind."""
    for record in records:
        now = names[record.position] if record.position < len(names) else None
        if now != record.file:
            raise ValueError(
                f"{record.file} was image {record.position + 1} of this folder's study, and is now "
                f"{names.index(record.file) + 1 if record.file in names else 'not among them'}: give another folder"
            )
        if targets is not None and targets[record.position] != record.target:
            raise ValueError(
                f"{record.file} was scored for class {record.target}, and its label is now "
                f"{targets[record.position]}: give another folder"
            )


def _method(variant: Variant, classifier: Classifier, explorer: Classifier | None) -> AttributionMethod:
    if not variant.explored:
        return create_method(variant.method, classifier, **variant.options)
    if explorer is None:
        raise ValueError(f"the variant {variant.label!r} needs another model as its explorer")
    return create_method(variant.method, classifier, **variant.options, explorer=explorer)


def _part(batch: Batch, keep: list[int]) -> Batch:
    return Batch([batch.paths[k] for k in keep], [batch.positions[k] for k in keep], batch.images[keep])


def _summarise(
    result: StudyResult, methods: dict[str, AttributionMethod], records: Records, names: Sequence[str]
) -> None:
    result.files = [name for name in names if all((name, label) in records for label in methods)]
    if not result.files:
        return
    result.records = [records[name, label] for label in methods for name in result.files]
    scores = {
        label: (
            [records[name, label].insertion for name in result.files],
            [records[name, label].deletion for name in result.files],
        )
        for label in methods
    }
    first = next(iter(scores.values()))
    for variant in result.study.variants:
        insertion, deletion = scores[variant.label]
        result.outcomes.append(
            Outcome(
                variant,
                passes_of(methods[variant.label]),
                mean_and_error(insertion),
                mean_and_error(deletion),
                paired_difference(insertion, first[0]),
                paired_difference(deletion, first[1]),
            )
        )
