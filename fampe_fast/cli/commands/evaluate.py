"""``evaluate``: score methods on a folder of images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import METHOD_NAMES, PROTOCOL_NAMES, add_method_options, add_model, method_names, positive

if TYPE_CHECKING:
    from ...methods.base import AttributionMethod
    from ...pipelines.batches import Failure


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Its arguments."""
    parser = commands.add_parser("evaluate", help="score methods on a folder of images: insertion and deletion")
    parser.add_argument("images", type=Path, metavar="DIR", help="a folder of images")
    parser.add_argument(
        "--labels", type=Path, help="JSON or CSV from file name to class index (default: the model's first choice)"
    )
    parser.add_argument(
        "--methods",
        type=method_names,
        default=["fampe", "attexplore"],
        help=f"comma-separated, the first is the one others are compared with, of: {', '.join(METHOD_NAMES)} "
        "(default: fampe,attexplore)",
    )
    parser.add_argument("--protocol", choices=PROTOCOL_NAMES, default="rise", help="(default: %(default)s)")
    parser.add_argument("--metric-steps", type=positive, help="at most so many steps of insertion and deletion")
    parser.add_argument("--limit", type=positive, help="only the first so many images")
    parser.add_argument("--out", type=Path, default=Path("fampe_evaluate"), help="folder (default: %(default)s)")
    add_model(parser)
    add_method_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Score methods on a folder of images."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ...images import find_images
    from ...methods.registry import create_method
    from ...pipelines.evaluate import evaluate_files
    from ...pipelines.labels import labels_of, read_labels
    from ..chosen import classifier_of, options_by_method
    from ..output import Bar, closing, console, estimate_text

    if not arguments.images.is_dir():
        raise ValueError(f"{arguments.images} is not a folder; evaluate takes a folder of images")
    paths = find_images(arguments.images)[: arguments.limit]
    labels = None if arguments.labels is None else read_labels(arguments.labels)
    options = options_by_method(arguments, arguments.methods)
    classifier = classifier_of(arguments)
    targets = None if labels is None else labels_of(paths, labels, classifier.num_classes)
    methods: dict[str, AttributionMethod] = {
        name: create_method(name, classifier, **options[name]) for name in arguments.methods
    }
    screen, errors = console(), Console(stderr=True)
    with Bar(errors, "evaluate", len(paths)) as advance:

        def failed(failure: Failure) -> None:
            errors.print(f"[red]failed[/] {escape(str(failure.path))}: {escape(failure.reason)}", soft_wrap=True)
            advance()

        result = evaluate_files(
            classifier,
            methods,
            paths,
            arguments.out,
            targets=targets,
            protocol=arguments.protocol,
            metric_steps=arguments.metric_steps,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_images=advance,
            on_failure=failed,
        )
    count, first = len(result.paths), arguments.methods[0]
    table = Table(
        "method", "insertion", "deletion", "ins. - del.", f"ins. vs {first}", "s / image",
        title=f"{count} images, {escape(classifier.name)}, protocol {result.protocol}, mean ± standard error",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in result.summary().items():
        table.add_row(
            name,
            estimate_text(row["insertion"]),
            estimate_text(row["deletion"]),
            estimate_text(row["faithfulness"]),
            "" if name == first else estimate_text(row["insertion_minus_first"], signed=True),
            f"{result.scores[name].seconds / count:.2f}",
        )
    screen.print(table)
    if count:
        for name in ("scores.json", "contact_sheet.png"):
            screen.print(f"wrote {escape(str(arguments.out / name))}", soft_wrap=True)
    return closing(errors, count, len(paths))
