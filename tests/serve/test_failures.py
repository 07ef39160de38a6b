"""Failures below the service: a full memory, a lost device, methods that do not work, a log of warnings."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from fampe_fast.cli import UNUSABLE, main
from fampe_fast.serve import extras
from fampe_fast.serve.server import listen, serve
from fampe_fast.serve.service import Service
from fampe_fast.serve.settings import ServiceSettings, retry_after, service_name

from .running import JSON, PATH, a_classifier, encoded, instances, photo, running


@pytest.mark.slow
def test_a_chunk_that_does_not_fit_is_halved_and_a_reproducible_map_is_not_made_of_another(tmp_path: Path) -> None:
    with running(tmp_path, methods={"fampe": {}, "attexplore": {"steps": 2, "samples": 8}}, most=3) as service:
        query = "method=attexplore"
        fixed = service.ask("POST", f"{PATH}?{query}&reproducible=true", instances(photo()), JSON)
        assert (fixed.code, fixed.headers["retry-after"]) == (503, "1")
        assert "out of memory with the 8 samples per model pass" in fixed.error
        answer = service.explain(photo(), query)
        assert answer.code == 200, answer.body
        assert answer.json["explanations"][0]["internal_batch_size"] == 2
        assert service.metric("fampe_halvings_total") == 2
        assert service.explain(photo(), query).code == 200
        assert service.metric("fampe_halvings_total") == 2
        # Nor after that: the same request has the same bytes at any time, or none.
        assert service.explain(photo(), f"{query}&reproducible=true").code == 503


def test_a_lost_device_ends_liveness_and_says_so(tmp_path: Path) -> None:
    with running(tmp_path, methods={"fampe": {}}) as service:
        assert service.explain(photo()).code == 200
        answer = service.explain(encoded(Image.new("RGB", (30, 30), "white")))
        assert (answer.code, answer.error) == (503, "the device is lost; another instance may answer")
        live = service.ask(path="/v2/health/live")
        assert (live.code, live.json["live"]) == (503, False)
        assert "illegal memory access" in live.json["reason"]
        assert service.ask(path="/v2/health/ready").code == 503
        late = service.explain(photo())
        assert late.code == 503
        assert "broken" in late.error
        assert service.end() == 0


def test_a_method_that_does_not_work_with_the_model_ends_the_service_at_its_start() -> None:
    service = Service(a_classifier(), {"attention_rollout": {}}, ServiceSettings(name="small"), threads=1)
    assert serve(service, listen("127.0.0.1", 0)) is False
    assert "attention" in service.device.failure


def test_a_missing_package_is_named_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "prometheus_client" else object())
    assert main(["serve", "--model", "no_such_model"]) == UNUSABLE
    assert "prometheus-client is needed for the service: pip install 'fampe_fast[serve]'" in capsys.readouterr().err


def test_options_are_refused_before_a_model_is_loaded(capsys: pytest.CaptureFixture) -> None:
    for words, said in (
        (["--method", "gradcam", "--steps", "3"], "no such option(s): --steps"),
        (["--name", "a/b"], "a model's name in addresses"),
        (["--deadline", "0"], "deadline"),
        (["--device", "cuda:77"], "--device cuda:77: cannot be used here"),
    ):
        assert main(["serve", "--model", "no_such_model", *words]) == UNUSABLE
        assert said in capsys.readouterr().err


def test_answers_are_sent_at_once() -> None:
    """asyncio switches Nagle's algorithm off for sockets that it knows to be TCP's."""
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_an_address_that_is_taken_is_named() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"name": "a/b"}, "a model's name in addresses"),
        ({"name": ""}, "a model's name in addresses"),
        ({"queue": 0}, "queue"),
        ({"deadline": 0}, "deadline"),
        ({"read_timeout": float("nan")}, "read_timeout"),
        ({"max_pixels": 10**9}, "beyond which Pillow refuses"),
        ({"max_bytes": 2**30}, "never has room"),
    ],
)
def test_limits_out_of_range_are_refused(given: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServiceSettings(**{"name": "small", **given})


def test_names_and_pauses() -> None:
    assert service_name("hf-hub:timm/resnet50.a1_in1k") == "hf-hub-timm-resnet50.a1_in1k"
    assert service_name("///") == "model"
    assert [retry_after(*given) for given in ((0, 1.0), (3, 0.5), (64, 0.1), (10**6, 1.0))] == [1, 2, 7, 60]
