"""Run commands in processes of their own that begin at once.

They are forks of one process that has imported everything, has computed nothing and so has no thread.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

# What a command imports when it runs.
import fampe_fast.methods
import fampe_fast.models.loading
import fampe_fast.plots
import fampe_fast.runs.attack
import fampe_fast.runs.defence_seeds
import fampe_fast.runs.evaluate
import fampe_fast.runs.explain
import fampe_fast.runs.frequency
import fampe_fast.runs.occlude
import fampe_fast.runs.study
import fampe_fast.runs.tune  # noqa: F401
from fampe_fast.cli import main


def start(arguments: list[str], errors: Path, prepare: Callable[[], object] | None = None) -> BaseProcess:
    """Start a command in a process that calls ``prepare`` before; its standard error goes to a file."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    process = context.Process(target=_run, args=(arguments, errors, prepare), daemon=True)
    process.start()
    return process


def _run(arguments: list[str], errors: Path, prepare: Callable[[], object] | None) -> None:
    for number, path in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    torch.set_num_threads(1)
    if prepare:
        prepare()
    sys.exit(main(arguments))
