"""``study``: sweep one parameter of FAMPE on a folder of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...catalog import STUDIES, method_options
from ..arguments import add_batches, add_folder, add_model, add_other_model
from ..flags import add_flags, add_metric_flags, given

if TYPE_CHECKING:
    from ...runs.batches import Failure


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("study", help="sweep one parameter of FAMPE: scores, table, plot")
    parser.add_argument(
        "study",
        choices=tuple(STUDIES),
        metavar="STUDY",
        help=f"what is varied: {'; '.join(f'{name}: {varied}' for name, varied in STUDIES.items())}",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="output folder; an existing study is resumed (default: fampe_study_STUDY)",
    )
    add_folder(parser)
    add_model(parser)
    group = parser.add_argument_group("explorer", "another model of the same classes, for the study of that name")
    add_other_model(group, "explorer")
    add_batches(parser)
    add_metric_flags(parser)
    group = parser.add_argument_group(
        "options of every variant",
        "each is held by the variants that do not vary it; AttEXplore's have the first three",
    )
    shared = ("steps", "samples", "seed")
    options = method_options("fampe")
    add_flags(group, "method", sorted(options, key=lambda option: option.name not in shared))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run a study, or what is left of it, and print its table."""
    from rich.markup import escape
    from rich.table import Table

    from ...methods.registry import check_options
    from ...runs.study import run_study, study_outputs
    from ...runs.study_definitions import Budget, define_study
    from ...runs.study_report import write_report
    from ..model_and_methods import (
        check_all_outputs,
        chosen_images,
        classifier_of,
        metric_options_of,
        other_classifier_of,
    )
    from ..output import Bar, closing, console, error_console, estimate_text, print_failure, print_left_out

    out = arguments.out or Path(f"fampe_study_{arguments.study}")
    options = given(arguments, "method")
    check_options("fampe", **options)  # before the model is loaded
    shared = {name: options.pop(name) for name in ("steps", "samples", "seed") if name in options}
    study = define_study(arguments.study, Budget(**shared, options=options))
    arguments.metric = ["insertion_deletion"]
    metrics = metric_options_of(arguments)
    metrics.pop("metric_seed")
    images = chosen_images(arguments)
    paths = images.paths
    check_all_outputs(arguments, study_outputs(out), paths)
    classifier = classifier_of(arguments)
    explorer = other_classifier_of(arguments, "explorer")
    targets = images.targets(classifier)
    screen, errors = console(), error_console()
    print_left_out(errors, images.found)
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
            **metrics,
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
