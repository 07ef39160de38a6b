"""What an evaluation measures of a method's maps, and one method's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..checks import check_count, check_seed
from ..methods.base import AttributionMethod
from ..metrics import insertion_deletion, mu_fidelity, stability
from ..metrics.protocols import resolve_protocol
from ..runtime.model import Model

METRICS = ("insertion_deletion", "mu_fidelity", "stability")


@dataclass
class Scores:
    """One method's scores, image by image.

    Attributes:
        values: by name: ``insertion`` and ``deletion`` (areas in [0, 1], the one better high and the other low),
            ``mu_fidelity`` (in [-1, 1], better high), ``stability`` (a distance, better low); those that were measured.
        seconds: for the maps, in all.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def insertion(self) -> list[float]:
        """Areas in [0, 1], higher is better; empty where not measured."""
        return self.values.get("insertion", [])

    @property
    def deletion(self) -> list[float]:
        """Areas in [0, 1], lower is better; empty where not measured."""
        return self.values.get("deletion", [])

    @property
    def faithfulness(self) -> list[float]:
        """Insertion minus deletion."""
        return [a - b for a, b in zip(self.insertion, self.deletion, strict=True)]

    def columns(self) -> dict[str, list[float]]:
        """Everything measured by name, ``faithfulness`` after insertion and deletion."""
        if "insertion" not in self.values:
            return dict(self.values)
        areas = {"insertion": self.insertion, "deletion": self.deletion, "faithfulness": self.faithfulness}
        return areas | {name: values for name, values in self.values.items() if name not in areas}

    def add(self, values: dict[str, list[float]], seconds: float) -> None:
        """Append what was measured of a batch."""
        for name, found in values.items():
            self.values.setdefault(name, []).extend(found)
        self.seconds += seconds


@dataclass(frozen=True)
class Measurement:
    """Which metrics an evaluation takes, and how.

    Attributes:
        metrics: of ``METRICS``, at least one.
        protocol: of insertion and deletion, by name.
        metric_steps: at most this many steps of insertion and deletion; None is the protocol's own number.
        metric_passes: at most so many of them are measured, the others interpolated; None measures all.
        mu_fidelity_samples: subsets per image, each a pass of the model.
        stability_samples: perturbed copies per image, each an attribution.
        seed: of the subsets and perturbations.

    Raises:
        ValueError: an unknown metric or protocol, no metric at all, too few samples.
    """

    metrics: tuple[str, ...] = ("insertion_deletion",)
    protocol: str = "rise"
    metric_steps: int | None = None
    metric_passes: int | None = None
    mu_fidelity_samples: int = 200
    stability_samples: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.metrics if name not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"unknown metric(s) {', '.join(unknown) or '(none given)'}; known: {', '.join(METRICS)}")
        resolve_protocol(self.protocol)
        for name in ("metric_steps", "metric_passes", "mu_fidelity_samples", "stability_samples"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_count(name, getattr(self, name)))
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.mu_fidelity_samples < 2:
            raise ValueError("mu_fidelity_samples must be at least 2, got 1: one subset has no correlation")
        if self.metric_passes == 1:
            raise ValueError("metric_passes must be at least 2, the ends of a curve, got 1")

    def options(self) -> dict[str, dict[str, Any]]:
        """What each chosen metric is called with."""
        every: dict[str, dict[str, Any]] = {
            "insertion_deletion": {"protocol": self.protocol, "steps": self.metric_steps, "passes": self.metric_passes},
            "mu_fidelity": {
                "samples": self.mu_fidelity_samples,
                "grid_size": 9,
                "subset_percent": 0.2,
                "baseline": 0.0,
                "score": "probability",
                "seed": self.seed,
            },
            "stability": {
                "samples": self.stability_samples,
                "radius": 0.02,
                "reduce": "mean",
                "distance": "l2",
                "normalise": True,
                "seed": self.seed,
            },
        }
        return {name: every[name] for name in METRICS if name in self.metrics}

    def __call__(
        self,
        model: Model,
        method: AttributionMethod,
        images: Tensor,
        maps: Tensor,
        targets: Tensor,
        image_ids: Sequence[int],
        internal_batch_size: int | None = None,
    ) -> dict[str, list[float]]:
        """The scores of a batch, by name.

        Args:
            model: classifier in pixel space.
            method: what made the maps.
            images: (B, C, H, W).
            maps: (B, C, H, W).
            targets: (B,).
            image_ids: (B,), the images' names in the random streams.
            internal_batch_size: images per model pass.
        """
        found: dict[str, list[float]] = {}
        chunk: dict[str, Any] = {"internal_batch_size": internal_batch_size}
        named = {**chunk, "image_ids": image_ids}
        options = self.options()
        if "insertion_deletion" in options:
            areas = insertion_deletion(model, images, maps, targets, **options["insertion_deletion"], **chunk)
            found |= {"insertion": areas.insertion.tolist(), "deletion": areas.deletion.tolist()}
        if "mu_fidelity" in options:
            fidelity = mu_fidelity(model, images, maps, targets, **options["mu_fidelity"], **named)
            found["mu_fidelity"] = fidelity.scores.tolist()
        if "stability" in options:
            found["stability"] = stability(method, images, targets, **options["stability"], **named).scores.tolist()
        return found
