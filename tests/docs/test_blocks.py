"""Every block of code of the documentation, run as a reader would: in order, in a folder with the files it names."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import warnings
from pathlib import Path

import pytest

from fampe_fast.cli import DONE, main
from fampe_fast.cli.parser import make_parser

from .pages import ROOT, Block, blocks, help_texts, name_of, pages, prose, shell_lines
from .small_world import TINY_TRAINING, small_models, write_files

for _package in ("captum", "pytorch_grad_cam", "pyarrow", "starlette"):
    pytest.importorskip(_package)

PYTHON_NOT_RUN = {
    "docs/extend/add-a-kernel.md": "files of a new primitive: tests/ops/test_recipe.py puts them into a checkout",
    "docs/extend/add-a-method.md": "files of a new method: tests/methods/test_recipe.py puts them into a checkout",
    "docs/extend/add-a-metric.md": "files of a new metric: tests/runs/test_new_metric.py puts them into place",
    "docs/extend/write-a-backend.md": "files of a package: tests/testing/test_backend_page.py installs it",
    "docs/guides/service.md": "reads what a service has answered: tests/serve/test_contract.py reads such answers",
}
"""Pages whose Python is of another kind than a program, and the reason."""

ONLY_PARSED = {
    r"^\w+=": "a variable before the command is for a process of its own",
    r"^fampe-fast (serve|warmup) ": "runs until it is asked to end; compiles for a minute",
    r" --engine ray": "needs a Ray cluster",
    r" s3://": "needs an object store",
    r" rows\.csv ": "a table of 5,000 photographs",
    r"^fampe-fast verify --record answer\.json": "reads what a service has answered",
    r"^fampe-fast (--help|--version)": "argparse ends the process",
}
"""Command lines that are read and not run, by a pattern, and the reason."""

SMALLER = {
    "--passes": 4, "--steps": 1, "--samples": 2, "--metric-steps": 4, "--metric-passes": 4, "--limit": 2,
    "--max-queries": 8, "--sample": 2, "--image-id": 1, "--seeds": 3,
    "--upper-cutoff": 30,
}  # fmt: skip
"""The largest value of an option in a test."""

ADDED = {
    "batch": "--decoders 0",
    "evaluate": "--metric-steps 4",
    "study": "--steps 1 --samples 1 --metric-steps 4 --limit 2",
    "tune": "--metric-steps 2",
    "calibrate": "--metric-steps 2 --limit 2",
    "frequency": "--passes 2 --limit 2",
    "gradients": "--limit 2",
    "spectra": "--size 64",
    "defend": f"--data textures {TINY_TRAINING}",
}
"""Options that a command gets besides its own, where they are not among them."""

WITH_PYTHON = [page for page in pages() if blocks(page, "python") and name_of(page) not in PYTHON_NOT_RUN]
PROGRAMS = ("awk", "cd", "curl", "docker", "echo", "export", "fampe-fast", "git", "mkdocs", "mypy", "pip", "pre-commit",
            "pytest", "python", "python3", "ray", "ruff", "uv", ".")  # fmt: skip


def command_lines(block: Block) -> list[str]:
    """Take the commands of ``fampe-fast`` in a block, each with the variables before it."""
    found = []
    for line in shell_lines(block):
        match = re.search(r"(?:^|&& )((?:\w+=\S+ )*fampe-fast .*)", line)
        found += [match[1]] if match else []
    return found


def only_parsed(line: str) -> bool:
    return any(re.search(pattern, line) for pattern in ONLY_PARSED)


def words_of(line: str) -> list[str]:
    """Split a command line; what stands before the command's name is left out."""
    words = shlex.split(line, comments=True)
    return words[words.index("fampe-fast") + 1 :]


def made_small(words: list[str]) -> list[str]:
    """Bring the numbers of a command line down to what a test has time for."""
    small = list(words)
    for k, word in enumerate(words[:-1]):
        if word in SMALLER:
            small[k + 1] = str(min(int(words[k + 1]), SMALLER[word]))
        if word == "--ids":
            small[k + 1] = "1,3"
    added = ADDED.get(words[0], "").split()
    for flag, value in zip(added[::2], added[1::2], strict=True):
        instead = {flag, "--metric-passes", "--metric"} if flag == "--metric-steps" else {flag}
        if not instead & set(words):
            small += [flag, value]
    return small


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture
def world(tmp_path: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files(tmp_path)
    small_models(monkeypatch, downloads)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FAMPE_FAST_BACKEND", raising=False)
    return tmp_path


def with_examples(page: Path) -> bool:
    runs = [line for block in blocks(page, "bash") for line in command_lines(block) if not only_parsed(line)]
    return page in WITH_PYTHON or bool(runs)


@pytest.mark.filterwarnings("default::fampe_fast.errors.FampeWarning")
@pytest.mark.parametrize("page", [page for page in pages() if with_examples(page)], ids=name_of)
@pytest.mark.usefixtures("world")
def test_the_examples_of_a_page_run(page: Path) -> None:
    """Python blocks share their names, and the commands the folder; each must end as its reader expects."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page, "python", "bash"):
        if block.language == "python" and page in WITH_PYTHON:
            # As many empty lines before it as on the page: a traceback names the page's line.
            code = compile("\n" * (block.line - 1) + block.text, block.page, "exec", dont_inherit=True)
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                exec(code, names)
        for line in command_lines(block) if block.language == "bash" else []:
            if not only_parsed(line):
                small = made_small(words_of(line))
                assert main(small) == DONE, f"{block.page}: {shlex.join(['fampe-fast', *small])}"


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
        assert words[0] in (*PROGRAMS, "base64", "chmod", "find", "sha256sum", "sort", "tr", "xargs"), f"{page}: {line}"
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
