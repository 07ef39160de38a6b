"""``occlude``: which frequency bands a model's predictions stand on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import add_batches, add_labels, add_model, positive

if TYPE_CHECKING:
    from ...runs.batches import Failure


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Its arguments."""
    parser = commands.add_parser("occlude", help="which frequency bands the predictions for a folder's images stand on")
    add_labels(parser)
    parser.add_argument("--bands", type=positive, default=16, help="how many (default: %(default)s)")
    parser.add_argument(
        "--spacing",
        choices=("width", "energy"),
        default="width",
        help="bands of equal width, or of equal energy in each image (default: %(default)s)",
    )
    parser.add_argument(
        "--score", choices=("probability", "logit"), default="probability", help="what drops (default: %(default)s)"
    )
    parser.add_argument("--include-dc", action="store_true", help="let the first band hold the mean brightness")
    parser.add_argument("--clamp", action="store_true", help="clip what remains into [0, 1]")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("fampe_occlude"), help="folder (default: %(default)s)")
    add_batches(parser)
    add_model(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Remove the bands of a folder's images."""
    from rich.markup import escape
    from rich.table import Table

    from ...robustness.occluded_frequency import OccludedFrequency
    from ...runs.occlude import occlude_files, occlusion_outputs
    from ..model_and_methods import check_all_outputs, classifier_of, labelled_images, targets_of
    from ..output import Bar, closing, console, error_console, print_earlier, print_failure, print_left_out

    found, labels = labelled_images(arguments)
    paths = found.paths
    check_all_outputs(arguments, occlusion_outputs(arguments.out), paths)
    classifier = classifier_of(arguments)
    targets = targets_of(found, labels, classifier)
    method = OccludedFrequency(
        classifier,
        arguments.bands,
        arguments.spacing,
        arguments.score,
        include_dc=arguments.include_dc,
        clamp=arguments.clamp,
    )
    screen, errors = console(), error_console()
    print_left_out(errors, found)
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
            confidence=arguments.confidence,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
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
