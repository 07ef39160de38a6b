"""``calibrate``: find the best weights of a model's layers in FAMPE's maps."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ...catalog import DEPTH_OPTIONS, method_options, metric_options
from ...options import read_options
from ..arguments import add_batches, add_folder, add_images, add_model, add_out, option_words
from ..flags import add_flags, given

if TYPE_CHECKING:
    from rich.table import Table

    from ...engine.config import PathConfig
    from ...methods.calibration import DepthCalibration
    from ...runs.batches import Failure


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "calibrate",
        help="find the weights of a model's layers that make FAMPE's maps of a folder's images most faithful",
        description="Collect the evidence of a folder's images once, then change one weight at a time and keep each "
        "change that raises insertion minus deletion by more than its paired standard error. About 30 combinations are "
        "tried, each with 2 (metric steps + 1) forward passes per image. The result is stored in OUT/calibrations.json "
        "under the model's fingerprint; other commands read that file with --calibration.",
    )
    add_out(parser, "fampe_calibrate")
    search = read_options("fampe_fast.runs.calibrate:calibrate_files", ["metric_steps", "held_out"])
    (protocol,) = (option for option in metric_options("insertion_deletion") if option.name == "protocol")
    add_flags(parser.add_argument_group("search"), "search", [protocol, *search])
    add_folder(parser)
    add_model(parser)
    add_batches(parser)
    options = [option for option in method_options("fampe") if option.name != "calibration"]
    add_flags(parser.add_argument_group("options of FAMPE, whose weights the search starts from"), "method", options)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Find the weights, and print how to use them."""
    from rich.markup import escape

    from ...methods.fampe import FAMPE
    from ...methods.registry import check_options
    from ...runs.calibrate import CALIBRATIONS_FILE, calibrate_files, calibration_outputs
    from ..model_and_methods import check_all_outputs, chosen_images, classifier_of
    from ..output import Bar, closing, console, error_console, print_failure, print_left_out

    options = given(arguments, "method")
    check_options("fampe", **options)
    images = chosen_images(arguments)
    paths = images.paths
    check_all_outputs(arguments, calibration_outputs(arguments.out), paths)
    classifier = classifier_of(arguments)
    targets = images.targets(classifier)
    method = FAMPE(classifier, **options)
    screen, errors = console(), error_console()
    print_left_out(errors, images.found)
    with Bar(errors, "evidence", len(paths)) as bar:

        def failed(failure: Failure) -> None:
            print_failure(errors, failure)

        outcome = calibrate_files(
            classifier,
            method,
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
    found = outcome.found
    if found is not None:
        file = arguments.out / CALIBRATIONS_FILE
        screen.print(
            f"{escape(found.model)}, {found.images} images, protocol {found.protocol}, FAMPE's maps of {found.passes} "
            f"pass(es); mean ± standard error; {found.evaluations} combinations:",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        screen.print(_table(found, method.config))
        for line in _reading(found):
            screen.print(f"[dim]{line}[/]", highlight=False, soft_wrap=True)
        screen.print("to explain with it:")
        screen.print(escape(usage(arguments, file)), soft_wrap=True, highlight=False)
        screen.print(f"wrote {escape(str(file))}", soft_wrap=True)
    lost = len({failure.path for failure in outcome.failures})
    return closing(errors, len(paths) - lost if found is not None else 0, len(paths))


def _table(found: DepthCalibration, config: PathConfig) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from ...methods.depth_search import DepthWeights
    from ..output import estimate_text

    start = DepthWeights.of(config, found.layers)
    before = start.pixels, *start.layers, start.floor
    after = found.pixel_weight, *found.layer_weights, found.gate_floor
    table = Table("weight of", "before", "found")
    table.columns[1].justify = table.columns[2].justify = "right"
    for name, old, new in zip(("pixels", *found.layers, "gate's floor"), before, after, strict=True):
        table.add_row(escape(name), f"{old:g}", f"{new:g}", style=None if old == new else "bold")
    table.add_section()
    table.add_row("ins. - del.", estimate_text(found.default_score), estimate_text(found.score))
    if found.held_out is not None:
        table.add_row("gain on held-out images", "", estimate_text(found.held_out, signed=True))
    return table


def _reading(found: DepthCalibration) -> list[str]:
    """Explain how far the gain can be trusted."""
    if found.held_out is None:
        return ["the weights were chosen on these images, so this gain is too high: measure it on others"]
    lines = ["held out: each half of the images with weights fitted on the other half, paired with the weights before"]
    if found.held_out.mean <= (found.held_out.standard_error or 0.0):
        lines.append("no gain beyond its error there: the weights before are as good for this model")
    return lines


def usage(arguments: argparse.Namespace, file: Path) -> str:
    """Write the command line that explains the same images with the new weights.

    Args:
        arguments: the arguments of ``calibrate``.
        file: file of the calibration.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_images(parser)
    add_model(parser)
    add_batches(parser)
    add_flags(parser, "method", method_options("fampe"))
    known = {
        name: value for name, value in vars(arguments).items() if name.removeprefix("method:") not in DEPTH_OPTIONS
    }
    words = ["fampe-fast", "explain", str(arguments.images), "--method", "fampe"]
    return shlex.join(words + option_words(parser, {**known, "method:calibration": file}))
