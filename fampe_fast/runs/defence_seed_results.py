"""Summarise trainings over several seeds: means with intervals, table rows, JSON and curves."""

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
    """Shares, or differences of shares, over seeds.

    Attributes:
        values: one per seed; NaN where a seed has none.
        mean: mean of the values.
        interval: Student's interval of the mean, within the bounds; None if a value is missing.
    """

    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, values: Iterable[float], bounds: tuple[float, float] = (0.0, 1.0)) -> OverSeeds:
        """Summarise one number per seed, with an interval limited to the bounds."""
        rows = torch.tensor(list(values), dtype=torch.float64)[:, None]
        found = student_interval(rows, CONFIDENCE) if bool(rows.isfinite().all()) else None
        low, high = bounds
        interval = None if found is None else (max(low, float(found[0])), min(high, float(found[1])))
        return cls(tuple(rows[:, 0].tolist()), float(rows.mean()), interval)

    def text(self, sign: str = "") -> str:
        """Write ``mean [lower, upper]``; empty if a seed has no number."""
        if math.isnan(self.mean):
            return ""
        if self.interval is None:
            return f"{self.mean:{sign}.3f}"
        low, high = self.interval
        return f"{self.mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


@dataclass(frozen=True)
class TaskResult:
    """The results of the trainings for one data set.

    Attributes:
        settings: the settings, with the first seed.
        edges: (K + 1,), radii of the rings of the reliance curves, in cycles over the side.
        accuracy: by training, a row per seed: share of the test images classified correctly, and of those still
            correct under each attack of ``ATTACKS``.
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
        """Compute, for each seed, the share of the positive drops in rings within the cut-off.

        Returns:
            (seeds,) float64; NaN for a curve without positive drops. A ring is within if its middle is.
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
        """Return each training's mean reliance curve with Student's interval over the seeds."""
        return {
            name: BandCurve(self.edges, drops.mean(0), student_interval(drops, CONFIDENCE))
            for name, drops in self.drops.items()
        }

    def rows(self) -> list[list[str]]:
        """Write a table row per training, with the columns of ``HEAD``."""
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
        """Return everything as values for JSON."""
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
        seeds: the seeds that were run.
        tasks: the results by data set.
        earlier: number of classifiers that an earlier run had finished.
    """

    seeds: list[int]
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    earlier: int = 0

    def title(self, name: str) -> str:
        """Write the title of a data set's table."""
        settings = self.tasks[name].settings
        return (
            f"{name}, {len(self.seeds)} seeds: accuracy on {settings.test_images} images, and the share of reliance up "
            f"to {settings.cutoff:g} cycles; mean [{CONFIDENCE:.0%} interval]; attacks of {settings.eps:.4f}"
        )
