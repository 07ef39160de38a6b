"""``tune``: the cut-off with which FORGrad serves a model and a method best."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import (
    METHOD_OPTIONS,
    PLAIN_NAMES,
    PROTOCOL_NAMES,
    add_labels,
    add_method_options,
    add_model,
    option_words,
    plain_method_names,
    positive,
)

if TYPE_CHECKING:
    from rich.table import Table

    from ...runs.batches import Failure
    from ...runs.tune import TunedCutoff


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Its arguments."""
    parser = commands.add_parser(
        "tune",
        help="find the radius that FORGrad filters a method's maps with, by their faithfulness on a folder's images",
        description="Compute a method's maps of a folder's images once, filter them with one radius after the other, "
        "and find the one with the best insertion minus deletion. About 2 log2(side) radii are tried, each for "
        "2 (metric steps + 1) forward passes per image.",
    )
    add_labels(parser)
    parser.add_argument(
        "--method",
        type=plain_method_names,
        default=["fampe"],
        help=f"one or several, comma-separated, of: {', '.join(PLAIN_NAMES)} (default: fampe)",
    )
    parser.add_argument("--protocol", choices=PROTOCOL_NAMES, default="rise", help="(default: %(default)s)")
    parser.add_argument(
        "--metric-steps", type=positive, default=28, help="of insertion and deletion (default: %(default)s)"
    )
    parser.add_argument(
        "--signed", action="store_true", help="filter the maps with their signs, which FORGrad's authors do not"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fampe_cutoffs.json"),
        help="JSON file; outcomes of other models and methods in it stay, and the curves go beside it as PNG "
        "(default: %(default)s)",
    )
    add_model(parser)
    add_method_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Search the cut-offs and say how to use them."""
    from rich.markup import escape

    from ...methods.forgrad import FORGrad
    from ...methods.registry import create_method
    from ...runs.tune import tune_files, tuning_outputs
    from .. import SOME_FAILED, UNUSABLE
    from ..model_and_methods import check_all_outputs, classifier_of, labelled_images, options_by_method, targets_of
    from ..output import Bar, closing, console, error_console, print_failure, print_left_out

    filtered = {name: f"{_prefix(arguments)}{name}" for name in arguments.method}
    options = options_by_method(arguments, list(arguments.method))
    images, labels = labelled_images(arguments)
    paths = images.paths
    check_all_outputs(arguments, tuning_outputs(arguments.out), paths)
    classifier = classifier_of(arguments)
    targets = targets_of(images, labels, classifier)
    methods = {}
    for name, whole in filtered.items():
        # What will be filtered is what has to be tuned: saliency with its signs, for one.
        method = create_method(whole, classifier, **options[name])
        assert isinstance(method, FORGrad)
        methods[name] = method.method
    screen, errors = console(), error_console()
    print_left_out(errors, images)
    with Bar(errors, "images", len(paths)) as bar:

        def failed(failure: Failure) -> None:
            print_failure(errors, failure)
            bar()

        tuning = tune_files(
            classifier,
            methods,
            paths,
            arguments.out,
            targets=targets,
            protocol=arguments.protocol,
            metric_steps=arguments.metric_steps,
            signed=arguments.signed,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_stage=bar.begin,
            on_done=bar,
            on_failure=failed,
        )
    for name, found in tuning.results.items():
        screen.print(
            f"{escape(name)} on {escape(found.model)}, {'signed filter' if found.signed else 'FORGrad'}, "
            f"{found.unfiltered.n} images, protocol {found.protocol}; mean ± "
            f"standard error; at most {found.forward_passes} forward passes per image besides the maps' own:",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        screen.print(_table(found))
        screen.print("to explain with it:")
        screen.print(escape(usage(arguments, name, found.cutoff, options[name])), soft_wrap=True, highlight=False)
    if tuning.results:
        for path in (arguments.out, arguments.out.with_suffix(".png")):
            screen.print(f"wrote {escape(str(path))}", soft_wrap=True)
    lost = len({failure.path for failure in tuning.failures})
    code = closing(errors, len(paths) - lost if tuning.results else 0, len(paths))
    # Every image may have failed with one method or another, and yet there is an outcome.
    return SOME_FAILED if code == UNUSABLE and tuning.results else code


def _table(found: TunedCutoff) -> Table:
    from rich.table import Table

    from ..output import estimate_text

    table = Table("radius", "ins. - del.", "")
    table.columns[0].justify = table.columns[1].justify = "right"
    for radius, estimate in found.curve.items():
        best = radius == found.cutoff
        table.add_row(str(radius), estimate_text(estimate), "best" if best else "", style="bold" if best else None)
    table.add_section()
    table.add_row("unfiltered", estimate_text(found.unfiltered), "")
    return table


def _prefix(arguments: argparse.Namespace) -> str:
    return "forgrad_signed_" if arguments.signed else "forgrad_"


def usage(arguments: argparse.Namespace, method: str, cutoff: int, options: dict[str, Any]) -> str:
    """The line that explains the same images with the radius found.

    Args:
        arguments: of ``tune``.
        method: whose maps are filtered.
        cutoff: the radius.
        options: those of the arguments that the method has.
    """
    model, of_method = argparse.ArgumentParser(add_help=False), argparse.ArgumentParser(add_help=False)
    add_model(model)
    add_method_options(of_method)
    # Options of other methods, which were tuned beside this one, are none of this one's.
    known = {
        name: None if name in METHOD_OPTIONS and name not in options else value
        for name, value in vars(arguments).items()
    }
    known["option"] = [("map_cutoff", cutoff), *(pair for pair in arguments.option if pair[0] in options)]
    words = ["fampe-fast", "explain", str(arguments.images), "--method", f"{_prefix(arguments)}{method}"]
    return shlex.join(words + option_words(of_method, known) + option_words(model, known))
