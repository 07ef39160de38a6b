"""Walk the recipe "Add a method" of CONTRIBUTING.md on the method it shows, and hold its number of files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fampe_fast.images.generated import generate

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Add a method\n")[2].partition("\n## ")[0]
FILES = tuple(re.findall(r"^\d+\. `([^`]+)`", RECIPE, re.MULTILINE))
BLOCKS = dict(re.findall(r"^`([^`]+)`[^\n]*\n\n```python\n(.*?)```$", RECIPE, re.MULTILINE | re.DOTALL))
MODULE, ROWS, TEST = FILES
HEAD = "PLAIN_METHODS: dict[str, MethodRow] = {\n"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the recipe's files, and no other change."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in ("fampe_fast", "kernels", "reference", "tests"):
        shutil.copytree(ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, folder / part)
    shutil.copytree(ROOT / "docs", folder / "docs")
    for name in (MODULE, TEST):
        assert not (folder / name).exists()
        (folder / name).write_text(BLOCKS[name])
    rows = (folder / ROWS).read_text()
    assert rows.count(HEAD) == 1
    (folder / ROWS).write_text(rows.replace(HEAD, HEAD + BLOCKS[ROWS]))
    return folder


def run(checkout: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "COLUMNS": "160"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for k, image in enumerate(generate(2, seed=5).images):
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / f"object_{k}.png")
    return folder


def test_its_own_test_and_those_of_all_methods_pass(checkout: Path) -> None:
    pytest.importorskip("captum")
    run(
        checkout,
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        TEST,
        "tests/cli/test_cli_flags.py",
        "-k",
        "not documentation",
    )


def test_its_options_are_flags_with_help(checkout: Path) -> None:
    for command in ("explain", "evaluate", "tune"):
        text = " ".join(run(checkout, "fampe_fast", command, "--help").split())
        assert "brightness" in text
        assert "options of Brightness: --gamma X exponent of the brightness, above 0 (default: 1)" in text
        assert "--dark, --no-dark rank dark pixels first (default: off)" in text


def test_it_is_explained_with(checkout: Path, photos: Path, model_file: Path, tmp_path: Path) -> None:
    given = ["--model", str(model_file), "--method", "brightness,forgrad_brightness", "--gamma", "2", "--dark"]
    run(checkout, "fampe_fast", "explain", str(photos), *given, "--out", str(tmp_path))
    with np.load(tmp_path / "brightness" / "object_0.npz") as archive:
        np.testing.assert_allclose(archive["map"][0], -(archive["image"].mean(0) ** 2), rtol=1e-5)
        assert json.loads(str(archive["settings"]))["config"] == {"gamma": 2.0, "dark": True}
    with np.load(tmp_path / "forgrad_brightness" / "object_0.npz") as archive:
        assert json.loads(str(archive["settings"]))["map_cutoff"] == 15


def test_it_is_evaluated_with(checkout: Path, photos: Path, model_file: Path, tmp_path: Path) -> None:
    given = ["--model", str(model_file), "--method", "brightness,fampe", "--steps", "1", "--samples", "1"]
    table = run(checkout, "fampe_fast", "evaluate", str(photos), *given, "--metric-steps", "3", "--out", str(tmp_path))
    assert "brightness" in table
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores["summary"]) == {"brightness", "fampe"}
    assert scores["methods"]["brightness"]["config"] == {"gamma": 1.0, "dark": False}


STUDY = """
import sys
from pathlib import Path
from fampe_fast.models import load_classifier
from fampe_fast.runs.study import run_study
from fampe_fast.runs.study_design import Study, Variant

variants = (Variant("bright", "brightness"), Variant("dark", "brightness", {"dark": True}))
paths = sorted(Path(sys.argv[1]).glob("*.png"))
result = run_study(Study("light", "Bright or dark?", variants), load_classifier(sys.argv[2]), paths, Path(sys.argv[3]))
print([outcome.variant.label for outcome in result.outcomes])
"""


def test_it_is_studied_with(checkout: Path, photos: Path, model_file: Path, tmp_path: Path) -> None:
    (checkout / "study_of_light.py").write_text(STUDY)
    assert run(checkout, "study_of_light", str(photos), str(model_file), str(tmp_path)).strip() == "['bright', 'dark']"


def test_the_number_in_the_text_is_that_of_the_list() -> None:
    assert re.findall(r"\*\*(\d+) files\*\*", RECIPE) == [str(len(FILES))]
    assert len(FILES) <= 3
    assert set(BLOCKS) == set(FILES)
