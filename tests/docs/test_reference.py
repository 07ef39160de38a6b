"""The reference says what the code does: public names, environment variables, files that commands write, exit codes."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from fampe_fast.cli import DONE, INTERRUPTED, SOME_FAILED, UNUSABLE

from .pages import DOCS, ROOT, blocks, help_texts, pages, tables
from .running import run_page, small_world

API = sorted((DOCS / "reference" / "api").glob("*.md"))
PACKAGES = ("", "images", "frequency", "models", "metrics", "methods", "robustness", "plots", "testing", "ops")


def public_names() -> set[tuple[str, str]]:
    """List the names of the documented packages, each with the package that gives it."""
    found = set()
    for package in PACKAGES:
        module = importlib.import_module(".".join(filter(None, ("fampe_fast", package))))
        found |= {(package, name) for name in getattr(module, "__all__", None) or module.primitives.__all__}
    return found


def test_every_public_name_has_an_entry_in_the_reference() -> None:
    entries = {
        entry.rpartition(".")[2]
        for page in API
        for entry in re.findall(r"^::: fampe_fast\.([\w.]+)$", page.read_text(), re.MULTILINE)
    }
    assert not {f"{package}.{name}" for package, name in public_names() if name not in entries}


def test_every_entry_of_the_reference_has_an_example() -> None:
    """In a page's Python, the README's or an example's."""
    code = [block.text for page in pages() for block in blocks(page, "python")]
    code += [path.read_text() for path in sorted((ROOT / "examples").rglob("*.py"))]
    words = set(re.findall(r"\w+", "\n".join(code)))
    assert not {name for _, name in public_names() if name not in words}


# Environment variables ------------------------------------------------------------------------------------------------

VARIABLES = DOCS / "reference" / "environment-variables.md"


def code_of(*folders: str) -> str:
    files = [
        path for folder in folders for path in sorted((ROOT / folder).rglob("*")) if path.suffix in (".py", ".yaml")
    ]
    return "\n".join(path.read_text() for path in [*files, ROOT / ".ci" / "run"])


def test_every_variable_of_the_package_is_in_the_reference_and_no_other() -> None:
    code = code_of("fampe_fast", "kernels", "reference", "benchmarks", "tests", "deploy")
    own = set(re.findall(r"\bFAMPE_FAST_[A-Z_]+[A-Z]\b", code))
    assert {"FAMPE_FAST_BACKEND", "FAMPE_FAST_CI_ENV"} <= own
    assert own == {name for names in tables(VARIABLES).values() for name in names if name.startswith("FAMPE_FAST_")}


def test_every_variable_of_others_that_the_package_reads_is_in_the_reference() -> None:
    read = re.findall(r"environ(?:\.get|\.setdefault|\.pop)?[(\[]\"([A-Z_]+)\"", code_of("fampe_fast", "kernels"))
    assert len(set(read)) > 3
    assert set(read) <= set(re.findall(r"`([A-Z_]+)`", VARIABLES.read_text()))


# Exit codes -----------------------------------------------------------------------------------------------------------


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    text = (DOCS / "reference" / "exit-codes.md").read_text()
    table = text.partition("\n\n")[2].partition("\n\n")[0]
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert codes == [DONE, SOME_FAILED, UNUSABLE, INTERRUPTED]
    named = {name for row in re.findall(r"^\| (`[^|]+) \|", text, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named <= set(help_texts())


# Files ----------------------------------------------------------------------------------------------------------------

FORMATS = DOCS / "reference" / "output-formats.md"


def test_every_command_has_its_files_in_the_reference() -> None:
    headings = set(re.findall(r"^## (\w+)$", FORMATS.read_text(), re.MULTILINE))
    assert headings == {name for name in help_texts() if name}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the examples of the page of the commands have run."""
    for package in ("captum", "pytorch_grad_cam", "pyarrow", "sklearn"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("commands")
    with small_world(folder, tmp_path_factory.mktemp("downloads")):
        run_page(DOCS / "reference" / "commands.md")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("default::fampe_fast.errors.FampeWarning")
def test_the_fields_in_the_reference_are_exactly_those_that_are_written(written: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")

    def content(path: str) -> dict[str, object]:
        found: dict[str, object] = json.loads((written / path).read_text())
        return found

    def entry(path: str) -> set[str]:
        (found,) = (value for name, value in content(path).items() if name != "fampe_fast")
        assert isinstance(found, dict)
        return set(found)

    with np.load(written / "explained" / "cat.npz") as archive:
        arrays = set(archive.files)
        rows = FORMATS.read_text().partition("### NAME.npz")[2].partition("\n## ")[0]
        for name, described in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", rows, re.MULTILINE):
            kind = "text" if archive[name].dtype.kind == "U" else str(archive[name].dtype)
            assert described.split(", ")[0].split(" (")[0] == kind, name
            assert ("(C, H, W)" in described) == (archive[name].ndim == 3), name
    scores = set(content("fampe_evaluate/scores.json"))
    actual = {
        "NAME.npz": arrays,
        "scores.json": scores,
        "study.json": set(content("fampe_study_alpha/study.json")) - scores,
        "An entry of cutoffs.json": entry("fampe_tune/cutoffs.json"),
        "An entry of calibrations.json": entry("fampe_calibrate/calibrations.json"),
        "frequency.json": set(content("fampe_frequency/frequency.json")),
        "occluded_frequency.json": set(content("fampe_occlude/occluded_frequency.json")),
        "gradients.json": set(content("fampe_gradients/gradients.json")),
        "spectra.json": set(content("fampe_spectra/spectra.json")),
        "attack.json": set(content("fampe_attack/attack.json")),
        "defence.json": set(content("fampe_defend/defence.json")),
        "trainings.json": set(content("fampe_defend/trainings.json")),
        "maps/NNN/NNNNNN.parquet": set(parquet.read_schema(written / "maps/maps/000/000000.parquet").names),
        "manifest.parquet": set(parquet.read_schema(written / "maps/manifest.parquet").names),
        "The report": set(content("report.json")),
    }
    listed = {heading: set(names) for heading, names in tables(FORMATS).items() if names}
    assert listed.keys() == actual.keys()
    for heading, names in actual.items():
        assert listed[heading] == names, heading
