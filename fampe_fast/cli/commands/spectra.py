"""``spectra``: measure the energy cut-offs of photographs, textures and medical-like images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...options import read_options
from ..flags import add_flags, given

if TYPE_CHECKING:
    from ...runs.batches import Failure


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "spectra",
        help="measure the cut-offs for energy shares tau: your images, textures, medical-like images",
    )
    parser.add_argument(
        "images", nargs="*", type=Path, metavar="DIR", help="folders of images, one kind each (default: none)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("fampe_spectra"), metavar="DIR", help="output folder (default: %(default)s)"
    )
    add_flags(parser, "run", read_options("fampe_fast.runs.spectra:survey_spectra", ["size", "count", "seed"]))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure the images, and print a table without DC and one with DC."""
    from rich.markup import escape
    from rich.table import Table

    from ...images import survey_images
    from ...runs.spectra import COUNTS, spectra_outputs, survey_spectra, table_rows
    from ..model_and_methods import check_all_outputs
    from ..output import Bar, closing, console, error_console, print_failure, print_left_out

    for folder in arguments.images:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; spectra takes folders of images")
    folders = [survey_images(folder) for folder in arguments.images]
    paths = [path for found in folders for path in found.paths]
    check_all_outputs(arguments, spectra_outputs(arguments.out), paths)
    screen, errors = console(), error_console()
    for found in folders:
        print_left_out(errors, found)
    with Bar(errors, "spectra", len(paths)) as advance:

        def failed(failure: Failure) -> None:
            print_failure(errors, failure)

        result = survey_spectra(folders, arguments.out, **given(arguments, "run"), on_images=advance, on_failure=failed)
    for name in COUNTS:
        head, *rows = table_rows(result, name)
        table = Table(
            *map(escape, head),
            title=f"Energy cut-offs {name}, cycles per side of {result.size} pixels",
            caption="median (smallest to largest) over the images; last, the cut-off of the kind's expected spectrum",
        )
        for row in rows:
            table.add_row(*map(escape, row))
        screen.print(table)
    for output in spectra_outputs(arguments.out)[1:]:
        screen.print(f"wrote {escape(str(output.path))}", soft_wrap=True)
    return closing(errors, len(paths) - len(result.failures), len(paths))
