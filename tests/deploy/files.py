"""Read the files in deploy/ as their tools read them, as far as these tests need it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions in order, each with the rest of its line, continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines()) if name]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    last = max(place for place, (name, _) in enumerate(found) if name == "FROM")
    return found[last:]


def only(name: str) -> str:
    """The rest of the one instruction of this name in the final stage."""
    (found,) = [rest for given, rest in final_stage() if given == name]
    return found


def exec_form(text: str) -> list[str]:
    words: list[str] = json.loads(text)
    return words


def health_words() -> list[str]:
    return exec_form(only("HEALTHCHECK").partition("CMD ")[2])


def image_environment() -> dict[str, str]:
    """The variables of the final stage."""
    words = [word for name, rest in final_stage() if name == "ENV" for word in shlex.split(rest)]
    return dict(word.split("=", 1) for word in words)


def loaded(name: str) -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML, which timm brings, is not installed")
    return yaml.safe_load((DEPLOY / name).read_text())


def components() -> dict[str, dict[str, Any]]:
    """The predictor and the explainer of the example for KServe."""
    found: dict[str, dict[str, Any]] = loaded("kserve.yaml")["spec"]
    return found


def service_words() -> dict[str, list[str]]:
    """What follows ``fampe-fast`` in each of the files."""
    compose = loaded("compose.yaml")["services"]["explain"]["command"]
    words = {"Dockerfile": exec_form(only("CMD")), "compose": compose}
    for name, component in components().items():
        shell, flag, script = component["containers"][0]["command"]
        assert (shell, flag) == ("/bin/sh", "-c")
        start, program, *rest = shlex.split(script)
        assert (start, program) == ("exec", "fampe-fast")
        words[name] = rest
    return words
