"""``study``: sweep one parameter of FAMPE on a folder of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...catalog import STUDIES, method_options
from ..arguments import add_batches, add_folder, add_metric, add_model, add_other_model
from ..flags import add_flags, add_metric_flags, given

if TYPE_CHECKING:
    from ...runs.batches import Failure
    from ...runs.study_design import Study


SHARED = ("steps", "samples", "seed")
"""The options of every variant, AttEXplore's among them: the fields of ``Budget``."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("study", help="sweep one parameter of FAMPE, and write scores, a table and a plot")
    parser.add_argument(
        "study",
        choices=tuple(STUDIES),
        metavar="STUDY",
        help=f"study, which varies: {'; '.join(f'{name}: {row.varies}' for name, row in STUDIES.items())}",
    )
    add_metric(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="output folder; an existing study is resumed (default: fampe_study_STUDY)",
    )
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="LABEL",
        help="run only this variant, by its label in the tables, beside the first; repeatable (default: all)",
    )
    add_folder(parser)
    add_model(parser)
    group = parser.add_argument_group("explorer", "another model of the same classes, for the study explorer")
    add_other_model(group, "explorer")
    add_batches(parser)
    add_metric_flags(parser)
    group = parser.add_argument_group(
        "options of every variant",
        "values for the variants that do not vary the option; AttEXplore's variants have only the first three",
    )
    # Some variants vary the passes; the others set them by the first two options.
    options = [option for option in method_options("fampe") if option.name != "passes"]
    add_flags(group, "method", sorted(options, key=lambda option: option.name not in SHARED))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run a study, or the rest of an interrupted one, and print its table."""
    from rich.markup import escape
    from rich.table import Table

    from ...engine.config import FAMPEConfig
    from ...methods.calibration import fitting_calibration
    from ...methods.registry import check_options
    from ...runs.study import report_files, run_study, study_outputs
    from ...runs.study_choices import choices_rows, tau_of
    from ...runs.study_definitions import Budget, define_study
    from ..model_and_methods import (
        check_all_outputs,
        chosen_images,
        classifier_of,
        measurement_of,
        other_classifier_of,
    )
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
    options = given(arguments, "method")
    check_options("fampe", **options)  # before the model is loaded
    shared = {name: options.pop(name) for name in SHARED if name in options}
    calibration = options.pop("calibration", None)

    def defined() -> Study:
        study = define_study(arguments.study, Budget(**shared, options=options))
        return study.only(arguments.variant) if arguments.variant else study

    study = defined()
    measurement = measurement_of(arguments)
    images = chosen_images(arguments)
    paths = images.paths
    check_all_outputs(arguments, study_outputs(out), paths)
    classifier = classifier_of(arguments)
    if calibration is not None:
        # All variants with views get them; FAMPE's published variants read no file.
        layers = FAMPEConfig(layers=options.get("layers")).layer_names
        options = {**fitting_calibration(calibration, classifier, layers).options, **options}
        study = defined()
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
            measurement=measurement,
            targets=targets,
            image_ids=images.image_ids,
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
        caption=f"mean ± standard error; gained: paired difference to {study.variants[0].label}",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for k, outcome in enumerate(result.outcomes):
        gains = [estimate_text(gain, signed=True) if k else "" for gain in outcome.gains.values()]
        means = [estimate_text(mean) for mean in outcome.means.values()]
        table.add_row(escape(outcome.variant.label), str(outcome.passes), *means, *gains)
    screen.print(table)
    if result.choices:
        head, *rows = choices_rows(result.choices, tau_of(study))
        table = Table(*map(escape, head))
        for row in rows:
            table.add_row(*map(escape, row))
        screen.print(table)
    for path in report_files(result, out):
        screen.print(f"wrote {escape(str(path))}", soft_wrap=True)
    return closing(errors, count, len(paths))
