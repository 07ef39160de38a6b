"""``gradients``: test FORGrad's premises about the high frequencies of a model's gradients."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ...options import read_options
from ..arguments import add_batches, add_folder, add_model, add_out, names_of
from ..flags import add_flags, given

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from ...runs.batches import Failure
    from ...runs.gradients import GradientStudy


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "gradients",
        help="test whether a gradient's high frequencies matter, and find the layers they come from",
        description="Predict the score changes of a folder's perturbed images from gradients without their high "
        "frequencies, and compare the gradients' spectra before and after every strided layer and pooling. Models "
        "measured into the same folder are drawn side by side.",
    )
    add_out(parser, "fampe_gradients")
    add_folder(parser)
    add_model(parser)
    add_batches(parser)
    group = parser.add_argument_group("first-order test")
    (kind,) = read_options("fampe_fast.robustness.first_order:FirstOrderTest", ["perturbation"])
    group.add_argument(
        "--perturbations",
        type=names_of(kind.choices, "perturbation"),
        default=list(kind.choices),
        metavar="NAMES",
        help="kinds of perturbation, comma-separated, of: white (noise with equal energy at all frequencies), image "
        f"(noise with the image's own spectrum) (default: {','.join(kind.choices)})",
    )
    add_flags(group, "settings", read_options("fampe_fast.runs.gradients:GradientSettings"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure the gradients of a folder's images, and print their first-order tests and spectra."""
    from rich.markup import escape

    from ...runs.gradients import GradientSettings, gradient_outputs, measure_gradients
    from ..model_and_methods import check_all_outputs, chosen_images, classifier_of
    from ..output import Bar, closing, console, error_console, print_earlier, print_failure, print_left_out

    settings = GradientSettings(tuple(arguments.perturbations), **given(arguments, "settings"))
    images = chosen_images(arguments)
    paths = images.paths
    check_all_outputs(arguments, gradient_outputs(arguments.out), paths)
    classifier = classifier_of(arguments)
    targets = images.targets(classifier)
    screen, errors = console(), error_console()
    print_left_out(errors, images.found)
    with Bar(errors, "gradients", len(paths)) as advance:

        def failed(failure: Failure) -> None:
            print_failure(errors, failure)
            advance()

        study = measure_gradients(
            classifier,
            paths,
            arguments.out,
            settings,
            targets=targets,
            image_ids=images.image_ids,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_images=advance,
            on_failure=failed,
        )
    count = len(study.paths)
    print_earlier(errors, study.earlier, len(paths), arguments.out)
    if count:
        for table in _tables(study, classifier.name):
            screen.print(table)
        for name in ("gradients.json", "explained.png", *(["layers.png"] if study.layers else [])):
            screen.print(f"wrote {escape(str(arguments.out / name))}", soft_wrap=True)
    return closing(errors, count, len(paths))


def _tables(study: GradientStudy, name: str) -> Iterator[Table]:
    from rich.markup import escape
    from rich.table import Table

    from ..output import estimate_text

    summary = study.summary()
    kinds = summary["explained"]
    table = Table(
        "radius", *(f"{kind} perturbations" for kind in kinds), "gradient's energy",
        title=f"{len(study.paths)} images, {escape(name)}: share of the {study.settings.score}'s change that the "
        "gradient within a radius explains",
        caption="mean over images, with the 95% interval of the mean; the last row is the whole gradient",
    )  # fmt: skip
    for k, radius in enumerate(study.radii):
        cells = []
        for found in kinds.values():
            span = "" if found["lower"] is None else f" ({found['lower'][k]:.3f} to {found['upper'][k]:.3f})"
            cells.append(f"{found['mean'][k]:.3f}{span}")
        table.add_row(f"{radius:.1f}", *cells, f"{summary['gradient_share'][k]:.3f}")
    for column in table.columns:
        column.justify = "right"
    yield table
    if not study.layers:
        return
    table = Table(
        "layer", "class", "places", "energy beyond",
        title="gradient at each strided layer's input",
        caption="energy beyond: share above the frequencies that the gradient at the output has; mean ± standard error",
    )  # fmt: skip
    for k, layer in enumerate(study.layers):
        places = " to ".join(" x ".join(map(str, layer[side])) for side in ("fine", "coarse"))
        table.add_row(escape(layer["name"]), layer["kind"], places, estimate_text(study.beyond(k)))
    yield table
