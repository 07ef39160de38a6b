"""``tune``: find the best cut-off of FORGrad for a model and a method."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...catalog import FILTERS, metric_options
from ...options import read_options
from ..arguments import add_batches, add_images, add_method, add_model, add_out, option_words
from ..flags import add_flags, add_method_flags, given

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from ...methods.tuning import TunedCutoff
    from ...runs.batches import Failure


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "tune",
        help="find the radius of FORGrad's filter that makes a method's maps of a folder's images most faithful",
        description="Compute a method's maps of a folder's images once, filter them with one radius after the other, "
        "and find the radius with the best insertion minus deletion. About 2 log2(side) radii are tried, each with "
        "2 (metric steps + 1) forward passes per image. To find the weights of FAMPE's layers, use calibrate.",
    )
    add_method(parser, "fampe", filters=False)
    add_out(parser, "fampe_tune")
    search = read_options("fampe_fast.runs.tune:tune_files", ["protocol", "metric_steps", "signed"])
    (protocol,) = (option for option in metric_options("insertion_deletion") if option.name == "protocol")
    add_flags(parser.add_argument_group("search"), "search", [protocol, *search[1:]])
    _add_what_explains(parser, filters=False)
    parser.add_argument("images", type=Path, metavar="DIR", help="a folder of images")
    parser.set_defaults(run=run)


def _add_what_explains(parser: argparse.ArgumentParser, *, filters: bool) -> None:
    """Add the arguments that ``tune`` shares with the ``explain`` line that it prints."""
    add_images(parser)
    add_model(parser)
    add_batches(parser)
    add_method_flags(parser, filters=filters)


def run(arguments: argparse.Namespace) -> int:
    """Find the cut-offs, and print how to use them."""
    from rich.markup import escape

    from ...methods.forgrad import FORGrad
    from ...methods.registry import create_method
    from ...runs.tune import tune_files, tuning_outputs
    from .. import SOME_FAILED, UNUSABLE
    from ..model_and_methods import check_all_outputs, chosen_images, classifier_of, options_by_method
    from ..output import Bar, closing, console, error_console, print_failure, print_left_out

    filtered = {name: f"{_prefix(arguments)}{name}" for name in arguments.method}
    options = options_by_method(arguments, list(arguments.method))
    images = chosen_images(arguments)
    paths = images.paths
    check_all_outputs(arguments, tuning_outputs(arguments.out), paths)
    classifier = classifier_of(arguments)
    targets = images.targets(classifier)
    methods = {}
    for name, whole in filtered.items():
        # Tune on the maps that will be filtered, for example saliency with its signs.
        method = create_method(whole, classifier, **options[name])
        assert isinstance(method, FORGrad)
        methods[name] = method.method
    screen, errors = console(), error_console()
    print_left_out(errors, images.found)
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
            image_ids=images.image_ids,
            **given(arguments, "search"),
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
    for file in tuning.files:
        screen.print(f"wrote {escape(str(arguments.out / file))}", soft_wrap=True)
    lost = len({failure.path for failure in tuning.failures})
    code = closing(errors, len(paths) - lost if tuning.results else 0, len(paths))
    # Every image may have failed with some method, and there is a result all the same.
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


def usage(arguments: argparse.Namespace, method: str, cutoff: int, options: Mapping[str, Any]) -> str:
    """Write the command line that explains the same images with the radius found.

    Args:
        arguments: the arguments of ``tune``.
        method: the method whose maps are filtered.
        cutoff: the radius.
        options: the arguments that are options of the method.
    """
    parser = argparse.ArgumentParser(add_help=False)
    _add_what_explains(parser, filters=True)
    # Leaves out the options of other methods that were tuned in the same run.
    known = {name: value for name, value in vars(arguments).items() if not name.startswith("method:")}
    known |= {f"method:{name}": value for name, value in {**options, "map_cutoff": cutoff}.items()}
    words = ["fampe-fast", "explain", str(arguments.images), "--method", f"{_prefix(arguments)}{method}"]
    return shlex.join(words + option_words(parser, known))


def _prefix(arguments: argparse.Namespace) -> str:
    signed = given(arguments, "search").get("signed", False)
    return next(prefix for prefix, options in FILTERS.items() if options["signed"] is signed)
