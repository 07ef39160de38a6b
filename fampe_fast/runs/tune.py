"""Tune FORGrad's cut-off over image files, storing maps and scores as they are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import check_count, check_flag
from ..files import FIGURE, FOLDER, Output, check_outputs, remove_leftovers
from ..methods.base import AttributionMethod
from ..methods.settings import everything_of
from ..methods.tuning import (
    CUTOFFS,
    Faithfulness,
    TunedCutoff,
    expected_tries,
    outcome_of,
    outcomes_in,
    read_cutoffs,
    search_radii,
)
from ..metrics import Estimate, mean_and_error
from ..metrics.protocols import resolve_protocol
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..plots.saving import save_figure
from ..plots.studies import CutoffCurve, cutoffs_figure
from ..progress import UpTo
from .batches import Batch, Failure, Group, check_run_ids, groups_of, targets_of_batch
from .map_store import MapStore
from .records import RECORDS, Item, Records
from .searches import ImagesLostError, found_of, scores_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tuning_outputs(out: Path) -> list[Output]:
    """List the files that ``tune_files`` writes.

    Raises:
        ValueError: an existing ``cutoffs.json`` has other content.
    """
    if (out / "cutoffs.json").exists():
        read_cutoffs(out / "cutoffs.json")
    return [
        Output(out, FOLDER),
        Output(out / "cutoffs.json", CUTOFFS),
        Output(out / "cutoffs.png", FIGURE),
        Output(out / "models.png", FIGURE),
        Output(out / "cutoffs.jsonl", RECORDS),
        Output(out / "maps", FOLDER),
    ]


@dataclass
class Tuning:
    """The results of a search over files.

    Attributes:
        results: finished results, by method.
        failures: images that were left out, for all methods or for the named one.
        files: names of the written files.
    """

    results: dict[str, TunedCutoff] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def tune_files(
    classifier: Classifier,
    methods: Mapping[str, AttributionMethod],
    paths: Sequence[Path],
    out: Path,
    *,
    targets: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    protocol: str = "rise",
    metric_steps: int = 28,
    signed: bool = False,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    on_stage: Callable[[str, int], None] = lambda stage, total: None,
    on_done: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Tuning:
    """Tune the cut-off of several methods over image files; write ``out/cutoffs.json`` and the curves, ``cutoffs.png``.

    If the file has results of several models for one filter and protocol, ``models.png`` has their curves.

    A method's result is written at once, so that an interrupt loses only unfinished methods. Maps (in ``out/maps``,
    until the method's result is found) and scores (``out/cutoffs.jsonl``) are stored after every batch, and are not
    computed again for the same image, id, target, model and settings. An image on which a method fails is left out of
    that method's curve.

    Args:
        classifier: the model.
        methods: by name, made for this classifier.
        paths: image files; all readable ones are kept in memory.
        out: folder, made if missing; earlier results in its ``cutoffs.json`` are kept.
        targets: class of each file; None uses the model's prediction.
        image_ids: unique id of each file in the random stream, 0 to 2^32 - 2; default: its position in ``paths``.
        protocol: name of the protocol of insertion and deletion.
        metric_steps: steps of insertion and deletion.
        signed: filter the maps' signed mean over channels, not its absolute value.
        batch_size: number of images explained together.
        internal_batch_size: samples per model pass.
        on_stage: called at the start of each stage with its name and approximate number of units.
        on_done: called with the number of newly finished units.
        on_failure: called for each image that is left out.

    Returns:
        The ``Tuning``.

    Raises:
        ValueError: a file of another content, an unknown protocol, too few steps, image ids that are not unique or out
            of range, or an output would replace an image or a foreign file.
        OSError: the results cannot be written.
    """
    metric_steps = check_count("metric_steps", metric_steps)
    resolve_protocol(protocol)
    check_outputs(tuning_outputs(out), paths)
    if (out / "cutoffs.json").exists():
        outcomes_in(out / "cutoffs.json")  # which will be drawn beside the new result
    image_ids = check_run_ids(paths, image_ids)
    for folder in (out, out / "maps"):
        remove_leftovers(folder)
    tuning = Tuning()

    def failed(failure: Failure) -> None:
        tuning.failures.append(failure)
        on_failure(failure)
        on_done(1)

    judge = Faithfulness(classifier, protocol, metric_steps, None, internal_batch_size, check_flag("signed", signed))
    on_stage("images", len(paths))
    groups = []
    for group in groups_of(classifier, paths, targets, batch_size, failed, image_ids):
        group.batch()
        if group.items:
            groups.append(group)
            on_done(len(group.items))
    store = MapStore(out / "maps")
    with Records(out / "cutoffs.jsonl", "tune") as records:
        for name, method in methods.items():
            context = records.context(
                {
                    **identity_of(classifier),
                    "maps": everything_of(method, classifier),
                    "protocol": protocol,
                    "metric_steps": metric_steps,
                    "signed": signed,
                }
            )
            search = _SearchOverFiles(method, classifier, targets, judge, records, context, store, internal_batch_size)

            def without(failure: Failure, name: str = name) -> None:
                failed(Failure(failure.path, f"{name}: {failure.reason}"))

            on_stage(f"{name}: maps", sum(len(group.items) for group in groups))
            explained = []
            for group in groups:
                part = group.again(without)
                search.explain(part)
                if part.items:
                    explained.append(part)
                    on_done(len(part.items))
            curve: dict[int, Estimate] | None = None
            while curve is None and explained:
                first = explained[0].batch()
                assert first is not None
                side = min(first.images.shape[-2:])
                tries = expected_tries(side)
                on_stage(f"{name}: cut-offs", tries)
                try:
                    curve = search_radii(partial(search.mean, explained), side, UpTo(tries, on_done))
                except ImagesLostError:  # score all radii on the same images: start again
                    explained = [part for part in explained if part.items]
            if curve is None:
                continue
            items = [item for part in explained for item in part.items]
            tuned = outcome_of(classifier.name, name, judge, curve, mean_and_error(search.unfiltered(items)))
            tuned.save(out / "cutoffs.json")
            tuning.results[name] = tuned
            figures = {"cutoffs.png": _figure(tuning), "models.png": models_figure(out / "cutoffs.json", tuned)}
            drawn = {file: figure for file, figure in figures.items() if figure is not None}
            for file, figure in drawn.items():
                save_figure(figure, out / file)
            tuning.files = ["cutoffs.json", *drawn]
            store.remove(context, items)
    return tuning


@dataclass(frozen=True)
class _SearchOverFiles:
    """Stores the maps and scores of one method after every batch."""

    method: AttributionMethod
    classifier: Classifier
    targets: Sequence[int] | None
    judge: Faithfulness
    records: Records
    context: str
    store: MapStore
    internal_batch_size: int | None

    def explain(self, group: Group) -> None:
        """Make the maps of a group's images, and score the unfiltered maps."""

        def work(batch: Batch) -> tuple[Tensor, list[dict[str, Any]]]:
            chosen = targets_of_batch(self.classifier, batch, self.targets)
            maps = self._maps(batch, chosen)
            scores = self.judge(batch.images, chosen, maps, None)
            return maps, [
                {"target": target, "unfiltered": score} for target, score in zip(chosen.tolist(), scores, strict=True)
            ]

        def keep(batch: Batch, items: list[Item], found: tuple[Tensor, list[dict[str, Any]]]) -> None:
            maps, results = found
            for item, shown in zip(items, maps, strict=True):
                self.store.save(self.context, item, shown)
            self.records.add(self.context, items, results)

        group.settle(lambda item: self.records.get(self.context, item) is not None, work, keep)

    def unfiltered(self, items: Sequence[Item]) -> list[float]:
        """List the scores of the unfiltered maps."""
        return [float(found_of(self.records, self.context, item)["unfiltered"]) for item in items]

    def mean(self, groups: Sequence[Group], radius: int) -> Estimate:
        """Score the maps filtered with a radius; ``ImagesLostError`` if images fail, which are then removed."""
        judge = partial(self._scores, radius=radius)
        return mean_and_error(scores_of(groups, self.records, self.context, f"radius {radius}", judge))

    def _scores(self, batch: Batch, items: list[Item], radius: int) -> list[float]:
        targets = [found_of(self.records, self.context, item)["target"] for item in items]
        chosen = torch.tensor(targets, device=batch.images.device)
        if all(self.store.holds(self.context, item) for item in items):
            maps = torch.stack([self.store.load(self.context, item) for item in items]).to(batch.images.device)
        else:  # removed once the result was found, which may change with more images
            maps = self._maps(batch, chosen)
        return self.judge(batch.images, chosen, maps, radius)

    def _maps(self, batch: Batch, chosen: Tensor) -> Tensor:
        maps = self.method.attribute(
            batch.images, chosen, image_ids=batch.ids, internal_batch_size=self.internal_batch_size
        )
        return maps.detach().mean(1, keepdim=True)


def _figure(tuning: Tuning) -> Figure:
    return _curves(tuning.results, next(iter(tuning.results.values())).model)


def models_figure(path: Path, latest: TunedCutoff) -> Figure | None:
    """Draw the curves of all models in a file (as in figure 5B of arXiv 2307.09591); None if it has only one.

    Args:
        path: a file written by ``TunedCutoff.save``.
        latest: one of its results; those of another filter or protocol are not comparable and are left out.
    """
    alike = [found for found in outcomes_in(path) if (found.signed, found.protocol) == (latest.signed, latest.protocol)]
    if len({found.model for found in alike}) < 2:
        return None
    return _curves({f"{found.model}, {found.method}": found for found in alike}, "models side by side")


def _curves(results: Mapping[str, TunedCutoff], head: str) -> Figure:
    first = next(iter(results.values()))
    filtered = "the signed filter's" if first.signed else "FORGrad's"
    return cutoffs_figure(
        {name: CutoffCurve(found.curve, found.unfiltered, found.cutoff) for name, found in results.items()},
        title=f"{head}: {filtered} cut-off, {max(found.unfiltered.n for found in results.values())} images",
        score=f"insertion − deletion ({first.protocol})",
    )
