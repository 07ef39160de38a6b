"""What can be typed after ``fampe-fast``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from .._version import __version__
from .commands import attack, defend, demo, doctor, evaluate, explain, occlude, study, tune

# In the order of the help.
_COMMANDS = (demo, explain, evaluate, tune, study, occlude, attack, defend, doctor)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; exits with code 2 and a message where it cannot be understood.

    Returns:
        The arguments; ``run`` among them is the command's function.
    """
    parser = argparse.ArgumentParser(
        prog="fampe-fast",
        description="Frequency-aware attribution maps: what an image classifier looked at.",
        epilog="Exit codes: 0 all done, 1 some images failed (doctor: a fault), 2 nothing could start or every image "
        "failed, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"fampe-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser.parse_args(argv)
