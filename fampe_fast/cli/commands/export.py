"""``export``: write the maps of a batch run as archives, pictures or a Zarr store."""

from __future__ import annotations

import argparse

from ..arguments import positive

_FORMATS = ("npz", "png", "zarr")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("export", help="write the maps of a batch run as .npz, .png or Zarr files")
    parser.add_argument("dest", metavar="DEST", help="folder or URL of the batch run")
    parser.add_argument(
        "--to",
        choices=_FORMATS,
        required=True,
        help="output format: npz (an archive per image), png (each map over its image) or zarr (one array of all maps)",
    )
    parser.add_argument(
        "--out",
        default="fampe_export",
        metavar="OUT",
        help="new folder or URL; an interrupted export in it is continued (default: %(default)s)",
    )
    parser.add_argument("--ids", type=_ids, metavar="N,N", help="export only these image ids (default: all)")
    parser.add_argument("--limit", type=positive, metavar="N", help="export only the first N rows")
    parser.add_argument(
        "--trust-model", action="store_true", help="load the model even if it is a program (for png, its transform)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Write the maps that are not written yet, and print the counts."""
    from ...batch.export import Export
    from ...batch.plan import plan_of
    from ...batch.storage import open_storage
    from .. import DONE, SOME_FAILED, UNUSABLE
    from ..output import Bar, error_console

    dest, out = open_storage(arguments.dest), open_storage(arguments.out)
    plan, errors = plan_of(dest), error_console()
    export = Export(
        dest,
        plan,
        out,
        arguments.to,
        ids=arguments.ids,
        limit=arguments.limit,
        trust_model=arguments.trust_model,
    )
    with Bar(errors, "export", export.rows) as advance:
        found = export.run(advance)
    words = [f"{found.maps} maps written to {out}"]
    words += [f"{found.earlier} were there"] if found.earlier else []
    words += [f"{found.errors} images have no map"] if found.errors else []
    words += [f"{found.undrawn} have no picture, as the image can no longer be read"] if found.undrawn else []
    words += [f"{found.missing} shards are not made yet"] if found.missing else []
    errors.print("; ".join(words), soft_wrap=True, highlight=False, markup=False)
    if not (found.maps or found.earlier):
        return UNUSABLE
    return SOME_FAILED if found.errors or found.undrawn or found.missing else DONE


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected image ids separated by commas, got {text!r}") from error
