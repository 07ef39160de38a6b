"""Runs a study over image files: what is on record already is not computed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import FIGURE, FOLDER, Output, check_outputs, digest_of, remove_leftovers
from ..methods.base import AttributionMethod
from ..methods.registry import create_method
from ..metrics import Estimate, insertion_deletion, mean_and_error, paired_difference
from ..models.classifier import Classifier
from ..models.identity import identity_of
from .batches import Batch, Failure, check_same_task, groups_of, targets_of_batch
from .records import RECORDS, Item
from .settings import everything_of, unique_names
from .study_design import Study, Variant
from .study_records import Record, Records


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


STUDY, TABLE = "study", "table"
"""The kinds of ``study.json`` and of ``table.md``."""


def study_outputs(out: Path) -> list[Output]:
    """What ``run_study`` and ``write_report`` write."""
    return [
        Output(out, FOLDER),
        Output(out / "records.jsonl", RECORDS),
        Output(out / "study.json", STUDY),
        Output(out / "table.md", TABLE),
        Output(out / "plot.png", FIGURE),
    ]


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

    Every variant sees an image before the next batch is read, so an interrupted study is a smaller study, whose report
    is written: run it again with the same folder and it goes on. Images are named in the random stream by their
    position among ``paths``.

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
        ValueError: the folder holds a study with other settings, images (by their content) or labels, or files of
            another's, a variant's options are out of range, or an explorer is missing or is one of other classes or
            channels.
        TypeError: a variant's method does not have one of its options.
        OSError: the records cannot be written.
    """
    if explorer is not None:
        check_same_task(classifier, explorer, "a path is explored by")
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
        "variants": {label: everything_of(method, classifier) for label, method in methods.items()},
    }
    check_outputs(study_outputs(out), paths)
    remove_leftovers(out)
    names = unique_names(paths)
    result = StudyResult(study, protocol, settings)

    def failed(failure: Failure) -> None:
        result.failures.append(failure)
        on_failure(failure)

    with Records(out / "records.jsonl", settings) as records:
        _check_same_images(records, paths, names, targets)

        def score(label: str, batch: Batch) -> list[tuple[int, float, float]]:
            chosen = targets_of_batch(classifier, batch, targets)
            maps = methods[label].attribute(
                batch.images, chosen, image_ids=batch.positions, internal_batch_size=internal_batch_size
            )
            areas = insertion_deletion(
                classifier, batch.images, maps, chosen, protocol=protocol, steps=metric_steps, passes=metric_passes
            )
            columns = (chosen.tolist(), areas.insertion.tolist(), areas.deletion.tolist())
            return list(zip(*columns, strict=True))

        def keep(label: str, batch: Batch, items: list[Item], found: list[tuple[int, float, float]]) -> None:
            records.add(
                *(
                    Record(names[item.position], item.position, label, *row, item.digest or "")
                    for item, row in zip(items, found, strict=True)
                )
            )

        def done(label: str, item: Item) -> bool:
            return (names[item.position], label) in records

        try:
            for group in groups_of(classifier, paths, targets, batch_size, failed):
                count = len(group.items)
                for label in methods:
                    group.settle(partial(done, label), partial(score, label), partial(keep, label))
                    on_scores(count)
        except BaseException:
            from .study_report import write_report

            _summarise(result, methods, records, names)
            write_report(result, out)
            raise
        _summarise(result, methods, records, names)
    return result


def _check_same_images(
    records: Records, paths: Sequence[Path], names: Sequence[str], targets: Sequence[int] | None
) -> None:
    """What was scored must be what would be scored now; images may be added behind."""
    digests: dict[int, str | None] = {}
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
        path = paths[record.position]
        if digests.setdefault(record.position, digest_of(path)) != record.image:
            raise ValueError(
                f"{record.file} was scored as another image, and {path} has another content now: give another folder"
            )


def _method(variant: Variant, classifier: Classifier, explorer: Classifier | None) -> AttributionMethod:
    if not variant.explored:
        return create_method(variant.method, classifier, **variant.options)
    if explorer is None:
        raise ValueError(f"the variant {variant.label!r} needs another model as its explorer")
    return create_method(variant.method, classifier, **variant.options, explorer=explorer)


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
                methods[variant.label].passes,
                mean_and_error(insertion),
                mean_and_error(deletion),
                paired_difference(insertion, first[0]),
                paired_difference(deletion, first[1]),
            )
        )
