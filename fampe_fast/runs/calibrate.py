"""Find the weights of a model's depths over image files: evidence and scores are on disk once they are found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import check_count, check_flag
from ..engine.depth import DepthEvidence, combined_map
from ..files import FOLDER, Output, check_outputs, json_text, remove_leftovers
from ..methods.base import PathMethod
from ..methods.calibration import CALIBRATIONS, DepthCalibration, read_calibrations
from ..methods.depth_search import (
    LEAST,
    DepthWeights,
    Remembered,
    check_combines,
    collect_evidence,
    most_evaluations,
    outcome_of,
)
from ..methods.settings import everything_of
from ..methods.tuning import Faithfulness
from ..metrics.protocols import resolve_protocol
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..progress import UpTo
from .batches import Batch, Failure, Group, check_run_ids, groups_of, targets_of_batch
from .map_store import MapStore
from .records import RECORDS, Item, Records
from .searches import ImagesLostError, found_of, scores_of

CALIBRATIONS_FILE = "calibrations.json"
_RECORDS_FILE, _EVIDENCE = "calibrations.jsonl", "evidence"


def calibration_outputs(out: Path) -> list[Output]:
    """List what ``calibrate_files`` writes.

    Raises:
        ValueError: ``calibrations.json`` is there and holds something else.
    """
    if (out / CALIBRATIONS_FILE).exists():
        read_calibrations(out / CALIBRATIONS_FILE)
    return [
        Output(out, FOLDER),
        Output(out / CALIBRATIONS_FILE, CALIBRATIONS),
        Output(out / _RECORDS_FILE, RECORDS),
        Output(out / _EVIDENCE, FOLDER),
    ]


@dataclass
class Calibrating:
    """The outcome of a calibration over files.

    Attributes:
        found: the calibration; None where too few images are left.
        failures: images left out.
    """

    found: DepthCalibration | None = None
    failures: list[Failure] = field(default_factory=list)


def calibrate_files(
    classifier: Classifier,
    method: PathMethod[Any],
    paths: Sequence[Path],
    out: Path,
    *,
    targets: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    protocol: str = "rise",
    metric_steps: int = 28,
    held_out: bool = True,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    on_stage: Callable[[str, int], None] = lambda stage, total: None,
    on_done: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Calibrating:
    """Search the weights of a model's depths over image files, as ``calibrate_depths`` does.

    The outcome goes into ``out/calibrations.json``, where those of other models stay. The images' evidence (in
    ``out/evidence``, until the outcome is found) and scores (``out/calibrations.jsonl``) are on disk as soon as a batch
    has them, and are not computed again for the same image, id, target, model and settings. An image that fails at one
    combination is left out of all.

    Args:
        classifier: the model.
        method: whose evidence is combined, made for this classifier, with views.
        paths: image files, at least 2; all that can be read are kept in memory.
        out: folder, made if missing.
        targets: the class of each file; None takes the model's own choice.
        image_ids: what names each file in the random stream, unique, 0 to 2^32 - 2; default: its place in ``paths``.
        protocol: of insertion and deletion, by name.
        metric_steps: steps of insertion and deletion.
        held_out: also fit on one half of the images and score on the other, and the other way round: what the search is
            worth on images that it has not seen.
        batch_size: images read together.
        internal_batch_size: samples per model pass.
        on_stage: called with what begins and about how many units it has.
        on_done: called with the number of units just finished.
        on_failure: called for an image left out.

    Returns:
        The ``Calibrating``.

    Raises:
        TypeError: a method that combines no depths.
        ValueError: a method without views, fewer than 2 images, a file of another content, an unknown protocol, too few
            steps, image ids that are not unique or out of range, layers that differ between images, or an output would
            replace an image or a file of another's.
        OSError: the results cannot be written.
    """
    metric_steps, held_out = check_count("metric_steps", metric_steps), check_flag("held_out", held_out)
    resolve_protocol(protocol)
    check_combines(method, classifier)
    if len(paths) < LEAST:
        raise ValueError(f"a calibration needs at least {LEAST} images, got {len(paths)}")
    check_outputs(calibration_outputs(out), paths)
    ids = check_run_ids(paths, image_ids)
    for folder in (out, out / _EVIDENCE):
        remove_leftovers(folder)
    outcome = Calibrating()

    def failed(failure: Failure) -> None:
        outcome.failures.append(failure)
        on_failure(failure)

    judge = Faithfulness(classifier, protocol, metric_steps, None, internal_batch_size, False)
    store, own = MapStore(out / _EVIDENCE), identity_of(classifier)
    with Records(out / _RECORDS_FILE, "calibrate") as records:
        settings = {"depths": everything_of(method, classifier), "protocol": protocol, "metric_steps": metric_steps}
        context = records.context({**own, **settings})
        halves = 2 if held_out and len(paths) >= 2 * LEAST else 1
        parts = []
        on_stage("evidence", len(paths))
        for half in range(halves):
            chosen = None if targets is None else targets[half::halves]
            part = _Part(method, classifier, chosen, judge, records, context, store, internal_batch_size)
            for group in groups_of(classifier, paths[half::halves], chosen, batch_size, failed, ids[half::halves]):
                part.explain(group)
                on_done(len(group.items))
            parts.append(part)
        while outcome.found is None:
            items = [item for part in parts for item in part.items]
            if len(items) < LEAST:
                break
            names = _names_of(records, context, items)
            start = DepthWeights.of(method.config, names)
            # A half that has lost its images is none to fit on.
            joint = [parts] if any(len(part.items) < LEAST for part in parts) else [[part] for part in parts]
            tries = most_evaluations(start, len(joint))
            on_stage("combinations", tries)
            told = UpTo(tries, on_done)
            judges = [Remembered(partial(_scores, some), told) for some in joint]
            try:
                outcome.found = outcome_of(own, names, method, start, judges, protocol)
            except ImagesLostError:  # every combination is judged by the same images: once more without them
                continue
            told.finish()
            outcome.found.save(out / CALIBRATIONS_FILE)
            store.remove(context, items)
    return outcome


@dataclass
class _Part:
    """Keep the evidence and the scores of some images on disk as soon as a batch has them."""

    method: PathMethod[Any]
    classifier: Classifier
    targets: Sequence[int] | None
    judge: Faithfulness
    records: Records
    context: str
    store: MapStore
    internal_batch_size: int | None
    groups: list[Group] = field(default_factory=list)

    @property
    def items(self) -> list[Item]:
        """The images that have not failed."""
        return [item for group in self.groups for item in group.items]

    def explain(self, group: Group) -> None:
        """Collect the evidence of a group's images, and take the group in."""

        def work(batch: Batch) -> tuple[Tensor, DepthEvidence]:
            chosen = targets_of_batch(self.classifier, batch, self.targets)
            return chosen, self._evidence(batch, chosen)

        def keep(batch: Batch, items: list[Item], found: tuple[Tensor, DepthEvidence]) -> None:
            chosen, depths = found
            self._store(items, depths)
            said = {"layers": depths.names, "sizes": depths.sizes}
            self.records.add(self.context, items, [{"target": target, **said} for target in chosen.tolist()])

        group.settle(lambda item: self.records.get(self.context, item) is not None, work, keep)
        if group.items:
            self.groups.append(group)

    def scores(self, weights: DepthWeights) -> list[float]:
        """Score the images' maps of a combination; ``ImagesLostError`` where images fail, which are then gone."""
        judge = partial(self._judged, weights=weights)
        return scores_of(self.groups, self.records, self.context, json_text(weights._asdict()), judge)

    def _judged(self, batch: Batch, items: list[Item], weights: DepthWeights) -> list[float]:
        found = [found_of(self.records, self.context, item) for item in items]
        chosen = torch.tensor([one["target"] for one in found], device=batch.images.device)
        if all(self.store.holds(self.context, item) for item in items):
            rows = torch.cat([self.store.load(self.context, item)[0] for item in items]).to(batch.images.device)
            height, width = batch.images.shape[-2:]
            pixels, layers = rows[:, : height * width].reshape(-1, height, width), rows[:, height * width :]
            depths = DepthEvidence(pixels, layers, tuple(found[0]["sizes"]), tuple(found[0]["layers"]))
        else:  # removed once the outcome was found; more images may ask for other combinations
            depths = self._evidence(batch, chosen)
            self._store(items, depths)
        maps = combined_map(depths, depths.pixels, weights.applied(self.method.config))
        return self.judge(batch.images, chosen, maps, None)

    def _store(self, items: Sequence[Item], depths: DepthEvidence) -> None:
        # Pixels and layers of an image in one row, as a map of the height 1.
        rows = torch.cat([depths.pixels.flatten(1), depths.layers], 1)[:, None, None]
        for item, row in zip(items, rows, strict=True):
            self.store.save(self.context, item, row)

    def _evidence(self, batch: Batch, chosen: Tensor) -> DepthEvidence:
        return collect_evidence(self.method, batch.images, chosen, batch.ids, self.internal_batch_size)


def _scores(parts: Sequence[_Part], weights: DepthWeights) -> list[float]:
    return [score for part in parts for score in part.scores(weights)]


def _names_of(records: Records, context: str, items: Sequence[Item]) -> tuple[str, ...]:
    """Read the layers that all images have evidence of."""
    (first, *others) = {tuple(found_of(records, context, item)["layers"]) for item in items}
    if others:
        raise ValueError(
            f"images have evidence of other layers, {', '.join(first)} and {', '.join(others[0])}: name layers"
        )
    return first
