"""Measure maps with the metrics of the catalog, and collect a method's scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..catalog import METRICS, Score, load, metric_options
from ..checks import check_choice, check_flag, check_number, check_seed, check_whole
from ..methods.base import AttributionMethod
from ..metrics import Partners
from ..options import Option
from ..runtime.model import Model


@dataclass
class Scores:
    """One method's scores, image by image.

    Attributes:
        values: the measured scores, by their names in ``catalog.METRICS``.
        seconds: total time of the maps.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, values: Mapping[str, Sequence[float]], seconds: float) -> None:
        """Append the scores of a batch."""
        for name, found in values.items():
            self.values.setdefault(name, []).extend(found)
        self.seconds += seconds

    def columns(self, scores: Sequence[Score]) -> dict[str, list[float]]:
        """List these scores by name, including differences of two others."""
        found: dict[str, list[float]] = {}
        for score in scores:
            if isinstance(score.field, str):
                found[score.name] = self.values.get(score.name, [])
            else:
                plus, minus = (self.values.get(name, []) for name in score.field)
                found[score.name] = [a - b for a, b in zip(plus, minus, strict=True)]
        return found


@dataclass(frozen=True)
class Measurement:
    """The chosen metrics and their options.

    Attributes:
        metrics: names in ``catalog.METRICS``, at least one; they are used in the catalog's order.
        options: by metric, the options that differ from the metric's defaults.
        seed: seed of all metrics with random numbers whose options do not set one.

    Raises:
        ValueError: an unknown metric or option, no metric at all, or a value out of range.
        TypeError: a value of another type.
    """

    metrics: tuple[str, ...] = ("insertion_deletion",)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in (*self.metrics, *self.options) if name not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f"unknown metric(s) {', '.join(unknown) or '(none given)'}; known: {', '.join(METRICS)}")
        spare = [name for name in self.options if name not in self.metrics]
        if spare:
            raise ValueError(f"options of {', '.join(spare)}, but only {', '.join(self.metrics)} will be measured")
        seed = check_seed(self.seed)
        chosen = tuple(name for name in METRICS if name in self.metrics)
        whole = {name: _settled(name, self.options.get(name, {}), seed) for name in chosen}
        object.__setattr__(self, "metrics", chosen)
        object.__setattr__(self, "options", whole)
        object.__setattr__(self, "seed", seed)
        self.check(_AnyModel(), torch.zeros(0, 3, 1024, 1024, device="cpu"))

    @property
    def scores(self) -> tuple[Score, ...]:
        """The scores of the metrics, in the order of tables."""
        return tuple(score for name in self.metrics for score in METRICS[name].scores)

    @property
    def protocol(self) -> str | None:
        """The protocol of insertion and deletion, or each metric's if they differ; None without one."""
        used = {name: options["protocol"] for name, options in self.options.items() if "protocol" in options}
        if len(set(used.values())) > 1:
            return ", ".join(f"{protocol} ({name})" for name, protocol in used.items())
        return next(iter(used.values()), None)

    @property
    def needs_partners(self) -> bool:
        """Whether a metric needs partner images of the run."""
        return any(METRICS[name].partners for name in self.metrics)

    def check(
        self, model: Model, none: Tensor, method: AttributionMethod | None = None, partners: Partners | None = None
    ) -> None:
        """Check each metric's options before any work, by calling it without images.

        Args:
            model: classifier in pixel space.
            none: (0, C, H, W), of the images' size and on their device.
            method: the method that will make the maps, if known.
            partners: the partner images, if known.

        Raises:
            ValueError, TypeError: a value, method or partners that a metric refuses; the message names the metric.
        """
        method = cast(AttributionMethod, _AnyMethod(model)) if method is None else method
        targets = none.new_zeros(0, dtype=torch.long)
        for name in self.metrics:
            try:
                self._measure(name, model, method, none, none, targets, [], None, partners)
            except (ValueError, TypeError) as error:
                raise type(error)(f"{name}: {error}") from error

    def __call__(
        self,
        model: Model,
        method: AttributionMethod,
        images: Tensor,
        maps: Tensor,
        targets: Tensor,
        image_ids: Sequence[int],
        internal_batch_size: int | None = None,
        partners: Partners | None = None,
    ) -> dict[str, list[float]]:
        """Score the maps of a batch.

        Args:
            model: classifier in pixel space.
            method: the method that made the maps.
            images: (B, C, H, W).
            maps: (B, C, H, W).
            targets: (B,).
            image_ids: (B,), the images' names in the random streams.
            internal_batch_size: images per model pass.
            partners: partner images of the metrics; None for the images of the batch.

        Returns:
            For each score's name, a number per image.
        """
        found: dict[str, list[float]] = {}
        for name in self.metrics:
            found |= self._measure(name, model, method, images, maps, targets, image_ids, internal_batch_size, partners)
        return found

    def _measure(
        self,
        name: str,
        model: Model,
        method: AttributionMethod,
        images: Tensor,
        maps: Tensor,
        targets: Tensor,
        image_ids: Sequence[int],
        internal_batch_size: int | None,
        partners: Partners | None,
    ) -> dict[str, list[float]]:
        """Compute one metric's scores; arguments as for ``__call__``."""
        row = METRICS[name]
        options: dict[str, Any] = {**self.options[name], "internal_batch_size": internal_batch_size}
        if row.named:
            options["image_ids"] = image_ids
        if row.partners:
            options["partners"] = partners
        given = (method, images, targets) if row.explains else (model, images, maps, targets)
        result = load(row.home)(*given, **options)
        return {s.name: getattr(result, s.field).tolist() for s in row.scores if isinstance(s.field, str)}


class _AnyModel(nn.Module):
    """A model for checks of options, which accepts images of every size."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.full((3,), 0.5, device="cpu")
        self.weight = nn.Parameter(torch.ones(2, device="cpu"))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))[:, None] * self.weight


class _AnyMethod:
    """A method for checks of options, which never explains an image."""

    def __init__(self, model: Model) -> None:
        self.forward_func = model

    def attribute(self, inputs: Tensor, target: object = None, **options: object) -> Tensor:
        return torch.zeros_like(inputs)


def _settled(name: str, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Complete a metric's options with its defaults, as plain Python numbers and words."""
    known = {option.name: option for option in metric_options(name)}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{name} has no option(s) {', '.join(unknown)}; known: {', '.join(known)}")
    defaults = {option.name: option.default for option in known.values()}
    if "seed" in defaults:
        defaults["seed"] = seed
    return {key: _plain(known[key], value) for key, value in {**defaults, **given}.items()}


def _plain(option: Option, value: Any) -> Any:
    if value is None and option.optional:
        return None
    if option.kind == "int":
        return check_whole(option.name, value)
    if option.kind == "float":
        return check_number(option.name, value, -math.inf, math.inf)
    if option.kind == "bool":
        return check_flag(option.name, value)
    return check_choice(option.name, value, option.choices) if option.choices else value
