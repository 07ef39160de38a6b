"""Hold the results of a ``frequency`` run: evidence and energy per band of every image, and their summaries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import json_content, mark_of, read_text
from ..frequency.bands import NAMES_OF_THREE
from ..metrics.rank_correlation import rank_correlation
from ..metrics.summary import RESAMPLES, bootstrap_interval
from .batches import Failure

FREQUENCY = "frequency"
"""The kind of ``frequency.json``."""

PARTITIONS = ("rings", "octaves", "sectors", "bands")
"""Partitions of the frequencies: rings of equal width, octaves, sectors of orientation, and low, middle and high."""


_RECORDED = ("target", "score", "baseline_score", "evidence", "energy")
"""Values of an image beside its name."""


@dataclass(frozen=True)
class ImageEvidence:
    """The evidence and the energy of one image, by partition, with one number per band.

    Attributes:
        file: name of the image.
        image_id: the image's id in the records.
        target: the scored class.
        score: the image's score.
        baseline_score: the score of its mean colour, or of black if DC is attributed to.
        evidence: in units of the score; over a partition it sums to ``score - baseline_score`` minus the gap.
        energy: shares of the image's energy without its mean; zeros for a constant image.
    """

    file: str
    image_id: int
    target: int
    score: float
    baseline_score: float
    evidence: dict[str, list[float]]
    energy: dict[str, list[float]]

    @property
    def gap(self) -> float:
        """The difference of the scores minus the sum of the evidence."""
        return self.score - self.baseline_score - sum(self.evidence["rings"])


@dataclass(frozen=True)
class Spread:
    """A mean over images, with its bootstrap interval.

    Attributes:
        mean: (K,) float64.
        interval: (2, K); None for fewer than two images.
    """

    mean: Tensor
    interval: Tensor | None

    def as_json(self) -> dict[str, Any]:
        """Return everything as values for JSON."""
        low, high = (None, None) if self.interval is None else self.interval.tolist()
        return {"mean": self.mean.tolist(), "lower": low, "upper": high}


@dataclass(frozen=True)
class Connection:
    """The rank correlation, over images, between a band's energy and the model's reliance on it.

    Attributes:
        correlation: Spearman's, in [-1, 1].
        interval: bootstrap interval of the correlation; None for fewer than three images.
    """

    correlation: float
    interval: tuple[float, float] | None

    def __str__(self) -> str:
        if self.interval is None:
            return "of too few images"
        return f"{self.correlation:+.2f} ({self.interval[0]:+.2f} to {self.interval[1]:+.2f})"


@dataclass
class FrequencyStudy:
    """The state of a run, complete for every image it names.

    Attributes:
        settings: settings of the model and the method.
        edges: edges of each partition; radii in cycles over the shorter side, or degrees.
        confidence: coverage of the intervals, in (0, 1).
        seed: seed of the bootstrap.
        class_names: names of the targets.
        images: the finished images.
        failures: images that were left out.
        earlier: number of images that an earlier run had done.
    """

    settings: dict[str, Any]
    edges: dict[str, list[float]]
    confidence: float
    seed: int = 0
    class_names: dict[int, str] = field(default_factory=dict)
    images: list[ImageEvidence] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    earlier: int = 0

    def evidence(self, partition: str) -> Tensor:
        """List the images' evidence, (n, K) float64."""
        return torch.tensor([image.evidence[partition] for image in self.images], dtype=torch.float64)

    def energy(self, partition: str) -> Tensor:
        """List the images' shares of energy, (n, K) float64."""
        return torch.tensor([image.energy[partition] for image in self.images], dtype=torch.float64)

    def reliance(self, partition: str) -> Tensor:
        """List the evidence divided by the sum of its magnitudes, (n, K) float64 in [-1, 1]."""
        found = self.evidence(partition)
        return found / found.abs().sum(1, keepdim=True).clamp(min=1e-300)

    def spread(self, values: Tensor) -> Spread:
        """Average rows, with the bootstrap interval of their mean."""
        return Spread(values.mean(0), bootstrap_interval(values, self.confidence, self.seed))

    def rows_of_classes(self) -> dict[int, list[int]]:
        """Find the images of each class, in the order of the classes."""
        rows: dict[int, list[int]] = {}
        for row, image in enumerate(self.images):
            rows.setdefault(image.target, []).append(row)
        return dict(sorted(rows.items()))

    def connection(self, band: str) -> Connection:
        """Correlate the energy in one of the three bands with the reliance on it, over the images."""
        place = NAMES_OF_THREE.index(band)
        pairs = torch.stack([self.energy("bands")[:, place], self.reliance("bands")[:, place]], 1)

        def correlate(drawn: Tensor) -> Tensor:
            return rank_correlation(drawn[..., 0], drawn[..., 1])[:, None]

        interval = None
        if len(pairs) > 2:
            found = bootstrap_interval(pairs, self.confidence, self.seed, correlate)
            assert found is not None  # of three rows and more
            interval = float(found[0, 0]), float(found[1, 0])
        return Connection(float(correlate(pairs[None])), interval)

    def as_json(self) -> str:
        """Return everything as values for JSON; without images there is no summary."""
        summary: dict[str, Any] = {}
        if self.images:
            summary = {
                "images": len(self.images),
                "mean_score": sum(image.score for image in self.images) / len(self.images),
                "mean_baseline_score": sum(image.baseline_score for image in self.images) / len(self.images),
                "mean_absolute_gap": sum(abs(image.gap) for image in self.images) / len(self.images),
                **{name: self._summary(name, range(len(self.images))) for name in PARTITIONS},
                "connection": {band: vars(self.connection(band)) for band in NAMES_OF_THREE},
                "interval": f"{self.confidence:g}, percentile bootstrap over images, {RESAMPLES} resamples",
            }
        classes = [
            {
                "class": target,
                "name": self.class_names[target],
                "images": len(rows),
                **{name: self._summary(name, rows) for name in ("octaves", "bands")},
            }
            for target, rows in self.rows_of_classes().items()
        ]
        return json_content(
            FREQUENCY,
            {
                "settings": self.settings,
                "edges": self.edges,
                "confidence": self.confidence,
                "seed": self.seed,
                "summary": summary,
                "classes": classes,
                "images": [
                    {
                        "file": image.file,
                        "id": image.image_id,
                        **{name: getattr(image, name) for name in _RECORDED},
                        "gap": image.gap,
                    }
                    for image in self.images
                ],
                "failures": [{"file": failure.path.name, "reason": failure.reason} for failure in self.failures],
            },
        )

    def _summary(self, partition: str, rows: Sequence[int]) -> dict[str, Any]:
        columns = {name: getattr(self, name)(partition) for name in ("energy", "evidence", "reliance")}
        return {name: self.spread(values[list(rows)]).as_json() for name, values in columns.items()}


def read_study(folder: Path) -> FrequencyStudy:
    """Read the results of an earlier run from its folder.

    Raises:
        ValueError: there is no ``frequency.json`` of this package; the message names the path.
    """
    path = folder / "frequency.json"
    text = read_text(path, "results of another model")
    mark = mark_of(path)
    if mark is None or mark.kind != FREQUENCY:
        raise ValueError(f"{path} holds no results of frequency: give the output folder of an earlier run")
    found = json.loads(text)
    return FrequencyStudy(
        found["settings"],
        found["edges"],
        found["confidence"],
        found["seed"],
        {entry["class"]: entry["name"] for entry in found["classes"]},
        [
            ImageEvidence(entry["file"], entry["id"], **{name: entry[name] for name in _RECORDED})
            for entry in found["images"]
        ],
        [Failure(Path(entry["file"]), entry["reason"]) for entry in found["failures"]],
    )
