"""``doctor``: report on the installation."""

from __future__ import annotations

import argparse

from .. import DONE, SOME_FAILED


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "doctor", help="report versions, devices and each device's backend, and run a self-test"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Report on the installation."""
    from rich.markup import escape
    from rich.table import Table

    from ...runs.doctor import examine
    from ..output import console

    findings = examine()
    table = Table("what", "found", show_header=False, box=None)
    for finding in findings:
        table.add_row(finding.topic, escape(finding.text) if finding.healthy else f"[red]{escape(finding.text)}[/]")
    console().print(table)
    return DONE if all(finding.healthy for finding in findings) else SOME_FAILED
