"""Time from the start of Python to the first map, part by part, in fresh processes.

    python -m benchmarks.end_to_end.cold_start [--model mobilenetv2_100] [--compile off on] ... --out results

Every way runs twice, with the compilers' caches empty and with what the first run left there, and in each with and
without ``warmup``. Medians over the repetitions, in seconds; the second map shows what is left when all is warm.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fampe_fast.cli.arguments import positive

from ..common.command import add_device
from ..common.results import table, write

PARTS = ("import torch", "import fampe_fast", "load the model", "warmup", "first map", "second map")

_SCRIPT = """
import json, sys, time
asked = json.loads(sys.argv[1])
times, last = {}, time.perf_counter()

def part(name):
    global last
    now = time.perf_counter()
    times[name] = now - last
    last = now

import torch
part("import torch")
import fampe_fast
from fampe_fast import FAMPE, load_classifier, load_embedded_classifier, warmup
part("import fampe_fast")
if asked["threads"]:
    torch.set_num_threads(asked["threads"])
device = torch.device(asked["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))
if asked["model"] == "embedded":
    model = load_embedded_classifier(device)
else:
    model = load_classifier(asked["model"], pretrained=False, device=device)
part("load the model")
method = FAMPE(model, steps=asked["steps"], samples=asked["samples"], compile=asked["compile"])
if asked["warmup"]:
    warmup(method)
part("warmup")
image = torch.rand(1, 3, *model.input_size, device=device)
for name in ("first map", "second map"):
    method.attribute(image, 0)
    if device.type == "cuda":
        torch.cuda.synchronize()
    part(name)
print(json.dumps({"times": times, "device": str(device), "torch": torch.__version__}))
"""


@dataclass(frozen=True)
class Start:
    """One way; seconds by part, a list per repetition."""

    compile: str
    warmup: bool
    cached: bool
    seconds: dict[str, list[float]]

    def median(self, part: str) -> float:
        """Take it over the repetitions."""
        return statistics.median(self.seconds[part])


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="Seconds from the start of Python to the first map.")
    found.add_argument("--model", default="mobilenetv2_100", help="timm name, or 'embedded'; random weights")
    found.add_argument("--compile", nargs="+", default=["off"], choices=("auto", "off", "on", "graphs"))
    found.add_argument("--steps", type=positive, default=10, help="T (%(default)s)")
    found.add_argument("--samples", type=positive, default=20, help="N (%(default)s)")
    found.add_argument("--repetitions", type=positive, default=3, help="runs of each way (%(default)s)")
    add_device(found)
    found.add_argument("--out", type=Path, required=True, help="folder of cold_start.json and cold_start.md")
    return found


def main(given: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(given)
    rows, machine = [], {}
    for compiled in arguments.compile:
        for warm in (False, True):
            runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
            for _ in range(arguments.repetitions):
                with tempfile.TemporaryDirectory() as caches:
                    for cached in (False, True):
                        machine = start(arguments, compiled, warm, Path(caches))
                        runs[cached].append(machine.pop("times"))
            for cached, found in runs.items():
                row = Start(compiled, warm, cached, {part: [run[part] for run in found] for part in PARTS})
                rows.append(row)
                print(", ".join(cells(row)), flush=True)
    rows.sort(key=lambda row: (row.compile, row.cached))
    what = (
        f"{arguments.model} on {machine['device']}, torch {machine['torch']}, one image, T = {arguments.steps}, "
        f"N = {arguments.samples}; medians of {arguments.repetitions}, in seconds."
    )
    text = "\n".join([what, "", *table(["compile", "caches", "warmup()", *PARTS], map(cells, rows), left=3)]) + "\n"
    write({"what": what, "rows": rows}, arguments.out / "cold_start.json", text)
    print(f"\n{text}")
    return 0


def start(arguments: argparse.Namespace, compiled: str, warm: bool, caches: Path) -> dict[str, object]:
    """Time the parts in a process of its own, whose compilers keep what they make under ``caches``."""
    asked = {name: getattr(arguments, name) for name in ("model", "steps", "samples", "device", "threads")}
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps({**asked, "compile": compiled, "warmup": warm})],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"a run failed:\n{done.stderr[-2000:]}")
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def cells(row: Start) -> list[str]:
    medians = (f"{row.median(part):.2f}" for part in PARTS)
    return [row.compile, "filled" if row.cached else "empty", "yes" if row.warmup else "no", *medians]


if __name__ == "__main__":
    sys.exit(main())
