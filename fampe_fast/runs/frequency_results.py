"""What a ``frequency`` run finds: evidence and energy per frequency band of every image, and what they say together."""

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
"""Of the frequencies: rings of equal width, octaves, sectors of orientation, and low, middle and high."""


_RECORDED = ("target", "score", "baseline_score", "evidence", "energy")
"""Of an image, beside its name."""


@dataclass(frozen=True)
class ImageEvidence:
    """The evidence and the energy of one image, by partition, a number for each part.

    Attributes:
        file: name of the image.
        image_id: what names it in the records.
        target: the class scored.
        score: of the image.
        baseline_score: of its mean colour, or of black where DC is attributed to.
        evidence: in units of the score; over a partition it sums to ``score - baseline_score`` less the integral's gap.
        energy: shares of the image's energy without its mean, of the sum over the partition; zeros for a flat image.
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
        """What the evidence lacks of the difference of the scores."""
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
        """Give everything as values that JSON takes."""
        low, high = (None, None) if self.interval is None else self.interval.tolist()
        return {"mean": self.mean.tolist(), "lower": low, "upper": high}


@dataclass(frozen=True)
class Connection:
    """Whether a model relies more on a band where the image holds more energy in it: over images, by rank.

    Attributes:
        correlation: Spearman's, in [-1, 1].
        interval: its bootstrap interval; None for fewer than three images.
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
        settings: of the model and the method.
        edges: of each partition; radii in cycles over the shorter side, or degrees.
        confidence: of the intervals, in (0, 1).
        seed: of the intervals' random numbers.
        class_names: of the targets.
        images: those that are done.
        failures: images left out.
        earlier: how many images an earlier run had done.
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
        """List the shares of the evidence: divided by the sum of its magnitudes, (n, K) float64 in [-1, 1]."""
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
        """Correlate, over the images, the energy in one of the three bands with the reliance on it."""
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
        """Write everything as JSON; without images there is no summary."""
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
    """Read what an earlier run left in its folder.

    Raises:
        ValueError: there is no ``frequency.json``, or none of this package; the message names it.
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
