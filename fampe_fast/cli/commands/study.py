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

    from ...runs.measurement import Measurement
    from ...runs.study import report_files, run_study, study_outputs
    from ...runs.study_definitions import Budget, define_study
    from ..model_and_methods import check_all_outputs, classifier_of, labelled_images, other_classifier_of, targets_of
    from ..output import (
        Bar,
        closing,
        console,
        error_console,
        estimate_text,
        print_earlier,
        print_failure,
        print_left_out,
    )

    out = arguments.out or Path(f"fampe_study_{arguments.study}")
    for name in ("steps", "samples", "seed"):
        if name in dict(arguments.option):
            raise ValueError(f"--option {name}: every line of a study has the same, use --{name}")
    budget = Budget(arguments.steps, arguments.samples, arguments.seed, dict(arguments.option))
    study = define_study(arguments.study, budget)
    areas = {"protocol": arguments.protocol, "steps": arguments.metric_steps, "passes": arguments.metric_passes}
    measurement = Measurement(options={"insertion_deletion": areas}, seed=arguments.seed)
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
            measurement=measurement,
            targets=targets,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_scores=advance,
            on_failure=failed,
        )
    comparison = result.comparison
    count = len(comparison.paths)
    print_earlier(errors, comparison.earlier, len(paths), out)
    protocol = f", protocol {measurement.protocol}" if measurement.protocol else ""
    table = Table(
        "variant", "passes", *(score.head for score in result.scores), *(f"{s.short} gained" for s in result.scores),
        title=f"{study.question} {count} images, {escape(classifier.name)}{protocol}",
        caption=f"mean ± standard error; gained: paired, against {study.variants[0].label}",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for k, outcome in enumerate(result.outcomes):
        gains = [estimate_text(gain, signed=True) if k else "" for gain in outcome.gains.values()]
        means = [estimate_text(mean) for mean in outcome.means.values()]
        table.add_row(escape(outcome.variant.label), str(outcome.passes), *means, *gains)
    screen.print(table)
    for path in report_files(result, out):
        screen.print(f"wrote {escape(str(path))}", soft_wrap=True)
    return closing(errors, count, len(paths))
