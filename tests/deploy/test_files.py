from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from fampe_fast.cli.parser import parse

from .files import (
    DEPLOY,
    ROOT,
    components,
    exec_form,
    final_stage,
    health_words,
    image_environment,
    instructions,
    loaded,
    only,
    service_words,
)

LIVE, READY = "/v2/health/live", "/v2/health/ready"


@pytest.fixture
def explain() -> dict:
    """The service in compose.yaml."""
    return loaded("compose.yaml")["services"]["explain"]


@pytest.mark.parametrize("place", ["Dockerfile", "compose", "predictor", "explainer"])
def test_the_command_is_one_of_the_service_on_the_port_that_is_opened(place: str) -> None:
    arguments = parse(service_words()[place])
    assert arguments.command == "serve"
    assert (arguments.host, str(arguments.port)) == ("0.0.0.0", only("EXPOSE"))


def test_the_service_answers_what_the_files_ask_for() -> None:
    pytest.importorskip("starlette")
    from fampe_fast.serve import app

    source = Path(app.__file__).read_text()
    for name in ("Dockerfile", "compose.yaml", "kserve.yaml"):
        text = (DEPLOY / name).read_text()
        asked = set(re.findall(r"(?::8080|path: )(/[\w/]+)", text)) - {"/cache"}
        assert asked, name
        for path in asked:
            assert f'Route("{path}"' in source, f"{name} asks for {path}"
    from fampe_fast.serve import metrics

    (counted,) = re.findall(r"sum\((\w+)", (DEPLOY / "kserve.yaml").read_text())
    assert f'"{counted}"' in Path(metrics.__file__).read_text()


# The image -----------------------------------------------------------------------------------------------------------


def test_the_image_runs_without_root_by_a_number_that_kubernetes_can_check() -> None:
    user = only("USER")
    assert int(user) > 0
    (command,) = [rest for name, rest in final_stage() if name == "RUN"]
    assert f"--uid {user} " in command
    assert f"--owner={user} " in command


def test_the_image_has_a_compiler_where_it_runs() -> None:
    (command,) = [rest for name, rest in final_stage() if name == "RUN"]
    assert re.search(r"apt-get install [^&]*\bg\+\+", command)  # which brings a C compiler


def test_signals_reach_the_service() -> None:
    assert exec_form(only("ENTRYPOINT")) == ["fampe-fast"]
    assert only("STOPSIGNAL") == "SIGTERM"


def test_all_that_is_written_has_its_place_in_the_volume() -> None:
    volume = only("VOLUME")
    environment = image_environment()
    places = {name: value for name, value in environment.items() if value.startswith(volume)}
    assert {"TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME", "MPLCONFIGDIR", "TMPDIR"} <= set(places)
    assert places["TMPDIR"] == volume  # which must be there; the others are made
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


def test_all_that_is_copied_is_there_and_let_through() -> None:
    copied = [rest.split()[:-1] for name, rest in instructions() if name == "COPY" and "--from" not in rest]
    names = {name for words in copied for name in words}
    assert {"fampe_fast", "kernels", "reference", "pyproject.toml", "setup.py"} <= names
    assert all((ROOT / name).exists() for name in names)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == names
    assert "*" in ignored


def test_the_extra_of_the_image_is_one_of_the_package() -> None:
    (extra,) = [rest.partition("=")[2] for name, rest in instructions() if name == "ARG" and "EXTRAS" in rest]
    section = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    assert re.search(rf"^{extra} = ", section, re.MULTILINE)


def test_no_file_names_a_place_to_fetch_from_or_of_one_machine() -> None:
    for path in [*DEPLOY.iterdir(), ROOT / ".dockerignore"]:
        text = path.read_text()
        hosts = set(re.findall(r"https?://([\w.-]+)", text)) - {"127.0.0.1", "prometheus.monitoring"}
        assert not hosts, f"{path.name} names {hosts}"
        assert not re.search(r"/(home|root/(?!\.cache)|work|Users)\b", text), path.name


# Compose -------------------------------------------------------------------------------------------------------------


def test_compose_gives_the_service_no_more_than_it_needs(explain: dict) -> None:
    assert explain["read_only"] is True
    assert explain["cap_drop"] == ["ALL"]
    assert explain["security_opt"] == ["no-new-privileges:true"]
    assert explain["mem_limit"]
    assert f"cache:{only('VOLUME')}" in explain["volumes"]
    assert only("VOLUME") not in explain["tmpfs"]  # from which nothing can be loaded that was compiled
    assert explain["environment"]["OMP_NUM_THREADS"] == str(explain["cpus"])


def test_compose_builds_this_image_and_opens_its_port(explain: dict) -> None:
    build = explain["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    arguments = {rest.partition("=")[0] for name, rest in instructions() if name == "ARG"}
    assert set(build["args"]) <= arguments
    assert [port.rsplit(":", 1)[1] for port in explain["ports"]] == [only("EXPOSE")]


def test_compose_lets_the_service_drain(explain: dict) -> None:
    drain = parse(service_words()["compose"]).drain_timeout
    assert float(explain["stop_grace_period"].removesuffix("s")) >= drain + 10


# KServe --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["predictor", "explainer"])
def test_kserve_probes_the_port_that_is_served(name: str) -> None:
    (container,) = components()[name]["containers"]
    (port,) = container["ports"]
    assert str(port["containerPort"]) == only("EXPOSE")
    probed = {kind: container[kind]["httpGet"] for kind in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {str(get["port"]) for get in probed.values()} == {only("EXPOSE")}
    assert [get["path"] for get in probed.values()] == [READY, READY, LIVE]


@pytest.mark.parametrize("name", ["predictor", "explainer"])
def test_kserve_gives_the_service_no_more_than_it_needs(name: str) -> None:
    component = components()[name]
    (container,) = component["containers"]
    assert component["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    (mount,) = container["volumeMounts"]
    (volume,) = component["volumes"]
    assert mount == {"name": volume["name"], "mountPath": only("VOLUME")}
    assert "emptyDir" in volume


@pytest.mark.parametrize("name", ["predictor", "explainer"])
def test_kserve_lets_the_service_drain(name: str) -> None:
    component, arguments = components()[name], parse(service_words()[name])
    (container,) = component["containers"]
    _, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert component["terminationGracePeriodSeconds"] >= float(seconds) + arguments.drain_timeout + 10
    assert component["timeout"] > arguments.deadline
    assert arguments.name == loaded("kserve.yaml")["metadata"]["name"]


def test_what_kserve_adds_to_the_arguments_does_not_reach_the_service(tmp_path: Path) -> None:
    """It adds these to every explainer's, in ``CustomExplainer.GetContainer``."""
    added = ["--model_name", "photos", "--predictor_host", "photos-predictor.default", "--http_port", "8080"]
    program = tmp_path / "fampe-fast"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    (container,) = components()["explainer"]["containers"]
    assert "args" not in container
    said = subprocess.run(
        [*container["command"], *added],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert said.splitlines() == service_words()["explainer"]


def test_the_health_checks_ask_the_service_and_no_proxy(explain: dict) -> None:
    for words, path in ((health_words(), LIVE), (explain["healthcheck"]["test"][1:], READY)):
        assert words[:2] == ["python", "-c"]
        assert f"http://127.0.0.1:{only('EXPOSE')}{path}" in words[2]
        assert "ProxyHandler({})" in words[2]
