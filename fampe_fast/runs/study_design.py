"""Define studies: variants of methods that differ in a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One setting of one method.

    Attributes:
        label: unique name in tables and records.
        method: a name of ``create_method``.
        options: options of the method.
        axis: name of the varied number, a panel of the plot; empty for a setting without one.
        value: value of the varied number.
        series: the variant's line in the plot.
        explored: whether another model decides the steps.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    axis: str = ""
    value: float = 0.0
    series: str = ""
    explored: bool = False


@dataclass(frozen=True)
class Study:
    """A question and its variants.

    Attributes:
        name: name of the study.
        question: the question, a sentence.
        variants: the variants; the others are compared with the first.

    Raises:
        ValueError: no variant, or two with the same label.
    """

    name: str
    question: str
    variants: tuple[Variant, ...]

    def only(self, labels: Sequence[str]) -> Study:
        """Select the first variant and those with these labels.

        Raises:
            ValueError: a label that no variant has.
        """
        known = [variant.label for variant in self.variants]
        unknown = [label for label in labels if label not in known]
        if unknown:
            raise ValueError(
                f"the study {self.name!r} has no variant {', '.join(map(repr, unknown))}; known are "
                f"{', '.join(map(repr, known))}"
            )
        first, *others = self.variants
        return replace(self, variants=(first, *(variant for variant in others if variant.label in labels)))

    def __post_init__(self) -> None:
        labels = [variant.label for variant in self.variants]
        if not labels:
            raise ValueError(f"the study {self.name!r} has no variants")
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"labels must differ, got {', '.join(twice)} more than once")
