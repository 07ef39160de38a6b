"""``attack``: find the frequency bands in which attacks fool a model, and whether the attacks transfer."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from ...catalog import GRADIENTS, gradient_options
from ...options import read_options
from ..arguments import add_batches, add_folder, add_model, add_other_model, add_out, names_of
from ..flags import Holder, add_flags, add_shared_flags, given

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from ...metrics import Estimate
    from ...runs.attack_results import AttackSettings, AttackStudy
    from ...runs.batches import Failure


_FLAGS = {"cutoff": "--fampe-cutoff"}
"""``--cutoff`` is the cut-off between the bands."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "attack",
        help="attack a folder's images in the low, the high and all frequencies",
        description="Attack a folder's images within one frequency band at a time, and count how many of the correctly "
        "classified images are misclassified afterwards. Without --labels or --target the attacked class is the "
        "model's own prediction, which counts as correct, also for a second model.",
    )
    add_out(parser, "fampe_attack")
    parser.add_argument(
        "--save-images",
        action="store_true",
        help="also write the images attacked on --model, as 8-bit PNG files in the model's input size",
    )
    add_folder(parser)
    add_model(parser)
    group = parser.add_argument_group(
        "transfer", "another model of the same classes, attacked too; each is also tested on the other's images"
    )
    add_other_model(group, "transfer-to", help="as --model; it gets the images in --model's input size")
    add_batches(parser)
    group = parser.add_argument_group("attack")
    (band,) = read_options("fampe_fast.robustness.band_limited:BandLimitedAttack", ["band"])
    default = [name for name in band.choices if name != "middle"]
    group.add_argument(
        "--bands",
        type=names_of(band.choices, "band"),
        default=default,
        metavar="NAMES",
        help=f"bands to attack, comma-separated, of: {', '.join(band.choices)}; middle ends at --upper-cutoff "
        f"(default: {','.join(default)})",
    )
    group.add_argument(
        "--gradients",
        choices=tuple(GRADIENTS),
        default="plain",
        help="plain: gradients at the image itself; a method: averaged over its samples; none: SimBA, which tries one "
        "cosine after the other and needs only the model's scores (default: %(default)s)",
    )
    add_flags(group, "settings", read_options("fampe_fast.runs.attack_results:AttackSettings"))
    add_shared_flags(
        parser,
        "config",
        [Holder(name, f"--gradients {name}", gradient_options(name)) for name in GRADIENTS],
        "options of all gradients",
        _FLAGS,
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Attack a folder's images, and print which attacks fooled the model."""
    from rich.markup import escape

    from ...runs.attack import attack_files, attack_outputs
    from ...runs.attack_results import AttackSettings, attack_config
    from ..model_and_methods import (
        check_all_outputs,
        chosen_images,
        classifier_of,
        other_classifier_of,
        shared_out,
    )
    from ..output import Bar, closing, console, error_console, print_earlier, print_failure, print_left_out

    known = {option.name for option in gradient_options(arguments.gradients)}
    (options,) = shared_out(given(arguments, "config"), {f"--gradients {arguments.gradients}": known}, _FLAGS).values()
    config = attack_config(arguments.gradients, **options)
    settings = AttackSettings(tuple(arguments.bands), config=config, **given(arguments, "settings"))
    images = chosen_images(arguments)
    paths = images.paths
    outputs = attack_outputs(paths, arguments.out, arguments.bands, arguments.save_images)
    check_all_outputs(arguments, outputs, paths)
    classifier = classifier_of(arguments)
    targets = images.targets(classifier)
    other = other_classifier_of(arguments, "transfer_to")
    screen, errors = console(), error_console()
    print_left_out(errors, images.found)
    with Bar(errors, "attack", len(paths)) as advance:

        def failed(failure: Failure) -> None:
            print_failure(errors, failure)
            advance()

        study = attack_files(
            classifier,
            paths,
            arguments.out,
            settings,
            targets=targets,
            image_ids=images.image_ids,
            transfer_to=other,
            save_images=arguments.save_images,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_images=advance,
            on_failure=failed,
        )
    count = len(study.records)
    print_earlier(errors, study.earlier, len(paths), arguments.out)
    if count:
        for table in _tables(study):
            screen.print(table)
        largest = study.largest_saved_change()
        if largest is not None:
            inside = "inside" if study.saved_stay_inside() else "outside"
            ball = "" if math.isinf(settings.radius) else f", {inside} eps of {settings.radius:.5f}"
            screen.print(
                f"images as 8-bit PNG: largest change {largest:.5f}{ball}"
                + ("" if largest else "; 8 bits erase an attack below 1/255"),
                highlight=False,
            )
        pictures = [
            "attack.png",
            *(["queries.png"] if arguments.gradients == "none" and study.confidence(None) else []),
        ]
        for name in ("attack.json", *pictures, *(["images"] if arguments.save_images else [])):
            screen.print(f"wrote {escape(str(arguments.out / name))}", soft_wrap=True)
    return closing(errors, count, len(paths))


def _tables(study: AttackStudy) -> Iterator[Table]:
    from rich.markup import escape
    from rich.table import Table

    from ..output import estimate_text

    settings, name = study.settings, study.models[0]
    bands, saved = settings.bands, study.largest_saved_change() is not None

    def text(estimate: Estimate | None) -> str:
        return "none was classified correctly" if estimate is None else estimate_text(estimate)

    right = study.confidence(None)
    table = Table(
        "band", "fooled", *(["fooled by PNG"] if saved else []), "confidence before", "after", "energy in the band",
        *(["in PNG"] if saved else []), "passes", "norm",
        title=f"{escape(name)}, right about {right.n if right else 0} of {len(study.records)} images: "
        f"{_attack_text(settings)}",
        caption="mean ± standard error; fooled, confidence, passes and norm: of the images it was right about",
    )  # fmt: skip
    for band in bands:
        rounded = study.band_share_as_saved(band)
        table.add_row(
            band,
            text(study.fooled(band, name, name)),
            *([text(study.fooled_as_saved(band))] if saved else []),
            text(right),
            text(study.confidence(band)),
            f"{study.band_share(band).mean:.5f}",  # smaller shares are rounding errors
            *([] if rounded is None else [f"{rounded.mean:.5f}"]),
            "" if (passes := study.queries(band)) is None else f"{passes.mean:.1f}",
            "" if (norm := study.norm(band)) is None else f"{norm.mean:.3f}",
        )
    yield _right_aligned(table)
    shares = [study.ring_shares(band).mean(0).tolist() for band in bands]
    table = Table("radius", *bands, title="share of the perturbation's energy per ring")
    for k, (low, high) in enumerate(zip(study.edges[:-1], study.edges[1:], strict=True)):
        table.add_row(f"{low:.1f} to {high:.1f}", *(f"{share[k]:.4f}" for share in shares))
    yield _right_aligned(table)
    if len(study.models) == 1:
        return
    table = Table(
        "band", "attacked", *(f"fools {escape(model)}" for model in study.models),
        title="transfer: share fooled of the images each model was right about",
        caption="right before: "
        + ", ".join(f"{escape(model)} {estimate_text(study.accuracy(model))}" for model in study.models),
    )  # fmt: skip
    for band in bands:
        for source in study.models:
            table.add_row(band, escape(source), *(text(study.fooled(band, source, model)) for model in study.models))
    yield _right_aligned(table, 2)


def _attack_text(settings: AttackSettings) -> str:
    from ...robustness.simba import SimBAConfig

    config = settings.config
    cutoffs = f"cut-off {settings.cutoff:g}" + (
        "" if settings.upper_cutoff is None else f" and {settings.upper_cutoff:g}"
    )
    if isinstance(config, SimBAConfig):
        return f"SimBA, steps of {config.step_size:g}, {config.max_queries} queries at most, {cutoffs}"
    smooth = f", smoothness {settings.smoothness:g}" if settings.smoothness else ""
    return f"attacks of {config.eps:.4f} in {config.steps} steps, {cutoffs}{smooth}"


def _right_aligned(table: Table, first: int = 1) -> Table:
    for column in table.columns[first:]:
        column.justify = "right"
    return table
