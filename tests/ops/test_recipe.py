"""The recipe docs/extend/add-a-kernel.md, walked on the primitive it shows and counted on existing ones."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..recipes_for_tests import ROOT, read_recipe

PARTS = ("benchmarks", "docs", "fampe_fast", "kernels", "reference", "tests", "pyproject.toml")
RECIPE, FILES, BLOCKS = read_recipe("add-a-kernel")
TABLE, ROWS = FILES[3], FILES[4]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the recipe's files, and no other change."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)
    for name in FILES[:3]:
        assert not (folder / name).exists()
        (folder / name).write_text(BLOCKS[name])
    table = (folder / TABLE).read_text().replace("__all__ = [\n", '__all__ = [\n    "blend",\n')
    (folder / TABLE).write_text(table + BLOCKS[TABLE])
    rows = (folder / ROWS).read_text().replace("\nPRIMITIVES = (\n", f"\nPRIMITIVES = (\n    {BLOCKS[ROWS].strip()},\n")
    (folder / ROWS).write_text(rows)
    return folder


def run_tests(checkout: Path, *paths: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", "blend", *paths]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("triton_runs")
def test_the_recipe_is_enough(checkout: Path) -> None:
    """The new primitive is dispatched, checked as an operator, compiled, measured, and tested by the suite."""
    code, text = run_tests(checkout, "tests/ops/test_ops.py", "tests/testing", "tests/benchmarks/test_kernels.py")
    assert code == 0, text
    for backend in ("reference", "triton"):
        for test in ("opcheck", "gradcheck", "gradients_are_those_of_the_reference"):
            assert f"test_{test}[{backend}-blend] PASSED" in text
        assert f"test_operators_are_traced_without_a_break[{backend}-blend] PASSED" in text
    assert "[triton-blend_is_as_accurate_as_the_reference-12x20] PASSED" in text
    assert "[triton-blend_depends_on_neither_strides_nor_run-9x12] PASSED" in text
    assert "test_the_reference_passes_every_check[blend] PASSED" in text
    assert "test_a_fault_is_caught[blend: last column unwritten] PASSED" in text
    assert "test_the_real_forms_are_the_reference[blend] PASSED" in text


@pytest.mark.slow
@pytest.mark.usefixtures("triton_runs")
def test_a_fault_in_the_new_kernel_is_found(checkout: Path) -> None:
    kernel = checkout / FILES[1]
    right = kernel.read_text()
    wrong = right.replace("first + share * (second - first)", "first + share * second")
    assert wrong.count("first + share * second,") == 1
    try:
        kernel.write_text(wrong)
        code, text = run_tests(checkout, "tests/testing/test_equivalence.py")
    finally:
        kernel.write_text(right)
    assert code == 1, text
    assert "[triton-blend_is_as_accurate_as_the_reference-12x20] FAILED" in text


def names_in(code: str) -> set[str]:
    """Every name of a module, and every string that may be one."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        for field in ("id", "attr", "name", "module", "arg", "value"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                found |= set(value.split("."))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "op", ["accumulate", "combine_layers", "pixel_mask", "energy_cutoff", "gradient_step", "layer_evidence"]
)
def test_a_primitive_is_named_in_the_files_of_the_recipe_alone(op: str) -> None:
    """Apart from who calls it, and tests of what it alone does."""
    folders = [ROOT / name for name in ("kernels", "reference", "fampe_fast/ops", "fampe_fast/testing")]
    files = [path for folder in folders for path in folder.rglob("*.py")] + [ROOT / ROWS]
    naming = [path.relative_to(ROOT).as_posix() for path in files if op in names_in(path.read_text())]
    assert sorted(naming) == sorted(name.replace("blend", op) for name in FILES)


def test_the_number_in_the_text_is_that_of_the_list() -> None:
    assert re.findall(r"\*\*(\d+) files\*\*", RECIPE) == [str(len(FILES))]
    assert len(FILES) <= 6
    assert set(BLOCKS) == set(FILES)
