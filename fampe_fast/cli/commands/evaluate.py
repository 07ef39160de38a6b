"""``evaluate``: score methods on a folder of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import (
    METHOD_NAMES,
    PROTOCOL_NAMES,
    add_labels,
    add_method_options,
    add_model,
    method_names,
    names_of,
    positive,
)

if TYPE_CHECKING:
    from rich.table import Table

    from ...methods.base import AttributionMethod
    from ...runs.batches import Failure
    from ...runs.evaluate import Evaluation

# Named here and not imported from the pipelines, which would load torch before a typing error is reported.
METRIC_NAMES = ("insertion_deletion", "mu_fidelity", "stability")

_READING = {
    "mu_fidelity": "mu-fidelity: rank correlation of relevance and probability lost by random parts; high is faithful",
    "stability": "stability: share of the map that changes when the image changes by up to 0.02; low is stable",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Its arguments."""
    parser = commands.add_parser("evaluate", help="score methods on a folder of images, side by side")
    add_labels(parser)
    parser.add_argument(
        "--methods",
        type=method_names,
        default=["fampe", "attexplore"],
        help=f"comma-separated, the first is the one others are compared with, of: {', '.join(METHOD_NAMES)} "
        "(default: fampe,attexplore)",
    )
    parser.add_argument(
        "--metrics",
        type=_metric_names,
        default=["insertion_deletion"],
        help=f"comma-separated, of: {', '.join(METRIC_NAMES)} (default: insertion_deletion)",
    )
    parser.add_argument("--protocol", choices=PROTOCOL_NAMES, default="rise", help="(default: %(default)s)")
    parser.add_argument("--metric-steps", type=positive, help="at most so many steps of insertion and deletion")
    parser.add_argument(
        "--metric-passes",
        type=positive,
        help="measure at most so many of each curve's steps, where it moves, and interpolate the others",
    )
    parser.add_argument(
        "--mu-fidelity-samples",
        type=positive,
        default=200,
        help="subsets per image and method, each a pass of the model (default: %(default)s)",
    )
    parser.add_argument(
        "--stability-samples",
        type=positive,
        default=10,
        help="perturbed copies per image and method, each explained anew (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("fampe_evaluate"), help="folder (default: %(default)s)")
    add_model(parser)
    add_method_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Score methods on a folder of images."""
    from rich.markup import escape

    from ...methods.registry import create_method
    from ...runs.evaluate import evaluate_files, evaluation_outputs
    from ..model_and_methods import check_all_outputs, classifier_of, labelled_images, options_by_method, targets_of
    from ..output import Bar, closing, console, error_console, print_earlier, print_failure, print_left_out

    options = options_by_method(arguments, arguments.methods)
    found, labels = labelled_images(arguments)
    paths = found.paths
    check_all_outputs(arguments, evaluation_outputs(arguments.out), paths)
    classifier = classifier_of(arguments)
    targets = targets_of(found, labels, classifier)
    methods: dict[str, AttributionMethod] = {
        name: create_method(name, classifier, **options[name]) for name in arguments.methods
    }
    screen, errors = console(), error_console()
    print_left_out(errors, found)
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
            metrics=arguments.metrics,
            protocol=arguments.protocol,
            metric_steps=arguments.metric_steps,
            metric_passes=arguments.metric_passes,
            mu_fidelity_samples=arguments.mu_fidelity_samples,
            stability_samples=arguments.stability_samples,
            metric_seed=arguments.seed or 0,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_images=advance,
            on_failure=failed,
        )
    count = len(result.paths)
    print_earlier(errors, result.earlier, len(paths), arguments.out)
    screen.print(_table(result, escape(classifier.name)))
    for name, line in _READING.items():
        if name in arguments.metrics and count:
            screen.print(f"[dim]{line}[/]")
    signed = [name for name, method in methods.items() if getattr(method, "absolute", None) is False]
    if signed and count:
        screen.print(
            f"[dim]{', '.join(signed)}: pixels are ranked by their signed values; --option absolute=True ranks "
            "magnitudes[/]"
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


def _metric_names(text: str) -> list[str]:
    return names_of(text, METRIC_NAMES, "metric")
