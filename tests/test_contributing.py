"""What CONTRIBUTING.md, the hooks, the workflow and the other files of the front door say of the project is so."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fampe_fast import __version__

from .recipes_for_tests import ROOT, read_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CI = (ROOT / ".ci" / "run").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def read_yaml(name: str) -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / name).read_text())


def section(heading: str) -> str:
    """The text of CONTRIBUTING.md below a heading."""
    return CONTRIBUTING.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


# Hooks ----------------------------------------------------------------------------------------------------------------


def test_the_hooks_are_the_quick_checks_of_ci() -> None:
    quick = [line for line in CI.splitlines() if line.startswith(("ruff ", "mypy"))]
    hooks = [hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert [hook["entry"] for hook in hooks] == [re.sub(r" --cache-dir \S+", "", line) for line in quick]
    assert len(hooks) == 3
    for hook in hooks:
        assert (hook["language"], hook["pass_filenames"]) == ("system", False)


def test_pre_commit_accepts_its_file() -> None:
    pytest.importorskip("pre_commit")
    command = [sys.executable, "-m", "pre_commit", "validate-config", ".pre-commit-config.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# The workflow ---------------------------------------------------------------------------------------------------------


def versions() -> list[str]:
    """Every supported Python, by the classifiers."""
    prefix = "Programming Language :: Python :: "
    found = [text.removeprefix(prefix) for text in PROJECT["classifiers"] if text.startswith(prefix)]
    return [version for version in found if "." in version]


def test_the_versions_of_python_are_said_once() -> None:
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert versions()[0] == lowest
    minors = [int(version.removeprefix("3.")) for version in versions()]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert sys.version_info.minor in minors


def test_the_workflow_runs_ci_on_every_version() -> None:
    (job,) = read_yaml(".github/workflows/ci.yml")["jobs"].values()
    assert job["strategy"]["matrix"] == {"python": versions()}
    assert job["env"]["PYTHON"] == "python${{ matrix.python }}"
    uses = {step["uses"].partition("@")[0]: step.get("with", {}) for step in job["steps"] if "uses" in step}
    # CI takes the oldest from the path, and python3 is the last that is named.
    assert uses["actions/setup-python"]["python-version"].splitlines() == [versions()[0], "${{ matrix.python }}"]
    (run,) = (step for step in job["steps"] if "run" in step)
    assert run["run"] == ".ci/run"
    assert os.access(ROOT / run["run"], os.X_OK)
    assert run["env"] == {"FAMPE_FAST_CI_ENV": uses["actions/cache"]["path"]}
    for name in (*run["env"], "PYTHON"):
        assert f"${{{name}:-" in CI


# CONTRIBUTING.md ------------------------------------------------------------------------------------------------------


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(CONTRIBUTING.split()) <= 900
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text()):
            assert link.startswith("https://") or (ROOT / link).is_file(), f"{name}: {link}"
    for page in (ROOT / "docs" / "extend").glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert (page.parent / link).resolve().is_relative_to(ROOT / "docs"), f"{page.name}: {link}"
            assert (page.parent / link).is_file(), f"{page.name}: {link}"


@pytest.mark.parametrize(("kind", "example"), [("kernel", "blend"), ("method", "brightness"), ("metric", "moment")])
def test_a_checklist_is_the_list_of_its_page(kind: str, example: str) -> None:
    text = section(f"Add a {kind}")
    files = re.findall(r"^- \[ \] `([^`]+)`", text, re.MULTILINE)
    assert f"(docs/extend/add-a-{kind}.md)" in text
    assert [name.replace("NAME", example) for name in files] == list(read_recipe(f"add-a-{kind}").files)


def test_the_checklist_of_a_command_is_that_of_commands_there_are() -> None:
    text = section("Add a command")
    module, parser, job, test, ignored = re.findall(r"^- \[ \] `([^`]+)`", text, re.MULTILINE)
    (example,) = re.findall(r"A small example is `(\w+)`", text)
    for name in (example, "frequency", "gradients", "calibrate"):
        assert all((ROOT / path.replace("NAME", name)).is_file() for path in (module, job, test))
        assert re.search(rf"\b{name},", (ROOT / parser).read_text())
        assert f"/fampe_{name}/" in (ROOT / ignored).read_text().splitlines()
    # The rooms below a command do not know of it: what is on its list is all.
    commands = {path.stem for path in (ROOT / module).parent.glob("*.py")}
    in_parser = re.findall(r"^    (\w+),$", (ROOT / parser).read_text(), re.MULTILINE)
    assert {"__init__", *in_parser} == commands


def layout() -> list[str]:
    """The folders of the package in the order of the table."""
    rows = re.findall(r"^\| ([^|]+) \|", section("Layout"), re.MULTILINE)
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    return [name.removeprefix("fampe_fast/").rstrip("/") for name in names]


def imported_rooms(room: str) -> Iterator[tuple[Path, str]]:
    """Folders of the package that a folder's modules import from, with the module."""
    for path in (ROOT / "fampe_fast" / room).resolve().rglob("*.py"):
        inside = len(path.relative_to((ROOT / "fampe_fast" / room).resolve()).parts)  # 1 for a module of the folder
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == inside + 1:
                for name in [node.module] if node.module else [alias.name for alias in node.names]:
                    yield path, name.partition(".")[0]


