"""``study``: vary a number of FAMPE's on a folder of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import (
    PROTOCOL_NAMES,
    STUDY_NAMES,
    add_batches,
    add_labels,
    add_model,
    add_other_model,
    key_value,
    positive,
)

if TYPE_CHECKING:
    from ...runs.batches import Failure


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Its arguments."""
    parser = commands.add_parser("study", help="vary a number of FAMPE's: scores, table, plot")
    parser.add_argument(
        "study",
        choices=STUDY_NAMES,
        help="what is varied: FAMPE's parts, the method (also Captum's) and its passes, alpha, the cut-off between "
        "the bands, steps and samples, sigma and rho, the model that decides the steps",
    )
    add_labels(parser)
    parser.add_argument("--protocol", choices=PROTOCOL_NAMES, default="rise", help="(default: %(default)s)")
    parser.add_argument("--metric-steps", type=positive, help="at most so many steps of insertion and deletion")
    parser.add_argument(
        "--metric-passes",
        type=positive,
        help="measure at most so many of each curve's steps, where it moves, and interpolate the others",
    )
    parser.add_argument("--out", type=Path, help="folder; a study that is there goes on (default: fampe_study_NAME)")
    add_model(parser)
    group = parser.add_argument_group("explorer", "another model of the same classes, for the study of that name")
    add_other_model(group, "explorer")
    group = parser.add_argument_group("method")
    group.add_argument("--steps", type=positive, default=10, help="steps along the path (default: %(default)s)")
    group.add_argument("--samples", type=positive, default=20, help="samples per step (default: %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of all random numbers (default: %(default)s)")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        type=key_value,
        metavar="KEY=VALUE",
        help="a field of FAMPE's configuration for all its variants that do not vary it, repeatable; the lines of "
        "AttEXplore keep theirs",
    )
    add_batches(group)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run a study, or what is left of it, and print its table."""
    from rich.markup import escape
    from rich.table import Table

    from ...runs.study import run_study, study_outputs
    from ...runs.study_definitions import Budget, define_study
    from ...runs.study_report import write_report
    from ..model_and_methods import check_all_outputs, classifier_of, labelled_images, other_classifier_of, targets_of
    from ..output import Bar, closing, console, error_console, estimate_text, print_failure, print_left_out

    out = arguments.out or Path(f"fampe_study_{arguments.study}")
    for name in ("steps", "samples", "seed"):
        if name in dict(arguments.option):
            raise ValueError(f"--option {name}: every line of a study has the same, use --{name}")
    budget = Budget(arguments.steps, arguments.samples, arguments.seed, dict(arguments.option))
    study = define_study(arguments.study, budget)
    found, labels = labelled_images(arguments)
    paths = found.paths
    check_all_outputs(arguments, study_outputs(out), paths)
    classifier = classifier_of(arguments)
    explorer = other_classifier_of(arguments, "explorer")
    targets = targets_of(found, labels, classifier)
    screen, errors = console(), error_console()
    print_left_out(errors, found)
    with Bar(errors, study.name, len(paths) * len(study.variants)) as advance:

        def failed(failure: Failure) -> None:
            print_failure(errors, failure)

        result = run_study(
            study,
            classifier,
            paths,
            out,
            explorer=explorer,
            targets=targets,
            protocol=arguments.protocol,
            metric_steps=arguments.metric_steps,
            metric_passes=arguments.metric_passes,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_scores=advance,
            on_failure=failed,
        )
    table = Table(
        "variant", "passes", "insertion", "deletion", "ins. gained", "del. gained",
        title=f"{study.question} {len(result.files)} images, {escape(classifier.name)}, protocol {result.protocol}",
        caption=f"mean ± standard error; gained: paired, against {study.variants[0].label}",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for outcome in result.outcomes:
        first = outcome is result.outcomes[0]
        table.add_row(
            escape(outcome.variant.label),
            str(outcome.passes),
            estimate_text(outcome.insertion),
            estimate_text(outcome.deletion),
            "" if first else estimate_text(outcome.insertion_gain, signed=True),
            "" if first else estimate_text(outcome.deletion_gain, signed=True),
        )
    screen.print(table)
    for path in write_report(result, out):
        screen.print(f"wrote {escape(str(path))}", soft_wrap=True)
    return closing(errors, len(paths) - len(result.failures), len(paths))
