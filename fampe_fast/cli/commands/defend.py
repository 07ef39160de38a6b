"""``defend``: what frequency augmentation does against band-limited attacks, on generated images."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import fraction, positive


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Its arguments; what is not given takes the experiment's own number."""
    parser = commands.add_parser(
        "defend", help="train small classifiers with and without frequency augmentation, and attack them"
    )
    parser.add_argument("--seed", type=int, help="of images, weights, augmentations and attacks (default: 0)")
    parser.add_argument("--train-steps", type=positive, help="optimiser steps of each classifier")
    parser.add_argument("--train-images", type=positive, help="generated for training")
    parser.add_argument("--test-images", type=positive, help="generated for the accuracies")
    parser.add_argument("--cutoff", type=float, help="between the low and the high band, cycles over the side")
    parser.add_argument("--probability", type=float, help="that a training image is augmented")
    parser.add_argument("--eps", type=fraction, help="radius of the attacks in pixel units, such as 4/255")
    parser.add_argument("--attack-steps", type=positive, help="of the attacks")
    parser.add_argument("--out", type=Path, default=Path("fampe_defend"), help="folder (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment and print its table."""
    from rich.markup import escape
    from rich.table import Table

    from ...runs.defend import ATTACKS, DefenceSettings, defend
    from .. import DONE
    from ..output import console, error_console, estimate_text

    names = ("seed", "train_steps", "train_images", "test_images", "cutoff", "probability", "eps", "attack_steps")
    given = {name: getattr(arguments, name) for name in names}
    settings = DefenceSettings(**{name: value for name, value in given.items() if value is not None})
    screen, errors = console(), error_console()
    result = defend(arguments.out, settings, on_stage=lambda stage: errors.print(f"[dim]{escape(stage)} ...[/]"))
    table = Table(
        "trained", "clean", *(f"attacked, {band}" for band in ATTACKS),
        title=f"accuracy on {settings.test_images} images ± standard error; attacks of {settings.eps:.4f}, "
        f"cut-off {settings.cutoff:g}",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in result.accuracy.items():
        table.add_row(name, *(estimate_text(row[key]) for key in ("clean", *ATTACKS)))
    screen.print(table)
    for name in ("defence.json", "reliance.png"):
        screen.print(f"wrote {escape(str(arguments.out / name))}", soft_wrap=True)
    return DONE
