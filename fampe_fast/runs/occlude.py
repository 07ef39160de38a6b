"""Run Occluded Frequency over image files: a curve per image, their mean with its interval, JSON and a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import check_seed
from ..files import FIGURE, FOLDER, Output, check_outputs, json_content, remove_leftovers, write_atomically
from ..frequency.bands import equal_width_bands
from ..methods.settings import never_twice
from ..metrics.summary import RESAMPLES, bootstrap_interval
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..plots import save_figure
from ..plots.bands import BandCurve, bands_figure
from ..robustness.occluded_frequency import OccludedFrequency
from .batches import Batch, Failure, Group, check_run_ids, groups_of, settle_all
from .records import RECORDS, Item, Records

OCCLUSION = "occluded frequency"
"""The kind of ``occluded_frequency.json``."""


@dataclass
class OcclusionStudy:
    """The state of a study, complete for every image it names.

    Attributes:
        settings: settings of the model and the method.
        confidence: coverage of the intervals, in (0, 1).
        paths: the measured images.
        image_ids: each image's id in the records.
        targets: class of each image.
        base: the score of each unfiltered image.
        drops: the K drops of each image.
        edges: for each image the K + 1 radii of its bands, in cycles over the shorter side.
        energy: for each image the bands' shares of its energy.
        failures: images that were left out.
        earlier: number of images that an earlier run had measured.
        seed: seed of the bootstrap.
    """

    settings: dict[str, object]
    confidence: float
    paths: list[Path] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    base: list[float] = field(default_factory=list)
    drops: list[list[float]] = field(default_factory=list)
    edges: list[list[float]] = field(default_factory=list)
    energy: list[list[float]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    earlier: int = 0
    seed: int = 0

    def mean_drops(self) -> Tensor:
        """Compute the mean drop of each band over the images, (K,) float64."""
        return torch.tensor(self.drops, dtype=torch.float64).mean(0)

    def interval(self) -> Tensor | None:
        """Compute the bootstrap interval of the mean drops, (2, K); None for fewer than two images."""
        return bootstrap_interval(torch.tensor(self.drops, dtype=torch.float64), self.confidence, self.seed)

    def median_edges(self) -> Tensor:
        """Return the radii of the bands, (K + 1,); their medians over the images if each image has its own."""
        return torch.tensor(self.edges, dtype=torch.float64).quantile(0.5, 0)

    def curve(self) -> BandCurve:
        """Make the curve to plot: the mean drops with their interval, over the bands' radii."""
        return BandCurve(self.median_edges(), self.mean_drops(), self.interval())

    def as_json(self) -> str:
        """Return everything as values for JSON; without images there is no summary."""
        summary: dict[str, object] = {}
        if self.paths:
            interval = self.interval()
            summary = {
                "images": len(self.paths),
                "mean_score": sum(self.base) / len(self.base),
                "edges": self.median_edges().tolist(),
                "mean_drop": self.mean_drops().tolist(),
                "lower": None if interval is None else interval[0].tolist(),
                "upper": None if interval is None else interval[1].tolist(),
                "interval": f"{self.confidence:g}, percentile bootstrap over images, {RESAMPLES} resamples",
            }
        return json_content(
            OCCLUSION,
            {
                "settings": self.settings,
                "summary": summary,
                "images": [
                    {
                        "file": path.name,
                        "id": self.image_ids[k],
                        "target": self.targets[k],
                        "score": self.base[k],
                        "edges": self.edges[k],
                        "drops": self.drops[k],
                        "energy": self.energy[k],
                    }
                    for k, path in enumerate(self.paths)
                ],
                "failures": [{"file": failure.path.name, "reason": failure.reason} for failure in self.failures],
            },
        )


def occlusion_outputs(out: Path) -> list[Output]:
    """List the files that ``occlude_files`` writes."""
    return [
        Output(out, FOLDER),
        Output(out / "occluded_frequency.json", OCCLUSION),
        Output(out / "occluded_frequency.png", FIGURE),
        Output(out / "occluded_frequency.jsonl", RECORDS),
    ]


