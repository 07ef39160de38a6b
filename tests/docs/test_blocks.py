"""Every block of code of the documentation runs, or is at least understood."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from fampe_fast.cli.parser import make_parser

from .pages import DOCS, ROOT, blocks, help_texts, name_of, pages, prose, shell_lines
from .running import ONLY_PARSED, PYTHON_NOT_RUN, command_lines, has_examples, run_page, small_world, words_of

PROGRAMS = (
    ".", "awk", "base64", "cd", "chmod", "curl", "docker", "echo", "export", "find", "git", "mkdocs", "mypy", "pip",
    "pre-commit", "pytest", "python", "python3", "ray", "ruff", "sha256sum", "sort", "tr", "uv", "xargs",
)  # fmt: skip
"""Commands of others that the pages show."""


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("captum", "pytorch_grad_cam", "pyarrow", "sklearn"):
        pytest.importorskip(package)
    return tmp_path_factory.mktemp("downloads")


# test_reference.py runs the page of the commands, and looks at the files that they write.
@pytest.mark.slow
@pytest.mark.filterwarnings("default::fampe_fast.errors.FampeWarning")
@pytest.mark.parametrize(
    "page", [page for page in pages() if has_examples(page) and page != DOCS / "reference" / "commands.md"], ids=name_of
)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, downloads: Path) -> None:
    with small_world(tmp_path, downloads):
        run_page(page)


def documented() -> list[str]:
    """Every command line of the package that the documentation shows as a whole, in blocks and in sentences."""
    found = [line for page in pages() for block in blocks(page, "bash") for line in command_lines(block)]
    for page in pages():
        inline = re.findall(r"`(fampe-fast [^`]*)`", prose(page))
        found += [line for line in inline if "..." not in line]
    return sorted(set(found))


def test_the_documentation_shows_commands() -> None:
    assert len(documented()) > 20


def test_every_command_that_the_documentation_shows_is_understood() -> None:
    parser, texts = make_parser(), help_texts()
    for line in documented():
        words = words_of(line)
        if {"--help", "--version"} & set(words):
            with pytest.raises(SystemExit, match="0"):
                parser.parse_args(words)
            continue
        try:
            assert parser.parse_args(words).command == words[0]
        except SystemExit:  # a command or an option that is named, not shown
            assert len(words) == 1 or words[-1].startswith("--"), line
            assert all(word in texts[words[0]] for word in words[1:]), line


def test_what_is_not_run_is_there() -> None:
    for name in PYTHON_NOT_RUN:
        assert blocks(ROOT / name, "python"), name
        for test in re.findall(r"tests/[\w/]+\.py", PYTHON_NOT_RUN[name]):
            assert (ROOT / test).is_file(), test
    for pattern in ONLY_PARSED:
        assert any(re.search(pattern, line) for line in documented()), pattern


# Other commands -------------------------------------------------------------------------------------------------------


def other_lines() -> list[tuple[str, str]]:
    """Every other line of the shell's blocks, one for each command of it."""
    found = []
    for page in pages():
        for block in blocks(page, "bash"):
            for line in shell_lines(block):
                plain = re.sub(r"\s#.*$|^#.*$", "", line)
                found += [(name_of(page), part.strip()) for part in re.split(r"&&|\|", plain) if part.strip()]
    return [(page, part) for page, part in found if "fampe-fast " not in part]


def test_every_other_command_is_one_that_exists() -> None:
    for page, line in other_lines():
        words = shlex.split(re.sub(r"^((?:\w+=(?:\"[^\"]*\"|\S+) ?)*)", "", line), comments=True)
        if not words:  # variables alone
            continue
        assert words[0] in PROGRAMS, f"{page}: {line}"
        if words[0].startswith("python") and "-m" in words:
            module = words[words.index("-m") + 1]
            assert importlib.util.find_spec(module) is not None, f"{page}: no module {module}"
        if words[0] == "docker" and "-f" in words:
            assert (ROOT / words[words.index("-f") + 1]).is_file(), f"{page}: {line}"
        for path in re.findall(r"(?:^|\s)((?:tests|benchmarks|deploy|examples|docs)/[\w./-]+)", line):
            assert (ROOT / path).exists() or "--out" in line, f"{page}: no file {path}"


def test_every_extra_that_is_named_exists() -> None:
    declared = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2]
    known = set(re.findall(r"^(\w+) = \[", declared.partition("\n[")[0], re.MULTILINE))
    assert {"peers", "dev"} <= known
    for page in pages():
        named = re.findall(r"(?:fampe_fast|'\.|\"\.|\s\.)\[([a-z0-9, ]+)\]", page.read_text())
        for extras in named:
            assert set(re.split(r", ?", extras)) <= known, f"{name_of(page)}: [{extras}]"
