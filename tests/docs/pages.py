"""Read the documentation's pages: their code blocks, links, headings and tables."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of code."""

    page: str
    """The page's path in the tree."""
    line: int
    """Of its first line, counted from 1."""
    language: str
    text: str


def pages() -> list[Path]:
    """List every page that a reader may meet: those at the top of the tree, and all of ``docs``."""
    return [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[Block]:
    """List a page's blocks in some languages, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        _, language, code = match.groups()
        if language in languages:
            found.append(Block(name_of(page), text.count("\n", 0, match.start(3)) + 1, language, dedent(code)))
    return found


def shell_lines(block: Block) -> list[str]:
    """Split a block of shell commands into lines, with continued lines joined."""
    return [line.strip() for line in block.text.replace("\\\n", " ").splitlines() if line.strip()]


def prose(page: Path) -> str:
    """Take a page's text without its blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """List the targets of a page's links and pictures."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    return re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)


def anchors(page: Path) -> set[str]:
    """List the names that links may jump to on a page: its headings', as both GitHub and the site make them."""
    found = set(re.findall(r"(?:id=\"|\{: ?#|\{#)([\w.-]+)", prose(page)))
    for heading in re.findall(r"^#+ +(.+?) *#*$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        words = re.sub(r"[^\w\s-]", "", plain.lower()).strip()
        found |= {words.replace(" ", "-"), re.sub(r"[-\s]+", "-", words)}
    return found


def tables(page: Path) -> dict[str, list[str]]:
    """List the names in the first column of the table under each heading: those that are code."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^#+ ", prose(page), flags=re.MULTILINE)[1:]:
        heading, _, text = part.partition("\n")
        names = [re.findall(r"`([^`]+)`", row.split("|")[1]) for row in text.splitlines() if row.startswith("|")]
        found[heading.strip()] = [name for row in names for name in row]
    return found


def help_texts() -> dict[str, str]:
    """Format every command's help as the site's hook does; under an empty name that of ``fampe-fast`` itself."""
    spec = spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    hooks = module_from_spec(spec)
    spec.loader.exec_module(hooks)
    found: dict[str, str] = hooks.help_texts()
    return found
