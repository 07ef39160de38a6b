"""Share what the commands have in common: options, the folder of the results, lines of progress."""

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
    """Add which classifier runs on which images, and where."""
    group = parser.add_argument_group("model and images")
    group.add_argument("--model", default="resnet50", help="timm name, torchvision/NAME, ... or 'embedded'")
    group.add_argument("--weights", help="local checkpoint; without one the weights are random, which costs the same")
    group.add_argument("--model-arg", action="append", default=[], type=key_value, metavar="KEY=VALUE")
    group.add_argument("--mean", type=numbers, help="one number or three, comma-separated")
    group.add_argument("--std", type=numbers, help="one number or three, comma-separated")
    group.add_argument("--images", help="a folder (default: noise, which costs the same)")
    add_device(group)


def add_device(group: argparse._ActionsContainer) -> None:
    """Add where it runs; ``device_of`` reads it."""
    group.add_argument("--device", help="default: a GPU if there is one")
    group.add_argument("--threads", type=positive, help="of torch on the CPU")


def device_of(found: argparse.Namespace) -> torch.device:
    """Return the device that was asked for, and set torch's threads."""
    import torch

    if found.threads:
        torch.set_num_threads(found.threads)
    return torch.device(found.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def add_output(group: argparse._ActionsContainer, files: str) -> None:
    """Add the folder of some files and the choice of a dry run; ``output_folder`` reads them."""
    group.add_argument("--out", type=Path, help=f"folder of {files} (default: {RESULTS.relative_to(ROOT)})")
    group.add_argument("--dry-run", action="store_true", help="the same at toy sizes on the CPU, to see it complete")


def output_folder(parser: argparse.ArgumentParser, found: argparse.Namespace) -> Path:
    """Return the folder to write to: without ``--out`` that of the measurements, and a new one for a dry run.

    Raises:
        SystemExit: the figures of a dry run would be written among measurements.
    """
    if not found.dry_run:
        return found.out or RESULTS
    if found.out is not None and found.out.resolve() == RESULTS:
        parser.error("a dry run is no measurement: give --out another folder than that of the measurements")
    return found.out or Path(tempfile.mkdtemp(prefix="fampe_fast_dry_run_"))


def stopwatch() -> Say:
    """Return a function that prints a line with the seconds since now before it."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {text}", flush=True)

    return say


def file_name(*parts: str) -> str:
    """Join words by underscores, in small letters and digits."""
    return "_".join(re.findall(r"[a-z0-9]+", " ".join(parts).lower()))
