"""Choose the varied number of a study for each image: how much that gains, and whether it depends on the image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..catalog import Score
from ..engine.config import FAMPEConfig
from ..images import load_images
from ..metrics.rank_correlation import rank_correlation
from ..metrics.summary import Estimate, bootstrap_interval, mean_and_error, paired_difference
from ..models.classifier import Classifier
from ..ops import primitives as ops
from .batches import device_of
from .comparison import Comparison
from .study_design import Study, Variant

CONFIDENCE = 0.95
"""Coverage of all intervals here, which are bootstraps over images."""
CUTOFFS = {"with DC": True, "without DC": False}
"""The image's cut-offs by name, and whether its mean counts as energy."""
_FEWEST = 4  # least number of images for an interval of a correlation


@dataclass(frozen=True)
class Difference:
    """A mean difference over images, positive if the images' own choices are better.

    Attributes:
        estimate: the mean with its standard error.
        interval: interval of the mean; None for one image.
    """

    estimate: Estimate
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Gain:
    """The gain in one score of choosing per image, by the same score or another.

    Attributes:
        chosen_by: the score by which the best value is chosen, for each image and for the mean.
        judged_by: the score that is compared. If it also chose, the gain is optimistic: the best of many noisy scores
            lies above its expectation.
        over_single: gain over the value that is best for the mean of all images.
        over_dealt: mean gain over the same values assigned to other images: the benefit of an image's own choice. If it
            is 0, ``over_single`` shows only that values differ, not images.
    """

    chosen_by: Score
    judged_by: Score
    over_single: Difference
    over_dealt: Difference


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation over images.

    Attributes:
        value: in [-1, 1]; None if one of the two is constant over the images.
        interval: interval of the value; None without a value, or for fewer than four images.
        n: the number of images.
    """

    value: float | None
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Choice:
    """The choice among the variants of one line, which vary one number.

    Attributes:
        axis: the number that is varied.
        series: the line.
        chosen_by: the score of ``best`` and ``single``: insertion − deletion, if it is measured.
        best: each image's best value of the number, on a tie the smallest.
        single: the value that is best for the mean of the images.
        score: the mean of ``chosen_by`` for ``single``.
        gains: gains of ``best`` over ``single``: first of ``chosen_by``, then of each score chosen by each other.
        agreements: rank correlation of the choices by two scores, by their names.
        relations: rank correlation of ``best`` with a cut-off, by the cut-off's name.
    """

    axis: str
    series: str
    chosen_by: Score
    best: tuple[float, ...]
    single: float
    score: Estimate
    gains: tuple[Gain, ...]
    agreements: Mapping[tuple[str, str], Correlation]
    relations: Mapping[str, Correlation]


def choices_of(study: Study, comparison: Comparison, cutoffs: Mapping[str, Sequence[float]]) -> list[Choice]:
    """Choose per image along each of a study's lines with at least two variants; empty without images.

    Args:
        study: the study whose variants were compared.
        comparison: the comparison with their scores.
        cutoffs: by name, the cut-off of each image of the comparison; NaN if unknown.
    """
    lines: dict[tuple[str, str], list[Variant]] = {}
    for variant in study.variants:
        if variant.axis:
            lines.setdefault((variant.axis, variant.series), []).append(variant)
    return [
        _choice(sorted(line, key=lambda variant: variant.value), comparison, cutoffs)
        for line in lines.values()
        if len(line) > 1 and comparison.paths
    ]


def _choice(line: Sequence[Variant], comparison: Comparison, cutoffs: Mapping[str, Sequence[float]]) -> Choice:
    """Choose among variants in ascending order of their values."""
    scores = comparison.measurement.scores
    columns = [comparison.columns(variant.label) for variant in line]
    merits = {
        score.name: torch.tensor([column[score.name] for column in columns], dtype=torch.float64)
        * (1 if score.better == "high" else -1)
        for score in scores
    }
    plain = [score for score in scores if isinstance(score.field, str)]
    overall = next((score for score in scores if not isinstance(score.field, str)), scores[0])
    best = {name: _first_best(merit) for name, merit in merits.items()}
    values = torch.tensor([variant.value for variant in line], dtype=torch.float64)
    chosen = values[best[overall.name]]
    single = int(_first_best(merits[overall.name].mean(1, keepdim=True)))
    return Choice(
        line[0].axis,
        line[0].series,
        overall,
        tuple(chosen.tolist()),
        float(values[single]),
        mean_and_error(columns[single][overall.name]),
        tuple(_gain(by, judge, merits) for by, judge in ((overall, overall), *permutations(plain, 2))),
        {
            (first.name, second.name): correlation(values[best[first.name]], values[best[second.name]])
            for first, second in combinations(plain, 2)
        },
        {name: _relation(chosen, column) for name, column in cutoffs.items()},
    )


def _first_best(merit: Tensor) -> Tensor:
    """Find the row of each column's largest value, on a tie the first, as ``argmax`` guarantees."""
    return merit.argmax(0)


