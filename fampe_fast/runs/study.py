"""Run a study: compare its variants on image files, and write JSON, a table and a plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog import Score
from ..files import FIGURE, FOLDER, Output, check_outputs, json_content, markdown_content, write_atomically
from ..methods.base import AttributionMethod
from ..methods.registry import create_method
from ..metrics import Estimate
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..plots import save_figure
from ..plots.choices import ChoicePanel, choices_figure
from ..plots.studies import StudyLine, study_figure
from ..plots.times import TimePoint, times_figure
from .batches import Failure, check_same_task
from .comparison import SCORES_FILE, Comparison, Maps, compare_files
from .measurement import Measurement
from .records import RECORDS
from .study_choices import (
    Choice,
    choices_json,
    choices_of,
    choices_table,
    correlation_text,
    image_cutoffs,
    line_name,
    tau_of,
)
from .study_design import Study, Variant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDY, TABLE = "study", "table"
"""The kinds of ``study.json`` and of ``table.md``."""


@dataclass(frozen=True)
class Outcome:
    """One variant's scores over the images that all variants have scored.

    Attributes:
        variant: the variant.
        passes: forward and backward passes of the model per image.
        means: mean scores by name.
        gains: paired differences to the study's first variant, by the score's name.
        seconds: measured seconds per map.
        gradients: whether the method needs the model's gradients.
    """

    variant: Variant
    passes: int
    means: dict[str, Estimate]
    gains: dict[str, Estimate]
    seconds: float
    gradients: bool


@dataclass(frozen=True)
class StudyResult:
    """The result of a study.

    Attributes:
        study: the study.
        comparison: comparison of its variants, by label.
        explorer: name and fingerprint of the explorer; None without one.
        cutoffs: each image's cut-offs, by the names of ``study_choices.CUTOFFS``; empty if no number is varied.
    """

    study: Study
    comparison: Comparison
    explorer: dict[str, object] | None = None
    cutoffs: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def scores(self) -> tuple[Score, ...]:
        """The measured scores, without differences of two others."""
        return tuple(score for score in self.comparison.measurement.scores if isinstance(score.field, str))

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """An outcome per variant; empty without images that all variants have scored."""
        summary = self.comparison.summary()
        names = [score.name for score in self.scores]
        return [
            Outcome(
                variant,
                int(str(self.comparison.methods[variant.label]["passes"])),
                {name: summary[variant.label][name] for name in names},
                {name: summary[variant.label][f"{name}_minus_first"] for name in names},
                self.comparison.seconds(variant.label),
                bool(self.comparison.methods[variant.label]["gradients"]),
            )
            for variant in self.study.variants
            if summary
        ]

    @cached_property
    def choices(self) -> list[Choice]:
        """The choice per image along each line of the plot; empty without images."""
        return choices_of(self.study, self.comparison, self.cutoffs)


def study_outputs(out: Path) -> list[Output]:
    """List the files that ``run_study`` writes."""
    return [
        Output(out, FOLDER),
        Output(out / SCORES_FILE, RECORDS),
        Output(out / "study.json", STUDY),
        Output(out / "table.md", TABLE),
        Output(out / "plot.png", FIGURE),
        Output(out / "choices.png", FIGURE),
        Output(out / "times.png", FIGURE),
    ]


def run_study(
    study: Study,
    classifier: Classifier,
    paths: Sequence[Path],
    out: Path,
    *,
    explorer: Classifier | None = None,
    measurement: Measurement | None = None,
    targets: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    on_scores: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> StudyResult:
    """Explain every file with every variant, measure the maps, and write the report.

    Finished work is not repeated, as in ``compare_files``. ``out`` then has ``study.json``, ``table.md``, ``times.png``
    (a score of the maps, faithfulness if it is measured, against their seconds) and, if a number is varied,
    ``plot.png`` and ``choices.png``: the gain of choosing the number per image, and its relation to the image's
    cut-off.

    Args:
        study: the study.
        classifier: the model.
        paths: image files.
        out: folder, made if missing.
        explorer: the explorer, if a variant needs one.
        measurement: the metrics and their options; default: insertion and deletion in RISE's protocol.
        targets: class of each file; None uses the model's prediction.
        image_ids: unique id of each file in the random stream, 0 to 2^32 - 2; default: its position in ``paths``.
        batch_size: images read together.
        internal_batch_size: samples per model pass.
        on_scores: called with the number of newly scored maps (images times variants).
        on_failure: called for each image that is left out.

    Raises:
        ValueError: an output would replace an image or a file of another's, a variant's options are out of range, an
            explorer is missing or is one of other classes or channels, an option of a metric does not fit the images'
            size, the methods or the number of classes, or image ids are not unique or out of range.
        TypeError: a variant's method does not have one of its options.
        OSError: the results cannot be written.
    """
    if explorer is not None:
        check_same_task(classifier, explorer, "a path is explored by")
    methods = {variant.label: _method(variant, classifier, explorer) for variant in study.variants}
    check_outputs(study_outputs(out), paths)
    explored_by = None if explorer is None else identity_of(explorer)
    cutoffs: dict[str, list[float]] = {}

    def write(comparison: Comparison, _: Maps) -> None:
        if any(variant.axis for variant in study.variants):
            cutoffs.update(image_cutoffs(classifier, comparison.paths, tau_of(study)))
        write_report(StudyResult(study, comparison, explored_by, cutoffs), out)

    comparison = compare_files(
        "study",
        classifier,
        methods,
        paths,
        out,
        write,
        measurement=measurement or Measurement(),
        targets=targets,
        image_ids=image_ids,
        batch_size=batch_size,
        internal_batch_size=internal_batch_size,
        on_scores=on_scores,
        on_failure=on_failure,
    )
    return StudyResult(study, comparison, explored_by, cutoffs)


def _method(variant: Variant, classifier: Classifier, explorer: Classifier | None) -> AttributionMethod:
    if not variant.explored:
        return create_method(variant.method, classifier, **variant.options)
    if explorer is None:
        raise ValueError(f"the variant {variant.label!r} needs another model as explorer")
    return create_method(variant.method, classifier, **variant.options, explorer=explorer)


def report_files(result: StudyResult, out: Path) -> list[Path]:
    """List the files of a study's report; empty for a study without scores."""
    if not result.outcomes:
        return []
    pictures = (["plot.png"] if _lines(result) else []) + (["choices.png"] if result.choices else [])
    return [out / name for name in ("study.json", "table.md", "times.png", *pictures)]


