"""Walk the recipe docs/extend/add-a-method.md on the method it shows, and hold its number of files."""

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

from ..images_for_tests import draw
from ..recipes_for_tests import ROOT, read_recipe

RECIPE, FILES, BLOCKS = read_recipe("add-a-method")
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


USES = """
import contextlib, io, json, sys
from pathlib import Path
from fampe_fast.cli import main
from fampe_fast.models import load_classifier
from fampe_fast.runs.measurement import Measurement
from fampe_fast.runs.study import run_study
from fampe_fast.runs.study_design import Study, Variant

photos, model, out = sys.argv[1:]
said = {}

def call(name, *words):
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        assert main(words) == 0
    said[name] = printed.getvalue()

for command in ("explain", "evaluate", "tune"):
    call(f"{command} --help", command, "--help")
given = (photos, "--model", model, "--method", "brightness,forgrad_brightness", "--gamma", "2", "--dark", "--out")
call("explain", "explain", *given, f"{out}/explain")
call("evaluate", "evaluate", *given, f"{out}/evaluate", "--metric-steps", "3")
call("tune", "tune", photos, "--model", model, "--method", "brightness", "--metric-steps", "2", "--out", f"{out}/tune")
variants = (Variant("bright", "brightness"), Variant("dark", "brightness", {"dark": True}))
paths = sorted(Path(photos).glob("*.png"))
few = Measurement(options={"insertion_deletion": {"steps": 3}})
light = Study("light", "Bright or dark?", variants)
run_study(light, load_classifier(model), paths, Path(out, "study"), measurement=few)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def used(checkout: Path, model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    """What the commands print of it, and the folder of what they write."""
    photos, out = draw(tmp_path_factory.mktemp("given") / "photos", 2), tmp_path_factory.mktemp("out")
    said: dict[str, str] = json.loads(run(checkout, "-c", USES, str(photos), str(model_file), str(out)))
    return said, out


def run(checkout: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_its_own_test_and_those_of_every_method_s_flags_pass(checkout: Path) -> None:
    pytest.importorskip("captum")
    run(
        checkout, "-m", "pytest", "-q", "-p", "no:cacheprovider", TEST, "tests/cli/test_cli_flags.py",
        "-k", "bright or field or methods_own or says_what_it_is",
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", ["explain", "evaluate", "tune"])
def test_its_options_are_flags_with_help(command: str, used: tuple[dict[str, str], Path]) -> None:
    text = " ".join(used[0][f"{command} --help"].split())
    assert "saliency, brightness" in text or "brightness, fampe" in text
    assert "options of Brightness: --gamma X exponent of the brightness, above 0 (default: 1)" in text
    assert "--dark, --no-dark rank dark pixels first (default: off)" in text


@pytest.mark.slow
def test_it_is_explained_with(used: tuple[dict[str, str], Path]) -> None:
    with np.load(used[1] / "explain" / "brightness" / "object_0.npz") as archive:
        np.testing.assert_allclose(archive["map"][0], -(archive["image"].mean(0) ** 2), rtol=1e-5)
        assert json.loads(str(archive["settings"]))["config"] == {"gamma": 2.0, "dark": True}
    with np.load(used[1] / "explain" / "forgrad_brightness" / "object_0.npz") as archive:
        assert json.loads(str(archive["settings"]))["map_cutoff"] == 15


@pytest.mark.slow
def test_it_is_evaluated_tuned_and_studied_with(used: tuple[dict[str, str], Path]) -> None:
    said, out = used
    assert "ins. vs brightness" in said["evaluate"]
    scores = json.loads((out / "evaluate" / "scores.json").read_text())
    assert scores["methods"]["brightness"]["config"] == {"gamma": 2.0, "dark": True}
    assert set(scores["summary"]) == {"brightness", "forgrad_brightness"}
    assert "--method forgrad_brightness" in said["tune"]
    study = json.loads((out / "study" / "study.json").read_text())
    assert [outcome["variant"] for outcome in study["outcomes"]] == ["bright", "dark"]
    assert study["outcomes"][0]["insertion"] != study["outcomes"][1]["insertion"]


def test_the_number_in_the_text_is_that_of_the_list() -> None:
    assert re.findall(r"\*\*(\d+) files\*\*", RECIPE) == [str(len(FILES))]
    assert len(FILES) <= 3
    assert set(BLOCKS) == set(FILES)
