"""``explain``: write a picture and an archive for each image file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import add_batches, add_images, add_method, add_model, add_out
from ..flags import add_method_flags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from ...runs.batches import Failure
    from ...runs.explain import Explanation


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "explain", help="explain image files, and write a picture and an .npz archive for each"
    )
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    add_method(parser, "fampe", note=" (the results of several go into OUT/METHOD)")
    add_out(parser, "fampe_explain")
    add_images(parser)
    add_model(parser)
    add_batches(parser)
    add_method_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain image files with one method or several, and print a table for each."""
    from rich.markup import escape

    from ...methods.registry import create_method
    from ...runs.explain import explain_files, explanation_outputs
    from .. import SOME_FAILED, UNUSABLE
    from ..model_and_methods import check_all_outputs, chosen_images, classifier_of, options_by_method
    from ..output import Bar, closing, console, error_console, print_earlier, print_failure, print_left_out

    options = options_by_method(arguments, arguments.method)
    images = chosen_images(arguments)
    paths = images.paths
    outs = {name: arguments.out / name if len(options) > 1 else arguments.out for name in options}
    for out in outs.values():
        check_all_outputs(arguments, explanation_outputs(paths, out), paths)
    classifier = classifier_of(arguments)
    targets = images.targets(classifier)
    methods = {name: create_method(name, classifier, **given) for name, given in options.items()}
    screen, errors = console(), error_console()
    print_left_out(errors, images.found)
    whole, some = set(paths), False
    for name, method in methods.items():
        replaced: list[Path] = []
        with Bar(errors, name, len(paths)) as advance:

            def failed(failure: Failure, advance: Bar = advance) -> None:
                print_failure(errors, failure)
                advance()

            def finished(result: Explanation, advance: Bar = advance) -> None:
                advance()

            done = explain_files(
                classifier,
                method,
                paths,
                outs[name],
                targets=targets,
                image_ids=images.image_ids,
                batch_size=arguments.batch_size,
                internal_batch_size=arguments.internal_batch_size,
                on_result=finished,
                on_failure=failed,
                on_replaced=replaced.append,
            )
        print_earlier(errors, sum(result.earlier for result in done), len(paths), outs[name])
        if replaced:
            errors.print(
                f"{len(replaced)} earlier results in {escape(str(outs[name]))}, of other images or settings, were "
                f"replaced, {escape(replaced[0].name)} first",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
        screen.print(_table(done, name if len(methods) > 1 else ""))
        whole &= {result.path for result in done}
        some = some or bool(done)
    code = closing(errors, sum(path in whole for path in paths), len(paths))
    # Every image may have failed with some method, and there are results all the same.
    return SOME_FAILED if code == UNUSABLE and some else code


def _table(done: Sequence[Explanation], title: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("image", "class", "probability", "cut-off", "seconds", "picture", title=title or None)
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
    return table
