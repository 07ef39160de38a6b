"""Every link, anchor, picture and file that the documentation names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .pages import DOCS, ROOT, anchors, links, name_of, pages, prose

TREE = ("fampe_fast", "kernels", "reference", "tests", "benchmarks", "examples", "docs", "deploy", ".github")
MADE = r"(\b|_)NAME\b|^benchmarks/results/"
"""Of files that a reader, or a benchmark, writes."""


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{name_of(page)} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{name_of(page)} links to {link}"


def test_every_picture_is_shown_somewhere() -> None:
    shown = {(page.parent / link).resolve() for page in pages() for link in links(page)}
    unused = {path.name for path in (DOCS / "pictures").iterdir()} - {path.name for path in shown}
    assert not unused


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_file_that_a_sentence_names_exists(page: Path) -> None:
    for name in re.findall(rf"`((?:{'|'.join(map(re.escape, TREE))})/[\w./-]+)`", prose(page)):
        made = re.search(MADE, name) or "docs/extend/" in name_of(page)
        assert made or (ROOT / name).exists(), f"{name_of(page)} names {name}"


def test_the_readme_is_one_page() -> None:
    """At most 700 words, code and tables included; a word holds a letter or a digit, and a link is its text."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", (ROOT / "README.md").read_text())
    assert len(re.findall(r"\S*\w\S*", text)) <= 700
