"""The recipe docs/extend/add-a-metric.md: a module and a row of the catalog, and both commands take the metric."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from fampe_fast import catalog, options
from fampe_fast.catalog import METRICS, MetricRow
from fampe_fast.cli import DONE, main

from ..images_for_tests import draw
from ..recipes_for_tests import ROOT, read_recipe

RECIPE, FILES, BLOCKS = read_recipe("add-a-metric")
MODULE, ROWS, TEST = FILES
ROW: MetricRow = eval(f"{{{BLOCKS[ROWS]}}}", vars(catalog))["moment"]


def name_of(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def module_of(path: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a block of the page under the name that its file would have."""
    name = name_of(path)
    (folder / "module.py").write_text(BLOCKS[path])
    spec = importlib.util.spec_from_file_location(name, folder / "module.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def added(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the page's metric to the package and to its catalog."""
    module_of(MODULE, tmp_path_factory.mktemp("metric"), monkeypatch)
    tree = options._tree  # options are read from the package's files, where the page's is not
    added = {name_of(MODULE): ast.parse(BLOCKS[MODULE])}
    monkeypatch.setattr(options, "_tree", lambda module: added.get(module) or tree(module))
    monkeypatch.setitem(METRICS, "moment", ROW)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw(tmp_path / "photos", 2, seed=11, name="{}.png")


# The model file has no layers, and does not say its size.
QUICK = ["--steps", "1", "--samples", "1", "--views", "0", "--limit", "2", "--input-size", "64"]


def test_evaluate_measures_it(photos: Path, model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    words = ["evaluate", str(photos), "--model", str(model_file), "--out", str(out), *QUICK]
    assert main([*words, "--metric", "moment,insertion_deletion", "--metric-steps", "2"]) == DONE
    printed = capsys.readouterr().out
    for word in ("moment", "mom. vs fampe", ROW.reading, "ins. - del."):
        assert word in printed
    written = json.loads((out / "scores.json").read_text())
    assert written["metrics"]["moment"] == {"power": 1.0, "absolute": True}
    for image in written["images"]:
        assert 0 < image["moment"]["fampe"] < 2**0.5
    assert written["summary"]["attexplore"]["moment_minus_first"]["n"] == 2
    with Image.open(out / "contact_sheet.png") as sheet:
        sheet.verify()


def test_its_options_are_flags_of_both_commands(photos: Path, model_file: Path, tmp_path: Path) -> None:
    given = ["--model", str(model_file), "--metric", "moment", "--moment-power", "2", "--no-moment-absolute", *QUICK]
    study = ["study", "methods", "--variant", "fampe, path"]  # the model file, a program, has no layers
    for command, name in ((["evaluate"], "scores.json"), (study, "study.json")):
        out = tmp_path / command[0]
        assert main([*command, str(photos), *given, "--out", str(out)]) == DONE
        assert json.loads((out / name).read_text())["metrics"] == {"moment": {"power": 2.0, "absolute": False}}


def test_its_options_are_checked_before_work(photos: Path, tmp_path: Path) -> None:
    from fampe_fast.runs.measurement import Measurement

    assert Measurement(("moment",), {"moment": {"power": 2}}).options["moment"]["power"] == 2
    with pytest.raises(ValueError, match="moment: power must be finite and above 0, got -1"):
        Measurement(("moment",), {"moment": {"power": -1}})
    with pytest.raises(TypeError, match="power must be a number, got 'two'"):
        Measurement(("moment",), {"moment": {"power": "two"}})
    with pytest.raises(ValueError, match=r"no option\(s\) exponent; known: power, absolute"):
        Measurement(("moment",), {"moment": {"exponent": 2}})
    with pytest.raises(ValueError, match="options of moment, but only insertion_deletion will be measured"):
        Measurement(options={"moment": {"power": 2}})


def test_its_own_tests_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [test for name, test in vars(module_of(TEST, tmp_path, monkeypatch)).items() if name.startswith("test_")]
    assert len(found) == 2
    for test in found:
        test()


def test_a_metric_is_named_by_as_many_files_as_the_page_says() -> None:
    assert f"**{len(FILES)} files**" in RECIPE
    assert set(BLOCKS) == set(FILES)
    for name in ("mu_fidelity", "stability"):
        assert all((ROOT / path.replace("moment", name)).is_file() for path in FILES)
        # The rooms above the metrics, which measure, record, print and draw them, know none by name.
        above = [path for room in ("runs", "cli", "plots") for path in (ROOT / "fampe_fast" / room).rglob("*.py")]
        assert not [path.name for path in above if re.search(rf"\b{name}\b", path.read_text())]
