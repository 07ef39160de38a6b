"""``occlude``: measure which frequency bands a model's predictions depend on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...options import read_options
from ..arguments import add_batches, add_folder, add_model, add_out
from ..flags import add_flags, given

if TYPE_CHECKING:
    from ...runs.batches import Failure


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "occlude", help="measure which frequency bands the predictions for a folder's images depend on"
    )
    add_out(parser, "fampe_occlude")
    add_folder(parser)
    add_model(parser)
    add_batches(parser)
    group = parser.add_argument_group("bands")
    add_flags(group, "method", read_options("fampe_fast.robustness.occluded_frequency:OccludedFrequency"))
    group = parser.add_argument_group("intervals of the mean")
    add_flags(group, "run", read_options("fampe_fast.runs.occlude:occlude_files", ["confidence", "seed"]))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Remove the bands of a folder's images, and print the mean drops."""
    from rich.markup import escape
    from rich.table import Table

    from ...robustness.occluded_frequency import OccludedFrequency
    from ...runs.occlude import occlude_files, occlusion_outputs
    from ..model_and_methods import check_all_outputs, chosen_images, classifier_of
    from ..output import Bar, closing, console, error_console, print_earlier, print_failure, print_left_out

    OccludedFrequency(lambda pixels: pixels, **given(arguments, "method"))  # refused before the model is loaded
    images = chosen_images(arguments)
    paths = images.paths
    check_all_outputs(arguments, occlusion_outputs(arguments.out), paths)
    classifier = classifier_of(arguments)
    targets = images.targets(classifier)
    method = OccludedFrequency(classifier, **given(arguments, "method"))
    screen, errors = console(), error_console()
    print_left_out(errors, images.found)
    with Bar(errors, "occlude", len(paths)) as advance:

        def failed(failure: Failure) -> None:
            print_failure(errors, failure)
            advance()

        study = occlude_files(
            classifier,
            method,
            paths,
            arguments.out,
            targets=targets,
            image_ids=images.image_ids,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            **given(arguments, "run"),
            on_images=advance,
            on_failure=failed,
        )
    count = len(study.paths)
    print_earlier(errors, study.earlier, len(paths), arguments.out)
    if count:
        table = Table(
            "band", "radius", "mean drop", f"{study.confidence:.0%} interval",
            title=f"{count} images, {escape(classifier.name)}: drop in {method.score} without one band"
            + (" (median radii)" if method.spacing == "energy" else ""),
        )  # fmt: skip
        for column in table.columns:
            column.justify = "right"
        edges, drops, interval = study.median_edges().tolist(), study.mean_drops().tolist(), study.interval()
        for k, drop in enumerate(drops):
            span = "" if interval is None else f"{interval[0, k]:+.4f} to {interval[1, k]:+.4f}"
            table.add_row(str(k + 1), f"{edges[k]:.1f} to {edges[k + 1]:.1f}", f"{drop:+.4f}", span)
        screen.print(table)
        for name in ("occluded_frequency.json", "occluded_frequency.png"):
            screen.print(f"wrote {escape(str(arguments.out / name))}", soft_wrap=True)
    return closing(errors, count, len(paths))
