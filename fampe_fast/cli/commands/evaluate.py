"""``evaluate``: score methods on a folder of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...catalog import METRICS
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
    from ...runs.comparison import Comparison


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
        help=f"comma-separated, of: {', '.join(METRICS)} (default: insertion_deletion)",
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
    from ...runs.measurement import Measurement
    from ..model_and_methods import check_all_outputs, classifier_of, labelled_images, options_by_method, targets_of
    from ..output import Bar, closing, console, error_console, print_earlier, print_failure, print_left_out

    options = options_by_method(arguments, arguments.methods)
    of_metrics = {
        "insertion_deletion": {
            "protocol": arguments.protocol, "steps": arguments.metric_steps, "passes": arguments.metric_passes,
        },
        "mu_fidelity": {"samples": arguments.mu_fidelity_samples},
        "stability": {"samples": arguments.stability_samples},
    }  # fmt: skip
    chosen = {name: of_metrics.get(name, {}) for name in arguments.metrics}
    measurement = Measurement(tuple(arguments.metrics), chosen, arguments.seed or 0)
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
            f"[dim]{', '.join(signed)}: pixels are ranked by their signed values; --option absolute=True ranks "
            "magnitudes[/]"
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


def _metric_names(text: str) -> list[str]:
    return names_of(text, list(METRICS), "metric")
