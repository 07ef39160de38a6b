"""Provide what all commands need: common options, the results folder, progress lines."""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fampe_fast.cli.arguments import key_value, numbers, positive

from .. import ROOT

if TYPE_CHECKING:
    import torch

RESULTS = ROOT / "benchmarks" / "results"
"""The default folder of measurements; a dry run does not write there."""

Say = Callable[[str], None]


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of classifier, images and device."""
    group = parser.add_argument_group("model and images")
    group.add_argument("--model", default="resnet50", help="timm name, torchvision/NAME, ... or 'embedded'")
    group.add_argument("--weights", help="local checkpoint (default: random weights, which take the same time)")
    group.add_argument("--model-arg", action="append", default=[], type=key_value, metavar="KEY=VALUE")
    group.add_argument(
        "--mean", type=numbers, help="mean subtracted from the pixels, one number or three, comma-separated"
    )
    group.add_argument("--std", type=numbers, help="divisor of the pixels, one number or three, comma-separated")
    group.add_argument("--images", help="a folder of images (default: noise, which takes the same time)")
    add_device(group)


def add_device(group: argparse._ActionsContainer) -> None:
    """Add the options of the device, which ``device_of`` reads."""
    group.add_argument("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    group.add_argument("--threads", type=positive, help="torch's threads on the CPU")


def device_of(found: argparse.Namespace) -> torch.device:
    """Return the chosen device, and set torch's number of threads."""
    import torch

    if found.threads:
        torch.set_num_threads(found.threads)
    return torch.device(found.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def add_output(group: argparse._ActionsContainer, files: str) -> None:
    """Add the options --out and --dry-run, which ``output_folder`` reads."""
    group.add_argument("--out", type=Path, help=f"folder of {files} (default: {RESULTS.relative_to(ROOT)})")
    group.add_argument(
        "--dry-run", action="store_true", help="run everything at toy sizes on the CPU, to check that the command works"
    )


def output_folder(parser: argparse.ArgumentParser, found: argparse.Namespace) -> Path:
    """Return the folder to write to: without ``--out`` that of the measurements, and a new one for a dry run.

    Raises:
        SystemExit: the figures of a dry run would be written to the measurements' folder.
    """
    if not found.dry_run:
        return found.out or RESULTS
    if found.out is not None and found.out.resolve() == RESULTS:
        parser.error("a dry run is not a measurement: choose another --out than the folder of the measurements")
    return found.out or Path(tempfile.mkdtemp(prefix="fampe_fast_dry_run_"))


def stopwatch() -> Say:
    """Return a function that prints a line of text after the seconds since this call."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {text}", flush=True)

    return say


def file_name(*parts: str) -> str:
    """Join words by underscores, in small letters and digits."""
    return "_".join(re.findall(r"[a-z0-9]+", " ".join(parts).lower()))
