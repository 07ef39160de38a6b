"""Run the code of a page as a reader would: in order, in a folder with the files that the page names."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from fampe_fast.cli import DONE, main
from fampe_fast.ops import backends
from fampe_fast.testing import registry

from .pages import Block, blocks, name_of, shell_lines
from .surroundings import small_models, write_files

PYTHON_NOT_RUN = {
    "docs/extend/add-a-kernel.md": "files of a new primitive: tests/ops/test_recipe.py puts them into a checkout",
    "docs/extend/add-a-method.md": "files of a new method: tests/methods/test_recipe.py puts them into a checkout",
    "docs/extend/add-a-metric.md": "files of a new metric: tests/runs/test_new_metric.py puts them into place",
    "docs/extend/write-a-backend.md": "files of a package: tests/testing/test_backend_page.py installs it",
    "docs/guides/service.md": "reads what a service has answered: tests/docs/test_service_page.py has one answer",
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

if importlib.util.find_spec("zarr") is None:  # on Python 3.10
    ONLY_PARSED[r" --to zarr"] = "zarr is not installed"

SMALLER = {
    "--passes": 4, "--steps": 1, "--samples": 2, "--metric-steps": 4, "--metric-passes": 4, "--limit": 2,
    "--max-queries": 8, "--sample": 2, "--image-id": 1, "--seeds": 3,
    "--upper-cutoff": 30,
}  # fmt: skip
"""The largest value of an option in a test."""

ADDED = {
    "demo": "--images 1",
    "evaluate": "--metric-steps 4",
    "study": "--steps 1 --samples 1 --metric-steps 4 --limit 2",
    "tune": "--metric-steps 2",
    "calibrate": "--metric-steps 2 --limit 2",
    "frequency": "--passes 2 --limit 2",
    "gradients": "--limit 2",
    "spectra": "--size 64",
    "defend": "--train-images 16 --test-images 8 --train-steps 1 --attack-steps 1 --adversarial-steps 1",
}
"""Options that a command gets besides its own, where they are not among them."""


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


def runs_python(page: Path) -> bool:
    return bool(blocks(page, "python")) and name_of(page) not in PYTHON_NOT_RUN


def has_examples(page: Path) -> bool:
    runs = [line for block in blocks(page, "bash") for line in command_lines(block) if not only_parsed(line)]
    return runs_python(page) or bool(runs)


@contextlib.contextmanager
def small_world(folder: Path, downloads: Path) -> Iterator[None]:
    """Work in a folder with the pages' files and small models.

    Args:
        folder: an empty one.
        downloads: a folder for the models' weights, which several worlds may share.
    """
    write_files(folder)
    with pytest.MonkeyPatch.context() as patch:
        small_models(patch, downloads)
        patch.chdir(folder)
        patch.delenv("FAMPE_FAST_BACKEND", raising=False)
        # A backend and a check that a page adds are forgotten with it.
        patch.setattr(backends, "_BACKENDS", dict(backends._BACKENDS))
        patch.setattr(registry, "_CHECKS", dict(registry._CHECKS))
        # Images are decoded in this process: starting others takes longer than all else.
        patch.setattr("fampe_fast.batch.worker.usual_processes", lambda device: 0)
        patch.setattr("fampe_fast.batch.local.usual_processes", lambda device, devices: 0)
        yield
    backends._choice.cache_clear()
    backends._resolve.cache_clear()


def run_page(page: Path) -> None:
    """Run a page's blocks: the Python ones share their names, and the commands the folder; each must succeed."""
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page, "python", "bash"):
        if block.language == "python" and runs_python(page):
            # As many empty lines before it as on the page: a traceback names the page's line.
            code = compile("\n" * (block.line - 1) + block.text, block.page, "exec", dont_inherit=True)
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                exec(code, names)
        for line in command_lines(block) if block.language == "bash" else []:
            if not only_parsed(line):
                small = made_small(words_of(line))
                assert main(small) == DONE, f"{block.page}: {shlex.join(['fampe-fast', *small])}"
