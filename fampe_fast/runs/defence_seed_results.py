"""What trainings gave over several seeds: means with intervals, rows of a table, JSON and curves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..metrics.summary import student_interval
from ..plots.bands import BandCurve
from .defence_settings import DefenceSettings
from .defence_training import ATTACKS

CONFIDENCE = 0.95
HEAD = ("trained", "clean", *(f"attacked, {band}" for band in ATTACKS), "low share", "low share minus plain's")
"""The columns of the table."""


@dataclass(frozen=True)
class OverSeeds:
    """A share that each seed has, or a difference of two.

    Attributes:
        values: one for each seed; NaN where a seed has none.
        mean: of them.
        interval: Student's interval of the mean, within the bounds; None with a seed that has none.
    """

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, values: Iterable[float], bounds: tuple[float, float] = (0.0, 1.0)) -> OverSeeds:
        """Summarise numbers, one for each seed, that cannot leave the bounds."""
        rows = torch.tensor(list(values), dtype=torch.float64)[:, None]
        found = student_interval(rows, CONFIDENCE) if bool(rows.isfinite().all()) else None
        low, high = bounds
        interval = None if found is None else (max(low, float(found[0])), min(high, float(found[1])))
        return cls(tuple(rows[:, 0].tolist()), float(rows.mean()), interval)

    def text(self, sign: str = "") -> str:
        """Write ``mean [lower, upper]``; nothing where a seed has no number."""
        if math.isnan(self.mean):
            return ""
        if self.interval is None:
            return f"{self.mean:{sign}.3f}"
        low, high = self.interval
        return f"{self.mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


@dataclass(frozen=True)
class TaskResult:
    """What the trainings gave for one data set.

    Attributes:
        settings: those of every seed, with the first seed.
        edges: (K + 1,), radii of the rings of the reliance curves, in cycles over the side.
        accuracy: by training, a row per seed: share of the test images that are right as they are, and that still are
            under the attack of each of ``ATTACKS``.
        drops: by training, (seeds, K) float64: mean drop in probability of the true class without the ring.
    """

    settings: DefenceSettings
    edges: Tensor
    accuracy: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    drops: dict[str, Tensor] = field(default_factory=dict)

    def accuracies(self, training: str) -> dict[str, OverSeeds]:
        """Summarise the accuracies of a training: clean, and under each attack."""
        rows = self.accuracy[training]
        return {name: OverSeeds.of(row[name] for row in rows) for name in ("clean", *ATTACKS)}

    def low_shares(self, training: str) -> Tensor:
        """Compute, for each seed, the share of the curve's drops above 0 that lies in rings within the cut-off.

        Returns:
            (seeds,) float64; NaN for a curve without a drop above 0. The middle of a ring decides where it lies.
        """
        drops = self.drops[training].clamp(min=0)
        low = (self.edges[1:] + self.edges[:-1]) / 2 <= self.settings.cutoff
        return drops[:, low].sum(1) / drops.sum(1)

    def low_share(self, training: str, minus: str | None = None) -> OverSeeds:
        """Summarise the low shares, or their differences to another training's, seed by seed."""
        shares = self.low_shares(training)
        if minus is None:
            return OverSeeds.of(shares.tolist())
        return OverSeeds.of((shares - self.low_shares(minus)).tolist(), (-1.0, 1.0))

    def curves(self) -> dict[str, BandCurve]:
        """Give each training's mean reliance curve with Student's interval over the seeds."""
        return {
            name: BandCurve(self.edges, drops.mean(0), student_interval(drops, CONFIDENCE))
            for name, drops in self.drops.items()
        }

    def rows(self) -> list[list[str]]:
        """Write a row per training, as ``HEAD`` names the cells."""
        return [
            [
                name,
                *(found.text() for found in self.accuracies(name).values()),
                self.low_share(name).text(),
                "" if name == "plain" else self.low_share(name, "plain").text("+"),
            ]
            for name in self.drops
        ]

    def as_json(self) -> dict[str, Any]:
        """Give everything as JSON takes it."""
        return {
            "settings": asdict(self.settings),
            "edges": self.edges.tolist(),
            "trainings": {
                name: {
                    "accuracy": {attack: vars(found) for attack, found in self.accuracies(name).items()},
                    "low_share": vars(self.low_share(name)),
                    "low_share_minus_plain": vars(self.low_share(name, "plain")),
                    "drops": self.drops[name].tolist(),
                    "mean_drop": curve.values.tolist(),
                    "interval": None if curve.interval is None else curve.interval.tolist(),
                }
                for name, curve in self.curves().items()
            },
        }


@dataclass
class SeedStudy:
    """The result of a comparison.

    Attributes:
        seeds: those that were run.
        tasks: by the data set's name.
        earlier: how many classifiers an earlier run had finished.
    """

    seeds: list[int]
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    earlier: int = 0

    def title(self, name: str) -> str:
        """Say what a data set's table shows."""
        settings = self.tasks[name].settings
        return (
            f"{name}, {len(self.seeds)} seeds: accuracy on {settings.test_images} images, and the share of reliance up "
            f"to {settings.cutoff:g} cycles; mean [{CONFIDENCE:.0%} interval]; attacks of {settings.eps:.4f}"
        )