def test_the_layout_has_every_folder_and_imports_go_up() -> None:
    order = layout()
    package = {path.parent.name for path in (ROOT / "fampe_fast").glob("*/__init__.py")}
    rest = order[len(package) :]
    assert set(order[: len(package)]) == package
    assert len(order) == len(set(order))
    assert all((ROOT / name).is_dir() for name in rest)
    modules = {path.stem for path in (ROOT / "fampe_fast").glob("*.py")}
    arrows = 0
    for place, room in enumerate(order[: len(package)]):
        for path, imported in imported_rooms(room):
            assert imported in (*order[:place], *modules), f"{path.relative_to(ROOT)} imports {imported}"
            arrows += 1
    assert arrows > 500


# The other files ------------------------------------------------------------------------------------------------------


def test_the_changelog_begins_with_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[([^\]]+)\]", text, re.MULTILINE)[0] == __version__
    kinds = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= set(kinds)


def test_the_citation_is_whole_and_has_the_papers() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"]
    assert citation["abstract"] == f"{PROJECT['description']}."
    assert citation["keywords"] == PROJECT["keywords"]
    assert citation["authors"]
    assert {"message", "type"} <= set(citation)
    for paper in citation["references"]:
        assert {"type", "title", "authors", "year"} <= set(paper)
        assert all(set(author) == {"given-names", "family-names"} for author in paper["authors"])
    urls = {paper.get("url", "") for paper in citation["references"]}
    for paper in ("2510.03245", "2307.09591", "2605.19607"):
        assert f"https://arxiv.org/abs/{paper}" in urls
        assert paper in (ROOT / "docs" / "concepts" / "methods.md").read_text()


def test_a_commit_with_a_fault_is_stopped_by_the_hooks(tmp_path: Path) -> None:
    """The hooks as git runs them, on a project of one file."""
    pytest.importorskip("pre_commit")
    if shutil.which("git") is None or shutil.which("ruff") is None:
        pytest.skip("git or ruff is not installed")
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    module = tmp_path / "module.py"
    module.write_text('"""Add."""\nimport os\n')
    environment = {**os.environ, "PRE_COMMIT_HOME": str(tmp_path / "home"), "SKIP": "mypy"}
    run = [sys.executable, "-m", "pre_commit", "run", "--all-files"]
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "-A"], cwd=tmp_path, check=True)
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "`os` imported but unused" in done.stdout
    module.write_text('"""Add."""\n')
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
