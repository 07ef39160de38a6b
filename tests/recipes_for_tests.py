"""Read the recipes of docs/extend: the files that each lists, and the code that it shows for them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Recipe(NamedTuple):
    """A page of docs/extend."""

    text: str
    files: tuple[str, ...]
    """Paths of its numbered list, in that order."""
    blocks: dict[str, str]
    """The code below each path that stands on a line of its own."""


def read_recipe(page: str) -> Recipe:
    """Read a page by its name without the ending."""
    text = (ROOT / "docs" / "extend" / f"{page}.md").read_text()
    files = tuple(re.findall(r"^\d+\. `([^`]+)`", text, re.MULTILINE))
    blocks = re.findall(r"^`([^`]+)`[^\n]*\n\n```(?:python|toml)\n(.*?)```$", text, re.MULTILINE | re.DOTALL)
    return Recipe(text, files, dict(blocks))