def _relation(chosen: Tensor, column: Sequence[float]) -> Correlation:
    cutoffs = torch.tensor(column, dtype=torch.float64)
    known = cutoffs.isfinite()
    return correlation(chosen[known], cutoffs[known])


def _gain(by: Score, judge: Score, merits: Mapping[str, Tensor]) -> Gain:
    chooser, judged = merits[by.name], merits[judge.name]
    dealt = judged[_first_best(chooser)]  # by whose choice, by which image
    count = len(dealt)
    own = dealt.diagonal()
    single = judged[int(_first_best(chooser.mean(1, keepdim=True)))]
    others = (dealt.sum(0) - own) / (count - 1) if count > 1 else own
    return Gain(by, judge, _difference(own, single), _difference(own, others))


def _difference(own: Tensor, other: Tensor) -> Difference:
    interval = bootstrap_interval((own - other)[:, None], CONFIDENCE)
    return Difference(paired_difference(own, other), _ends(interval))


def correlation(a: Tensor, b: Tensor) -> Correlation:
    """Compute the rank correlation of two numbers per image, with a percentile bootstrap interval over images.

    Args:
        a: (n,), finite.
        b: (n,), finite, of the same images.
    """
    count = len(a)
    if count < 2 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return Correlation(None, None, count)
    value = float(rank_correlation(a[None], b[None]))
    interval = None
    if count >= _FEWEST:
        pairs = torch.stack([a, b], 1)
        interval = bootstrap_interval(
            pairs, CONFIDENCE, statistic=lambda rows: rank_correlation(rows[..., 0], rows[..., 1])[:, None]
        )
    return Correlation(value, _ends(interval), count)


def _ends(interval: Tensor | None) -> tuple[float, float] | None:
    return None if interval is None else (float(interval[0, 0]), float(interval[1, 0]))


def tau_of(study: Study) -> float:
    """Read the energy share tau of the images' cut-offs: the variants', or the default if it is varied."""
    found = {float(variant.options.get("tau", FAMPEConfig.tau)) for variant in study.variants if variant.axis}
    return found.pop() if len(found) == 1 else FAMPEConfig.tau


def image_cutoffs(classifier: Classifier, paths: Sequence[Path], tau: float) -> dict[str, list[float]]:
    """Find the energy cut-offs of image files as FAMPE does, in cycles over the shorter side.

    Args:
        classifier: the model, whose transform reads them.
        paths: image files.
        tau: share of the energy, in (0, 1].

    Returns:
        By the names of ``CUTOFFS``, a number per file; NaN for one that cannot be read.
    """
    found: dict[str, list[float]] = {name: [] for name in CUTOFFS}
    for _, image in load_images(paths, classifier.transform):
        for name, include_dc in CUTOFFS.items():
            found[name].append(
                _cutoff(image.to(device_of(classifier)), tau, include_dc) if isinstance(image, Tensor) else math.nan
            )
    return found


def _cutoff(image: Tensor, tau: float, include_dc: bool) -> float:
    return float(ops.energy_cutoff(torch.fft.rfft2(image[None]), image.shape[-1], tau, include_dc))


