"""``evaluate``: score methods on a folder of images."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...catalog import METRICS
from ..arguments import add_batches, add_folder, add_method, add_metric, add_model, add_out
from ..flags import add_method_flags, add_metric_flags

if TYPE_CHECKING:
    from rich.table import Table

    from ...methods.base import AttributionMethod
    from ...runs.batches import Failure
    from ...runs.comparison import Comparison


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("evaluate", help="compare methods by metrics on a folder of images")
    add_method(parser, "fampe,attexplore", note=", the others compared with the first")
    add_metric(parser)
    add_out(parser, "fampe_evaluate")
    add_folder(parser)
    add_model(parser)
    add_batches(parser)
    add_metric_flags(parser)
    add_method_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Score methods on a folder of images."""
    from rich.markup import escape

    from ...methods.registry import create_method
    from ...runs.evaluate import evaluate_files, evaluation_outputs
    from ..model_and_methods import (
        check_all_outputs,
        chosen_images,
        classifier_of,
        measurement_of,
        options_by_method,
    )
    from ..output import Bar, closing, console, error_console, print_earlier, print_failure, print_left_out

    measurement = measurement_of(arguments)
    options = options_by_method(arguments, arguments.method, measurement)
    images = chosen_images(arguments)
    paths = images.paths
    check_all_outputs(arguments, evaluation_outputs(arguments.out), paths)
    classifier = classifier_of(arguments)
    targets = images.targets(classifier)
    methods: dict[str, AttributionMethod] = {
        name: create_method(name, classifier, **options[name]) for name in arguments.method
    }
    screen, errors = console(), error_console()
    print_left_out(errors, images.found)
    with Bar(errors, "evaluate", len(paths) * len(methods)) as advance:

        def failed(failure: Failure) -> None:
            print_failure(errors, failure)

        result = evaluate_files(
            classifier,
            methods,
            paths,
            arguments.out,
            measurement=measurement,
            targets=targets,
            image_ids=images.image_ids,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_scores=advance,
            on_failure=failed,
        )
    count = len(result.paths)
    print_earlier(errors, result.earlier, len(paths), arguments.out)
    screen.print(_table(result, escape(classifier.name)))
    for name in measurement.metrics:
        if METRICS[name].reading and count:
            screen.print(f"[dim]{METRICS[name].reading}[/]")
    signed = [name for name, method in methods.items() if getattr(method, "absolute", None) is False]
    if signed and count:
        screen.print(
            f"[dim]{', '.join(signed)}: pixels are ranked by their signed values; --absolute ranks magnitudes[/]"
        )
    if count:
        for name in ("scores.json", "contact_sheet.png"):
            screen.print(f"wrote {escape(str(arguments.out / name))}", soft_wrap=True)
    return closing(errors, count, len(paths))


def _table(result: Comparison, model: str) -> Table:
    from rich.table import Table

    from ..output import estimate_text

    summary, count = result.summary(), len(result.paths)
    scores = result.measurement.scores
    compared = [score for score in scores if score.short]
    first = next(iter(result.scores), "")
    protocol = f", protocol {result.measurement.protocol}" if result.measurement.protocol else ""
    table = Table("method", title=f"{count} images, {model}{protocol}, mean ± standard error")
    heads = [*(score.head for score in scores), *(f"{score.short} vs {first}" for score in compared)]
    for head in (*heads, "passes", "s / image"):
        table.add_column(head, justify="right")
    for name, row in summary.items():
        gains = ["" if name == first else estimate_text(row[f"{s.name}_minus_first"], signed=True) for s in compared]
        table.add_row(
            name,
            *(estimate_text(row[score.name]) for score in scores),
            *gains,
            str(result.methods[name]["passes"]),
            f"{result.scores[name].seconds / count:.2f}",
        )
    return table
