"""``evaluate``: score methods on a folder of images."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..arguments import add_batches, add_folder, add_method, add_metric, add_model, add_out
from ..flags import add_method_flags, add_metric_flags

if TYPE_CHECKING:
    from rich.table import Table

    from ...methods.base import AttributionMethod
    from ...runs.batches import Failure
    from ...runs.evaluate import Evaluation

_READING = {
    "mu_fidelity": "mu-fidelity: rank correlation of relevance and probability lost by random parts; high is faithful",
    "stability": "stability: share of the map that changes when the image changes by up to 0.02; low is stable",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("evaluate", help="score methods on a folder of images, side by side")
    add_method(parser, "fampe,attexplore", note=", the first is the one others are compared with")
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
        metric_options_of,
        options_by_method,
    )
    from ..output import Bar, closing, console, error_console, print_earlier, print_failure, print_left_out

    options = options_by_method(arguments, arguments.method)
    metrics = metric_options_of(arguments)
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
    with Bar(errors, "evaluate", len(paths)) as advance:

        def failed(failure: Failure) -> None:
            print_failure(errors, failure)
            advance()

        result = evaluate_files(
            classifier,
            methods,
            paths,
            arguments.out,
            targets=targets,
            metrics=arguments.metric,
            **metrics,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_images=advance,
            on_failure=failed,
        )
    count = len(result.paths)
    print_earlier(errors, result.earlier, len(paths), arguments.out)
    screen.print(_table(result, escape(classifier.name)))
    for name, line in _READING.items():
        if name in arguments.metric and count:
            screen.print(f"[dim]{line}[/]")
    signed = [name for name, method in methods.items() if getattr(method, "absolute", None) is False]
    if signed and count:
        screen.print(
            f"[dim]{', '.join(signed)}: pixels are ranked by their signed values; --absolute ranks magnitudes[/]"
        )
    if count:
        for name in ("scores.json", "contact_sheet.png"):
            screen.print(f"wrote {escape(str(arguments.out / name))}", soft_wrap=True)
    return closing(errors, count, len(paths))


def _table(result: Evaluation, model: str) -> Table:
    from rich.table import Table

    from ..output import estimate_text

    summary, count = result.summary(), len(result.paths)
    areas = "insertion_deletion" in result.measurement.metrics
    columns = {"insertion": "insertion", "deletion": "deletion", "faithfulness": "ins. - del."} if areas else {}
    compared = {"insertion": "ins."} if areas else {}
    for name, head, short in (("mu_fidelity", "mu-fidelity", "mu-f."), ("stability", "stability", "stab.")):
        if name in result.measurement.metrics:
            columns[name], compared[name] = head, short
    first = next(iter(result.scores), "")
    protocol = f", protocol {result.protocol}" if areas else ""
    table = Table("method", title=f"{count} images, {model}{protocol}, mean ± standard error")
    for head in (*columns.values(), *(f"{short} vs {first}" for short in compared.values()), "passes", "s / image"):
        table.add_column(head, justify="right")
    for name, row in summary.items():
        table.add_row(
            name,
            *(estimate_text(row[key]) for key in columns),
            *("" if name == first else estimate_text(row[f"{key}_minus_first"], signed=True) for key in compared),
            str(result.settings[name]["passes"]),
            f"{result.scores[name].seconds / count:.2f}",
        )
    return table