def choices_json(choices: Sequence[Choice], cutoffs: Mapping[str, Sequence[float]], tau: float) -> dict[str, Any]:
    """Return all choices as values for JSON; lists have an entry per image, in the order of the study's images."""
    return {
        "tau": tau,
        "confidence": CONFIDENCE,
        "cutoffs": dict(cutoffs),
        "lines": [
            {
                "axis": choice.axis,
                "series": choice.series,
                "chosen_by": choice.chosen_by.name,
                "best_for_all": choice.single,
                "score_of_best_for_all": vars(choice.score),
                "best": list(choice.best),
                "gains": [
                    {
                        "chosen_by": gain.chosen_by.name,
                        "judged_by": gain.judged_by.name,
                        "over_single": {**vars(gain.over_single.estimate), "interval": gain.over_single.interval},
                        "over_dealt": {**vars(gain.over_dealt.estimate), "interval": gain.over_dealt.interval},
                    }
                    for gain in choice.gains
                ],
                "agreements": [{"chosen_by": names, **vars(found)} for names, found in choice.agreements.items()],
                "relations": {name: vars(found) for name, found in choice.relations.items()},
            }
            for choice in choices
        ],
    }


def choices_rows(choices: Sequence[Choice], tau: float) -> list[list[str]]:
    """List the rows of a table, header first: a column per line of the study, with intervals in brackets."""
    titles = {gain.judged_by.name: gain.judged_by.title for gain in choices[0].gains}
    rows = [
        ["chosen per image", *map(line_name, choices)],
        ["best for all images", *(f"{choice.single:g}" for choice in choices)],
        [f"{choices[0].chosen_by.title} of that", *(_estimate_text(choice.score) for choice in choices)],
        ["best per image, quartiles", *map(_quartiles, choices)],
    ]
    for k, gain in enumerate(choices[0].gains):
        note = " (optimistic)" if gain.judged_by is gain.chosen_by else ""
        head = f"{gain.judged_by.title} better by, chosen by {gain.chosen_by.title}{note}"
        rows.append([head, *(_difference_text(choice.gains[k].over_single) for choice in choices)])
        if not note:
            rows.append(
                ["… than dealt to other images", *(_difference_text(choice.gains[k].over_dealt) for choice in choices)]
            )
    for names in choices[0].agreements:
        head = f"rank correlation of the choices by {' and by '.join(titles[name] for name in names)}"
        rows.append([head, *(correlation_text(choice.agreements[names]) for choice in choices)])
    for name in choices[0].relations:
        head = f"rank correlation with the cut-off {name}, tau = {tau:g}"
        rows.append([head, *(correlation_text(choice.relations[name]) for choice in choices)])
    return rows


def choices_table(choices: Sequence[Choice], tau: float) -> str:
    """Write the rows as a Markdown table, with a sentence that explains them."""
    head, *others = (f"| {' | '.join(row)} |" for row in choices_rows(choices, tau))
    count = len(choices[0].best)
    intro = (
        f"The value chosen for each of the {count} images by itself, against the one best for their mean; in brackets "
        f"{CONFIDENCE:.0%} bootstrap intervals over images. Better by: above 0 the images' own choices win. Judged by "
        "the score that chose, this is optimistic: the best of several noisy scores is picked. Than dealt to other "
        "images: against the same values given to images at random, so above 0 only where images differ in what suits "
        "them."
    )
    return "\n".join([intro, "", head, "|---" * (len(choices) + 1) + "|", *others]) + "\n"


def line_name(choice: Choice) -> str:
    """Name a choice's line in a table or a picture."""
    return f"{choice.axis}, {choice.series}" if choice.series not in ("", choice.axis) else choice.axis


def correlation_text(found: Correlation) -> str:
    """Write a correlation with its interval."""
    return "not defined: one is constant" if found.value is None else _interval_text(found.value, found.interval, 2)


def _difference_text(found: Difference) -> str:
    return _interval_text(found.estimate.mean, found.interval)


def _estimate_text(found: Estimate) -> str:
    return f"{found.mean:.3f}" + ("" if found.standard_error is None else f" ± {found.standard_error:.3f}")


def _interval_text(value: float, interval: tuple[float, float] | None, digits: int = 3) -> str:
    ends = "" if interval is None else f" [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"
    return f"{value:+.{digits}f}{ends}"


def _quartiles(choice: Choice) -> str:
    found = torch.tensor(choice.best, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return ", ".join(f"{value:g}" for value in found.tolist())
