"""Put the help of every command into the reference while the site is built."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any
from unittest import mock

from fampe_fast.cli.parser import make_parser

_PLACE = re.compile(r"^\{\{ help ?([a-z]*) \}\}$", re.MULTILINE)


def help_texts() -> dict[str, str]:
    """Format the help of each command, and under an empty name that of ``fampe-fast`` itself, 76 columns wide."""
    parser = make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    with mock.patch.dict(os.environ, COLUMNS="76", NO_COLOR="1"):
        return {name: found.format_help() for name, found in {"": parser, **commands.choices}.items()}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replace each ``{{ help COMMAND }}`` that stands alone on a line; an unknown command ends the build."""
    if not _PLACE.search(markdown):
        return markdown
    texts = help_texts()
    return _PLACE.sub(lambda found: f"```text\n{texts[found[1]]}```", markdown)
