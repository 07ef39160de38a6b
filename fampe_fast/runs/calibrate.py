"""Find the weights of a model's depths over image files, storing evidence and scores as they are found."""

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
    """List the files that ``calibrate_files`` writes.

    Raises:
        ValueError: an existing ``calibrations.json`` has other content.
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
    """The result of a calibration over files.

    Attributes:
        found: the calibration; None if too few images are left.
        failures: images that were left out.
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
    """Search for the weights of a model's depths over image files, as ``calibrate_depths`` does.

    The result is added to ``out/calibrations.json``, which keeps those of other models. The images' evidence (in
    ``out/evidence``, until the result is found) and scores (``out/calibrations.jsonl``) are stored after every batch,
    and are not computed again for the same image, id, target, model and settings. An image that fails at one
    combination is left out of all.

    Args:
        classifier: the model.
        method: the method whose evidence is combined, made for this classifier with views.
        paths: image files, at least 2; all readable ones are kept in memory.
        out: folder, made if missing.
        targets: class of each file; None uses the model's prediction.
        image_ids: unique id of each file in the random stream, 0 to 2^32 - 2; default: its position in ``paths``.
        protocol: name of the protocol of insertion and deletion.
        metric_steps: steps of insertion and deletion.
        held_out: also fit on each half of the images and score on the other half, to estimate the gain on unseen
            images.
        batch_size: images read together.
        internal_batch_size: samples per model pass.
        on_stage: called at the start of each stage with its name and approximate number of units.
        on_done: called with the number of newly finished units.
        on_failure: called for each image that is left out.

    Returns:
        The ``Calibrating``.

    Raises:
        TypeError: a method that combines no depths.
        ValueError: a method without views, fewer than 2 images, a file of another content, an unknown protocol, too few
            steps, image ids that are not unique or out of range, layers that differ between images, or an output would
            replace an image or a foreign file.
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
            # A half that has lost its images cannot be fitted on.
            joint = [parts] if any(len(part.items) < LEAST for part in parts) else [[part] for part in parts]
            tries = most_evaluations(start, len(joint))
            on_stage("combinations", tries)
            told = UpTo(tries, on_done)
            judges = [Remembered(partial(_scores, some), told) for some in joint]
            try:
                outcome.found = outcome_of(own, names, method, start, judges, protocol)
            except ImagesLostError:  # score all combinations on the same images: start again
                continue
            told.finish()
            outcome.found.save(out / CALIBRATIONS_FILE)
            store.remove(context, items)
    return outcome


@dataclass
class _Part:
    """Stores the evidence and the scores of some images after every batch."""

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
        """Collect the evidence of a group's images, and add the group."""

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
        """Score the images' maps of a combination; ``ImagesLostError`` if images fail, which are then removed."""
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
        else:  # removed once the result was found; with more images other combinations may be needed
            depths = self._evidence(batch, chosen)
            self._store(items, depths)
        maps = combined_map(depths, depths.pixels, weights.applied(self.method.config))
        return self.judge(batch.images, chosen, maps, None)

    def _store(self, items: Sequence[Item], depths: DepthEvidence) -> None:
        # Pixels and layers of an image in one row, stored as a map of height 1.
        rows = torch.cat([depths.pixels.flatten(1), depths.layers], 1)[:, None, None]
        for item, row in zip(items, rows, strict=True):
            self.store.save(self.context, item, row)

    def _evidence(self, batch: Batch, chosen: Tensor) -> DepthEvidence:
        return collect_evidence(self.method, batch.images, chosen, batch.ids, self.internal_batch_size)


def _scores(parts: Sequence[_Part], weights: DepthWeights) -> list[float]:
    return [score for part in parts for score in part.scores(weights)]


def _names_of(records: Records, context: str, items: Sequence[Item]) -> tuple[str, ...]:
    """Read the names of the layers, which must be the same for all images."""
    (first, *others) = {tuple(found_of(records, context, item)["layers"]) for item in items}
    if others:
        raise ValueError(
            f"images have evidence of different layers, {', '.join(first)} and {', '.join(others[0])}: name the layers"
        )
    return first
