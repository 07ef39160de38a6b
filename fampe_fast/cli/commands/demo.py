"""``demo``: explain generated images offline."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import DONE
from ..arguments import positive


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("demo", help="explain generated images offline, with the included classifier")
    parser.add_argument(
        "--out", type=Path, default=Path("fampe_demo"), help="folder for demo.png (default: %(default)s)"
    )
    parser.add_argument(
        "--images", type=positive, default=4, metavar="N", help="number of images (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=2024, help="seed of the images (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain generated images, and print a table of results."""
    from rich.markup import escape
    from rich.table import Table

    from ...runs.demo import run_demo
    from ..output import console

    rows, picture = run_demo(arguments.out, images=arguments.images, seed=arguments.seed)
    table = Table("generated as", "seen as", "probability", "cut-off", "insertion", "deletion", "mass inside", "object")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.true_class,
            row.class_name,
            f"{row.probability:.3f}",
            f"{row.cutoff:.0f}",
            f"{row.insertion:.3f}",
            f"{row.deletion:.3f}",
            f"{row.mass_inside:.0%}",
            f"{row.object_share:.0%}",
        )
    screen = console()
    screen.print(table)
    screen.print(
        "[dim]mass inside: share of the map's mass on the object; object: share of the image it covers, which a map\n"
        "that knows nothing would score. Cut-off in cycles over the image. Insertion, deletion: RISE's protocol.[/]"
    )
    screen.print(f"picture: {escape(str(picture))}", soft_wrap=True)
    return DONE
