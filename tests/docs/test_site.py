"""The site is built without a warning and without a network, and holds what the reference promises."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from .pages import DOCS, ROOT, help_texts

pytest.importorskip("mkdocs", reason="the site's packages are not installed: pip install '.[docs]'")
pytest.importorskip("mkdocstrings")

pytestmark = pytest.mark.slow

NOWHERE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a broken link or anchor, a page outside the menu or an unknown name ends it."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, **NOWHERE, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class _Sources(HTMLParser):
    """Collects what a browser would fetch to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.classes |= set(values.get("class", "").split())
        if tag != "a":
            self.found += [values[name] for name in ("src", "srcset", "data", "poster") if name in values]
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(values["href"])


def fetched(site: Path) -> Iterator[tuple[Path, str]]:
    for page in site.rglob("*.html"):
        sources = _Sources()
        sources.feed(page.read_text(encoding="utf-8"))
        assert "mermaid" not in sources.classes, f"{page}: mermaid's script would be fetched"
        yield from ((page, source) for source in sources.found)
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        yield from ((sheet, source) for source in re.findall(r"(?:url\(|@import )[\"']?([^\"')]+)", text))


@pytest.mark.slow
def test_the_site_needs_nothing_from_elsewhere(site: Path) -> None:
    for place, source in fetched(site):
        if source.startswith("data:"):
            continue
        assert not re.match(r"[a-z]+:|//", source), f"{place} fetches {source}"
        file = (site if source.startswith("/") else place.parent) / source.lstrip("/").partition("?")[0].partition("#")[
            0
        ]
        assert file.exists(), f"{place} fetches {source}"


@pytest.mark.slow
def test_every_page_is_built_and_nothing_else_is_put_beside_it(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS)).with_suffix(".html").is_file()
    assert not list(site.rglob("*.py"))


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_the_reference_has_the_help_of_every_command(site: Path) -> None:
    text = text_of(site / "reference" / "commands.html")
    for name, help_text in help_texts().items():
        assert help_text.strip() in text, name or "fampe-fast"
        assert max(map(len, help_text.splitlines())) <= 100


@pytest.mark.slow
def test_the_api_pages_hold_docstrings(site: Path) -> None:
    """Of the package's files, among them those that links map into it."""
    primitives = text_of(site / "reference" / "api" / "primitives.html")
    assert "fampe_fast.reference.band_mix.band_mix" in primitives
    assert "fampe_fast.kernels.band_mix.band_mix" in primitives
    methods = text_of(site / "reference" / "api" / "methods.html")
    assert "Explain a batch of images." in methods
    assert "internal_batch_size" in methods
