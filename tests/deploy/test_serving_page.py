"""Compare docs/guides/service.md with the service: the tables and flags are what a person relies on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fampe_fast.cli.parser import make_parser, parse

from .files import ROOT

pytest.importorskip("starlette")
pytest.importorskip("prometheus_client")

PAGE = (ROOT / "docs" / "guides" / "service.md").read_text()


def rows(title: str) -> list[str]:
    """The first cells of the table below a title."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| ([^|]*) \|", section, re.MULTILINE)
    assert len(cells) > 1, title
    return cells[1:]


def test_the_flags_are_those_of_serve() -> None:
    (commands,) = [action for action in make_parser()._actions if action.dest == "command"]
    known = commands.choices["serve"]._option_string_actions  # type: ignore[index]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"```.*?```|-H .*", "", PAGE, flags=re.DOTALL)))
    assert len(named) > 10
    assert named <= set(known), named - set(known)


def test_the_defaults_are_those_of_serve() -> None:
    own = parse(["serve"])
    said = dict(re.findall(r"`--([a-z-]+)` \((\d+)[^)]*\)", PAGE)) | dict(re.findall(r"`--(queue)`, (\d+)", PAGE))
    assert len(said) == 6
    for name, value in said.items():
        unit = 2**20 if name == "max-bytes" else 1
        assert float(getattr(own, name.replace("-", "_"))) == float(value) * unit, name


def test_the_options_of_a_request_are_all_there() -> None:
    from fampe_fast.serve import asks

    assert rows("Requests") == [f"`{name}`" for name in (*asks._OF_ALL, *asks._OF_ONE)]


def test_the_refusals_are_all_there() -> None:
    from fampe_fast.serve import app

    folder = Path(app.__file__).parent
    source = "".join(path.read_text() for path in (folder / "app.py", folder / "body.py"))
    raised = set(re.findall(r"(?:RefusalError|HTTPException)\(\s*(\d{3})", source)) | {"422", "503"}
    raised |= set(re.findall(r"JSONResponse\(.*\}, (\d{3})\)", source))
    assert {code for cell in rows("Error codes") for code in cell.split(", ")} == raised


def test_the_metrics_are_all_there() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    from fampe_fast.serve.metrics import Metrics

    counted = {family.name for family in text_string_to_metric_families(Metrics().text().decode())}
    counted = {name.removesuffix("_created") for name in counted}
    named = {name.removesuffix("_total") for cell in rows("Monitoring") for name in re.findall(r"`(\w+)", cell)}
    assert named == counted
