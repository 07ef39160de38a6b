"""Parse the command line of ``fampe-fast``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .._version import __version__
from .commands import (
    attack,
    batch,
    calibrate,
    defend,
    demo,
    doctor,
    evaluate,
    explain,
    export,
    frequency,
    gradients,
    serve,
    spectra,
    study,
    tune,
    verify,
    warmup,
)

# In the order of the help.
_COMMANDS = (
    demo, explain, batch, verify, export, serve, evaluate, tune, calibrate, study, frequency, spectra, gradients,
    attack, defend, warmup, doctor,
)  # fmt: skip


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line, or exit with code 2 and a message if it is invalid.

    Returns:
        The arguments; ``run`` among them is the command's function.
    """
    return make_parser().parse_args(argv)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="fampe-fast",
        description="Compute frequency-aware attribution maps, which show what an image classifier looked at.",
        epilog="Exit codes: 0 success, 1 some images failed (doctor: a fault), 2 nothing could start or every image "
        "failed, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"fampe-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    for made in commands.choices.values():
        # The many flags are listed in the help, so usage lines leave them out.
        positional = [action for action in made._actions if not action.option_strings]
        names = [
            str(action.metavar or action.dest) + (" ..." if action.nargs in ("+", "*") else "") for action in positional
        ]
        made.usage = " ".join(["%(prog)s", "[options]", *names])
    return parser
