"""The backend of docs/extend/write-a-backend.md: installed, run by its name, and held to the public suite."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ..recipes_for_tests import ROOT, read_recipe

PAGE, _, BLOCKS = read_recipe("write-a-backend")
MODULE, PROJECT = BLOCKS
SUITE = re.findall(r"^python -m (pytest .*fampe_fast.testing.suite .*)$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the page's package as pip installs it."""
    folder = tmp_path_factory.mktemp("backend")
    for name, content in BLOCKS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    # Nothing is fetched: what builds it and what it needs is installed.
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(folder / "site"), str((folder / MODULE).parent)], check=True)
    return folder / "site"


def run(site: Path, *words: str, backend: str = "auto") -> tuple[int, str]:
    path = os.pathsep.join([str(site), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "FAMPE_FAST_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, *words], cwd=site, env=environment, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


def suite(site: Path, *options: str) -> tuple[int, str]:
    (command,) = SUITE
    return run(site, "-m", *shlex.split(command), "-p", "no:cacheprovider", "--fampe-device", "cpu", *options)


@pytest.mark.slow
def test_the_backend_passes_the_suite(site: Path) -> None:
    code, text = suite(site, "-v")
    assert code == 0, text
    assert "backend mine on cpu, its own: accumulate, layer_evidence" in text
    assert "mine-accumulate_adds_rows_in_their_order-9x12-batch3-rows17] PASSED" in text
    assert "mine-layer_evidence_adds_halves_in_float32-9x8-channels3] PASSED" in text
    assert "FAILED" not in text


@pytest.mark.parametrize(
    ("right", "wrong", "check"),
    [
        ("image_index.numpy(), gradient.to(total.dtype)", "image_index.numpy()[::-1], gradient.to(total.dtype).flip(0)",
         "accumulate_adds_rows_in_their_order"),
        ("activation.to(torch.float64,", "activation.to(activation.dtype,", "layer_evidence_adds_halves_in_float32"),
    ],
    ids=["another order", "sums of halves"],
)  # fmt: skip
def test_a_fault_in_the_backend_is_found(site: Path, right: str, wrong: str, check: str) -> None:
    module = site / "my_backend.py"
    code = module.read_text()
    assert code.count(right) == 1
    try:
        module.write_text(code.replace(right, wrong))
        exit_code, text = suite(site, "-k", check)
    finally:
        module.write_text(code)
    assert exit_code == 1, text
    assert f"mine-{check}" in text


PROGRAM = """
import os

import my_backend, torch
from fampe_fast import FAMPE, load_embedded_classifier
from fampe_fast.images.generated import generate
from fampe_fast.ops.backends import choice

assert choice("cpu") == ("mine", "FAMPE_FAST_BACKEND selects it")
calls = []
for name in ("accumulate", "layer_evidence"):
    def counted(*arguments, name=name, plain=getattr(my_backend, name)):
        calls.append(name)
        return plain(*arguments)
    setattr(my_backend, name, counted)
my_backend.register()
model, images = load_embedded_classifier(), generate(1, size=64).images
method = FAMPE(model, passes=10, compile="off")
mine = method.attribute(images, 0)
assert set(calls) == {"accumulate", "layer_evidence"}
os.environ["FAMPE_FAST_BACKEND"] = "reference"
expected = method.attribute(images, 0)
assert torch.corrcoef(torch.stack([mine.flatten(), expected.flatten()]))[0, 1] > 0.9999
print("the same map")
"""


@pytest.mark.slow
def test_it_is_found_by_its_name_and_makes_the_map(site: Path) -> None:
    assert run(site, "-c", PROGRAM, backend="mine") == (0, "the same map\n")
    code, text = run(site, "-m", "fampe_fast", "explain", "nothing.png", "--device", "cpu", backend="mime")
    assert code == 2
    assert "'mime': unknown; known are auto, triton, compiled, reference" in text


def test_the_page_names_the_primitives_and_choices_that_there_are() -> None:
    from fampe_fast.ops import backends, primitives

    assert re.findall(r'"(\w+)": \1', BLOCKS[MODULE]) == ["accumulate", "layer_evidence"]
    assert {"accumulate", "layer_evidence"} <= set(primitives.__all__)
    (choices,) = re.findall(r"chooses the backend of a process: (.*?), or a name", PAGE)
    assert set(re.findall(r"`(\w+)`", choices)) == {"auto", *list(backends._BACKENDS)[:3]}