def occlude_files(
    classifier: Classifier,
    method: OccludedFrequency,
    paths: Sequence[Path],
    out: Path,
    *,
    targets: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    on_images: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> OcclusionStudy:
    """Remove the bands of every file one by one; write ``out/occluded_frequency.json`` and ``.png``.

    The results of a batch are stored at once (``out/occluded_frequency.jsonl``), and are not computed again for the
    same image, id, target, model and settings. After an interrupt, the results so far are summarised and the interrupt
    is raised again.

    Args:
        classifier: the model.
        method: the method, made for this classifier.
        paths: image files.
        out: folder, made if missing.
        targets: class of each file; None uses the model's prediction.
        image_ids: unique id of each file in the records, 0 to 2^32 - 2; default: its position in ``paths``.
        confidence: coverage of the bootstrap intervals of the mean, in (0, 1).
        seed: seed of the bootstrap, any 64-bit integer.
        batch_size: images read together.
        internal_batch_size: images per model pass.
        on_images: called with the number of newly measured images.
        on_failure: called for each image that is left out.

    Returns:
        The ``OcclusionStudy``.

    Raises:
        ValueError: a confidence outside (0, 1), image ids that are not unique or out of range, or an output would
            replace an image or a foreign file.
        OSError: the results cannot be written.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    if method.spacing == "width":  # refuses too many bands for the images here, once
        equal_width_bands(*classifier.input_size, method.bands, include_dc=method.include_dc)
    image_ids = check_run_ids(paths, image_ids)
    check_outputs(occlusion_outputs(out), paths)
    remove_leftovers(out)
    settings: dict[str, object] = {
        **identity_of(classifier),
        "method": method.name,
        "bands": method.bands,
        "spacing": method.spacing,
        "score": method.score,
        "include_dc": method.include_dc,
        "clamp": method.clamp,
        "model_passes": method.bands + 1,
    }
    study = OcclusionStudy(settings, confidence, seed=check_seed(seed))

    def failed(failure: Failure) -> None:
        study.failures.append(failure)
        on_failure(failure)

    def work(batch: Batch) -> list[dict[str, Any]]:
        chosen = None if targets is None else [targets[position] for position in batch.positions]
        found = method(batch.images, chosen, internal_batch_size=internal_batch_size)
        columns = {"target": found.target, "base": found.base, "drops": found.drops}
        rows = {
            name: values.tolist() for name, values in {**columns, "edges": found.edges, "energy": found.energy}.items()
        }
        return [{name: values[k] for name, values in rows.items()} for k in range(len(batch.paths))]

    with Records(out / "occluded_frequency.jsonl", "occlude") as records:
        own = type(method) is OccludedFrequency and method.forward_func is classifier
        known = {**settings, "bounds": method.bounds, **({} if own else {"unknown": never_twice()})}
        context = records.context(known)

        def settle(group: Group) -> None:
            group.settle_in(records, context, work)
            on_images(len(group.items))

        def finish(measured: list[Item], earlier: int) -> None:
            study.earlier = earlier
            if measured:
                _fill(study, records, context, measured)
                _save(study, out)

        groups = groups_of(classifier, paths, targets, batch_size, failed, image_ids)
        settle_all(groups, lambda item: records.get(context, item) is not None, settle, finish)
    return study


def _fill(study: OcclusionStudy, records: Records, context: str, measured: Sequence[Item]) -> None:
    """Summarise the records."""
    for item in measured:
        found = records.get(context, item)
        assert found is not None
        study.paths.append(item.path)
        study.image_ids.append(item.image_id)
        study.targets.append(found["target"])
        study.base.append(found["base"])
        study.drops.append(found["drops"])
        study.edges.append(found["edges"])
        study.energy.append(found["energy"])


def _save(study: OcclusionStudy, out: Path) -> None:
    write_atomically(out / "occluded_frequency.json", study.as_json().encode())
    name = str(study.settings["model"])
    figure = bands_figure(
        {name: study.curve()},
        title=f"{name}: drop without one band, {len(study.paths)} images",
        score=str(study.settings["score"]),
        by_number=study.settings["spacing"] == "energy",
        confidence=study.confidence,
    )
    save_figure(figure, out / "occluded_frequency.png")
