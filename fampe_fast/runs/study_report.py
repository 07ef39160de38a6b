"""What a study leaves behind: JSON, a Markdown table and a plot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from ..files import json_content, markdown_content, write_atomically
from ..metrics import Estimate
from ..plots import save_figure
from ..plots.studies import StudyLine, study_figure
from .study import STUDY, TABLE, StudyResult


def write_report(result: StudyResult, out: Path) -> list[Path]:
    """Write ``study.json``, ``table.md`` and, where something is varied, ``plot.png``.

    Returns:
        The files written; none for a study without scores.

    Raises:
        OSError: they cannot be written.
    """
    if not result.outcomes:
        return []
    written = [out / "study.json", out / "table.md"]
    write_atomically(written[0], as_json(result).encode())
    write_atomically(written[1], markdown_content(TABLE, as_table(result)).encode())
    lines = _lines(result)
    if lines:
        first = result.outcomes[0]
        figure = study_figure(
            lines,
            title=f"{result.study.question} ({result.protocol} protocol)",
            reference=(first.variant.label, first.insertion.mean, first.deletion.mean),
        )
        written.append(save_figure(figure, out / "plot.png"))
    return written


def as_json(result: StudyResult) -> str:
    """Everything, as JSON."""
    return json_content(
        STUDY,
        {
            "question": result.study.question,
            **result.settings,
            "outcomes": [
                {
                    "variant": outcome.variant.label,
                    "axis": outcome.variant.axis,
                    "value": outcome.variant.value,
                    "series": outcome.variant.series,
                    "passes": outcome.passes,
                    **{
                        name: vars(getattr(outcome, name))
                        for name in ("insertion", "deletion", "insertion_gain", "deletion_gain")
                    },
                }
                for outcome in result.outcomes
            ],
            "images": result.files,
            "scores": [asdict(record) for record in result.records],
            "failures": [{"file": failure.path.name, "reason": failure.reason} for failure in result.failures],
        },
    )


def as_table(result: StudyResult) -> str:
    """A Markdown table, a row per variant; mean ± standard error over the images."""
    first = result.outcomes[0]
    head = f"{first.insertion.n} images, {result.protocol} protocol; differences to {first.variant.label}, paired"
    rows = [
        f"{result.study.question} ({head})",
        "",
        "| variant | passes | insertion | deletion | insertion gained | deletion gained |",
        "|---|---|---|---|---|---|",
    ]
    for outcome in result.outcomes:
        same = outcome is first
        share = outcome.insertion_gain.mean / first.insertion.mean if first.insertion.mean else 0.0
        gain = "" if same else f"{_text(outcome.insertion_gain, '+')} ({share:+.1%})"
        loss = "" if same else _text(outcome.deletion_gain, "+")
        rows.append(
            f"| {outcome.variant.label} | {outcome.passes} | {_text(outcome.insertion)} | {_text(outcome.deletion)} "
            f"| {gain} | {loss} |"
        )
    return "\n".join(rows) + "\n"


def _text(estimate: Estimate, sign: str = "") -> str:
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.3f}"
    return f"{estimate.mean:{sign}.3f}{error}"


def _lines(result: StudyResult) -> list[StudyLine]:
    lines: dict[tuple[str, str], StudyLine] = {}
    for outcome in result.outcomes:
        variant = outcome.variant
        if variant.axis:
            line = lines.setdefault((variant.axis, variant.series), StudyLine(variant.axis, variant.series, []))
            line.points.append((variant.value, outcome.insertion, outcome.deletion))
    return list(lines.values())