def write_report(result: StudyResult, out: Path) -> None:
    """Write ``study.json``, ``table.md``, ``times.png`` and, if a number is varied, ``plot.png`` and ``choices.png``.

    Raises:
        OSError: the files cannot be written.
    """
    tau = tau_of(result.study)
    tables = [as_table(result), *([choices_table(result.choices, tau)] if result.choices else [])]
    write_atomically(out / "study.json", as_json(result).encode())
    write_atomically(out / "table.md", markdown_content(TABLE, "\n".join(tables)).encode())
    save_figure(_times(result), out / "times.png")
    lines = _lines(result)
    if lines:
        first = result.outcomes[0]
        figure = study_figure(
            lines,
            title=f"{result.study.question}{_protocol(result, ' ({} protocol)')}",
            reference=(first.variant.label, *(first.means[score.name].mean for score in result.scores)),
            rows=[f"{score.title} ({score.better}er is better)" for score in result.scores],
        )
        save_figure(figure, out / "plot.png")
    if result.choices:
        panels = {
            line_name(choice): [
                ChoicePanel(result.cutoffs[name], choice.best, choice.single, name, correlation_text(found))
                for name, found in choice.relations.items()
            ]
            for choice in result.choices
        }
        title = f"The best value for each of {len(result.comparison.paths)} images against its cut-off, tau = {tau:g}"
        save_figure(choices_figure(panels, title=title), out / "choices.png")


def _times(result: StudyResult) -> Figure:
    scores, summary = result.comparison.measurement.scores, result.comparison.summary()
    score = next((score for score in scores if score.name == "faithfulness"), scores[0])
    points = [
        TimePoint(outcome.variant.label, outcome.seconds, summary[outcome.variant.label][score.name], outcome.gradients)
        for outcome in result.outcomes
    ]
    return times_figure(
        points,
        title=f"{result.comparison.model['model']}, {len(result.comparison.paths)} images",
        score=f"{score.title}{_protocol(result, ' ({})')}",
        high=score.better == "high",
    )


def as_json(result: StudyResult) -> str:
    """Return everything as values for JSON."""
    content: dict[str, Any] = {
        "study": result.study.name,
        "question": result.study.question,
        "explorer": result.explorer,
        "outcomes": [
            {
                "variant": outcome.variant.label,
                "axis": outcome.variant.axis,
                "value": outcome.variant.value,
                "series": outcome.variant.series,
                "passes": outcome.passes,
                **{name: vars(estimate) for name, estimate in outcome.means.items()},
                **{f"{name}_gain": vars(estimate) for name, estimate in outcome.gains.items()},
            }
            for outcome in result.outcomes
        ],
        "choices": choices_json(result.choices, result.cutoffs, tau_of(result.study)),
    }
    return json_content(STUDY, content | result.comparison.as_json())


def as_table(result: StudyResult) -> str:
    """Write a Markdown table, a row per variant; mean ± standard error over the images."""
    first, *others = result.outcomes
    names = [score.name for score in result.scores]
    count = len(result.comparison.paths)
    head = f"{count} images{_protocol(result, ', {} protocol')}; differences to {first.variant.label}, paired"
    titles = [score.title for score in result.scores]
    cells = ["variant", "passes", *titles, *(f"{title} gained" for title in titles)]
    rows = [f"{result.study.question} ({head})", "", _row(cells), "|---" * len(cells) + "|"]
    for outcome in (first, *others):
        gains = ["" if outcome is first else _gain(outcome, first, score) for score in result.scores]
        means = [_text(outcome.means[name]) for name in names]
        rows.append(_row([outcome.variant.label, str(outcome.passes), *means, *gains]))
    return "\n".join(rows) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _gain(outcome: Outcome, first: Outcome, score: Score) -> str:
    """Write a difference and, if high is better, its share of a non-negative score of the first variant."""
    gain, base = outcome.gains[score.name], first.means[score.name].mean
    share = f" ({gain.mean / base if base else 0.0:+.1%})" if score.better == "high" and base >= 0 else ""
    return f"{_text(gain, '+')}{share}"


def _text(estimate: Estimate, sign: str = "") -> str:
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.3f}"
    return f"{estimate.mean:{sign}.3f}{error}"


def _protocol(result: StudyResult, text: str) -> str:
    protocol = result.comparison.measurement.protocol
    return text.format(protocol) if protocol else ""


def _lines(result: StudyResult) -> list[StudyLine]:
    lines: dict[tuple[str, str], StudyLine] = {}
    for outcome in result.outcomes:
        variant = outcome.variant
        if variant.axis:
            line = lines.setdefault((variant.axis, variant.series), StudyLine(variant.axis, variant.series, []))
            line.points.append((variant.value, *outcome.means.values()))
    return list(lines.values())
