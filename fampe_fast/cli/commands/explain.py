"""``explain``: a picture and an archive for each image file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import METHOD_NAMES, add_method_options, add_model

if TYPE_CHECKING:
    from ...runs.batches import Failure
    from ...runs.explain import Explanation


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Its arguments."""
    parser = commands.add_parser("explain", help="explain image files: a picture and an .npz archive for each")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument(
        "--target", type=int, help="class to explain in every image (default: the model's first choice)"
    )
    parser.add_argument("--method", choices=METHOD_NAMES, default="fampe", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("fampe_explain"), help="folder (default: %(default)s)")
    add_model(parser)
    add_method_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain image files."""
    from rich.markup import escape
    from rich.table import Table

    from ...methods.registry import create_method
    from ...runs.explain import explain_files, explanation_outputs
    from ..model_and_methods import check_all_outputs, check_target, classifier_of, found_images, options_by_method
    from ..output import Bar, closing, console, error_console, print_earlier, print_failure, print_left_out

    found = found_images(arguments, arguments.images)
    paths = found.paths
    options = options_by_method(arguments, [arguments.method])[arguments.method]
    check_all_outputs(arguments, explanation_outputs(paths, arguments.out), paths)
    classifier = classifier_of(arguments)
    if arguments.target is not None:
        check_target(arguments.target, classifier)
    method = create_method(arguments.method, classifier, **options)
    screen, errors = console(), error_console()
    print_left_out(errors, found)
    replaced: list[Path] = []
    with Bar(errors, arguments.method, len(paths)) as advance:

        def failed(failure: Failure) -> None:
            print_failure(errors, failure)
            advance()

        def finished(result: Explanation) -> None:
            advance()

        done = explain_files(
            classifier,
            method,
            paths,
            arguments.out,
            target=arguments.target,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_result=finished,
            on_failure=failed,
            on_replaced=replaced.append,
        )
    print_earlier(errors, sum(result.earlier for result in done), len(paths), arguments.out)
    if replaced:
        errors.print(
            f"{len(replaced)} earlier results in {escape(str(arguments.out))}, of other images or settings, were "
            f"replaced, {escape(replaced[0].name)} first",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    table = Table("image", "class", "probability", "cut-off", "seconds", "picture")
    for column in table.columns[2:5]:
        column.justify = "right"
    for result in done:
        table.add_row(
            escape(result.path.name),
            escape(f"{result.target} {result.class_name}"),
            f"{result.probability:.3f}",
            "" if result.cutoff is None else f"{result.cutoff:.0f}",
            f"{result.seconds:.1f}",
            escape(str(result.picture)),
        )
    screen.print(table)
    return closing(errors, len(done), len(paths))
