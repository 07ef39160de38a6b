"""``defend``: train small classifiers with and without a defence, and attack them band by band."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...catalog import TRAINING_DATA, TRAININGS
from ...options import read_options
from ..arguments import names_of
from ..flags import add_flags, given, whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.table import Table


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "defend",
        help="train small classifiers with and without a defence, and attack them",
        description="Train small classifiers plainly, with two frequency augmentations and adversarially; attack each "
        "in three bands, and measure which bands it relies on. Without --seeds: one of each, on textures, and each "
        "attack is also tested on the others. With --seeds: N of each, on every data set, with intervals over seeds.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fampe_defend"),
        metavar="DIR",
        help="output folder; an earlier run with --seeds in it is resumed (default: %(default)s)",
    )
    group = parser.add_argument_group("several seeds")
    group.add_argument(
        "--seeds",
        type=whole,
        metavar="N",
        help="number of seeds, at least 3, counting up from --seed (default: only --seed)",
    )
    group.add_argument(
        "--data",
        type=names_of(TRAINING_DATA, "data set"),
        metavar="NAMES",
        help=f"data sets for --seeds, comma-separated, of: {', '.join(TRAINING_DATA)} (default: all); other options "
        "default to each data set's own values",
    )
    options = read_options("fampe_fast.runs.defence_settings:DefenceSettings")
    add_flags(parser.add_argument_group("experiment"), "settings", options)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment with one seed or several, and print its tables."""
    if arguments.seeds is not None:
        return _run_seeds(arguments)
    if arguments.data is not None:
        raise ValueError("--data needs --seeds, whose data sets it chooses")
    return _run_one(arguments)


def _run_one(arguments: argparse.Namespace) -> int:
    from rich.markup import escape

    from ...runs.defence_settings import DefenceSettings
    from ...runs.defence_training import ATTACKS
    from ...runs.defend import defend
    from .. import DONE
    from ..output import console, error_console, estimate_text

    settings = DefenceSettings(**given(arguments, "settings"))
    screen, errors = console(), error_console()
    result = defend(arguments.out, settings, on_stage=lambda stage: errors.print(f"[dim]{escape(stage)} ...[/]"))
    title = (
        f"accuracy on {settings.test_images} images ± standard error; attacks of {settings.eps:.4f}, cut-off "
        f"{settings.cutoff:g}"
    )
    rows = [[name, *(estimate_text(row[key]) for key in ("clean", *ATTACKS))] for name, row in result.accuracy.items()]
    screen.print(_table(title, ["trained", "clean", *(f"attacked, {band}" for band in ATTACKS)], rows))
    for name in ("defence.json", "reliance.png"):
        screen.print(f"wrote {escape(str(arguments.out / name))}", soft_wrap=True)
    return DONE


def _run_seeds(arguments: argparse.Namespace) -> int:
    from rich.markup import escape

    from ...runs.defence_seed_results import HEAD
    from ...runs.defence_seeds import compare_trainings, seed_outputs
    from .. import DONE
    from ..output import Bar, console, error_console, print_earlier

    screen, errors = console(), error_console()
    data = arguments.data or TRAINING_DATA
    total = len(TRAININGS) * len(data) * arguments.seeds
    with Bar(errors, "classifiers", total) as advance:
        study = compare_trainings(
            arguments.out,
            arguments.seeds,
            data,
            **given(arguments, "settings"),
            on_trained=advance,
        )
    print_earlier(errors, study.earlier, total, arguments.out, "classifiers")
    for name, task in study.tasks.items():
        screen.print(_table(study.title(name), HEAD, task.rows()))
    for output in seed_outputs(arguments.out)[1:]:
        screen.print(f"wrote {escape(str(output.path))}", soft_wrap=True)
    return DONE


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(*map(escape, head), title=escape(title))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*map(escape, row))
    return table
