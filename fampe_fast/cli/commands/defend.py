"""``defend``: train small classifiers with and without a defence, and attack them band by band."""

from __future__ import annotations

import argparse
from pathlib import Path

from ...options import read_options
from ..flags import add_flags, given


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("defend", help="train small classifiers with and without a defence, and attack them")
    parser.add_argument(
        "--out", type=Path, default=Path("fampe_defend"), metavar="DIR", help="output folder (default: %(default)s)"
    )
    options = read_options("fampe_fast.runs.defence_settings:DefenceSettings")
    add_flags(parser.add_argument_group("experiment"), "settings", options)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment and print its table."""
    from rich.markup import escape
    from rich.table import Table

    from ...runs.defence_settings import DefenceSettings
    from ...runs.defence_training import ATTACKS
    from ...runs.defend import defend
    from .. import DONE
    from ..output import console, error_console, estimate_text

    settings = DefenceSettings(**given(arguments, "settings"))
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
