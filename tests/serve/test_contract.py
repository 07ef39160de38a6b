"""Answers: the same maps as the library's, in every form, with what an audit needs."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from fampe_fast.answers.overlays import overlay_png
from fampe_fast.images import read_image_bytes
from fampe_fast.methods.registry import create_method
from fampe_fast.runtime.model_probe import probabilities_of
from fampe_fast.serve.record import decode_map

from .running import JSON, METHODS, PATH, PNG, Running, a_classifier, instances, photo, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), max_passes=50) as found:
        yield found


def expected(
    image: bytes, method: str = "fampe", target: int | None = None, image_id: int | None = None, **options: object
):
    """Make the map with the library."""
    classifier = a_classifier()
    decoded = read_image_bytes(image, "image")
    pixels = classifier.transform(decoded)[None]
    digest = hashlib.sha256(f"{decoded.width}x{decoded.height}:".encode() + decoded.tobytes()).hexdigest()
    probabilities = probabilities_of(classifier, pixels)[0]
    chosen = int(probabilities.argmax()) if target is None else target
    maker = create_method(method, classifier, **{**METHODS[method], **options})
    own = int(digest[:8], 16) % (2**32 - 1)
    found = maker.attribute(pixels, chosen, image_ids=[own if image_id is None else image_id], internal_batch_size=8)
    return found[0], float(probabilities[chosen]), chosen, digest, own


def attribution(explained: dict) -> np.ndarray:
    return decode_map(explained["map"]).astype(np.float32) * np.float32(explained["map_scale"])


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", {}),
        ("target=3", {"target": 3}),
        ("passes=10&seed=5", {"passes": 10, "seed": 5}),
        ("passes=10&image_id=77&reproducible=true", {"passes": 10, "image_id": 77}),
        ("method=attexplore&target=1&seed=9", {"method": "attexplore", "target": 1, "seed": 9}),
        ("method=centre_prior", {"method": "centre_prior"}),
    ],
)
def test_an_answer_is_the_librarys_map(service: Running, query: str, options: dict) -> None:
    image = photo(1)
    answer = service.explain(image, query)
    assert answer.code == 200, answer.body
    (found,) = answer.json["explanations"]
    wanted, probability, target, digest, own = expected(image, **options)
    stored = attribution(found)
    assert stored.shape == (1 if torch.equal(wanted[:1].expand_as(wanted), wanted) else 3, 24, 24)
    peak = float(wanted.abs().max())
    np.testing.assert_allclose(np.broadcast_to(stored, wanted.shape), wanted.numpy(), atol=peak * 2.0**-10)
    assert (found["target"], found["class"]) == (target, ["ant", "bee", "cat", "dog", "eel"][target])
    assert found["probability"] == pytest.approx(probability, rel=1e-5)
    assert found["image_sha256"] == digest
    assert found["image_id"] == options.get("image_id", own)
    assert found["method"] == options.get("method", "fampe")
    assert (
        found["passes"]
        == create_method(
            found["method"],
            a_classifier(),
            **{**METHODS[found["method"]], **{k: v for k, v in options.items() if k in ("passes", "seed")}},
        ).passes
    )
    assert found["seed"] == (None if found["method"] == "centre_prior" else options.get("seed", 0))
    assert found["batch_size"] == 1
    assert ("device_ms" in found) is (not found["reproducible"])


def test_a_picture_and_an_array_carry_the_record_in_a_header(service: Running) -> None:
    image = photo(2)
    (found,) = service.explain(image, "target=2&reproducible=true").json["explanations"]
    picture = service.explain(image, "target=2&reproducible=true", "image/png")
    record = json.loads(picture.headers["fampe-record"])
    assert record == {name: value for name, value in found.items() if name != "map"}
    classifier = a_classifier()
    pixels = (classifier.transform(read_image_bytes(image, "image")) * 255).round().to(torch.uint8).numpy()
    wanted, *_ = expected(image, target=2)
    assert picture.headers["content-type"] == "image/png"
    shown, drawn = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        for data in (picture.body, overlay_png(pixels, wanted[:1].numpy()))
    )
    np.testing.assert_array_equal(shown, drawn)
    array = service.explain(image, "target=2&reproducible=true", "application/x-npy")
    np.testing.assert_array_equal(np.load(io.BytesIO(array.body)), attribution(found))
    assert len({answer.headers["etag"] for answer in (picture, array)}) == 2


def test_kserves_form_takes_several_images_and_options_for_all(service: Running) -> None:
    images = [photo(k) for k in range(3)]
    body = instances(*images, parameters={"passes": 10}, target=4)
    answer = service.ask("POST", f"{PATH}?seed=3", body, JSON)
    assert answer.code == 200, answer.body
    found = answer.json["explanations"]
    assert [one["target"] for one in found] == [4, 4, 4]
    assert {(one["passes"], one["seed"], one["options"]["seed"]) for one in found} == {(10, 3, 3)}
    for image, one in zip(images, found, strict=True):
        wanted, *_ = expected(image, target=4, passes=10, seed=3)
        np.testing.assert_allclose(attribution(one)[0], wanted[0].numpy(), atol=float(wanted.abs().max()) * 2e-3)
    assert "etag" not in answer.headers


def test_predictions_are_the_models(service: Running) -> None:
    image = photo(4)
    for body, headers in ((image, PNG), (instances(image), JSON)):
        answer = service.ask("POST", "/v1/models/small:predict", body, headers)
        (found,) = answer.json["predictions"]
        pixels = a_classifier().transform(read_image_bytes(image, "image"))[None]
        wanted = probabilities_of(a_classifier(), pixels)[0]
        assert [one["class"] for one in found["top"]] == wanted.argsort(descending=True).tolist()
        assert found["probability"] == pytest.approx(float(wanted.max()), rel=1e-5)
        assert found["name"] == a_classifier().class_name(found["class"])


def test_models_and_health_are_where_kserve_looks_for_them(service: Running) -> None:
    assert service.ask(path="/v1/models").json == {"models": ["small"]}
    described = service.ask(path="/v1/models/small").json
    assert (described["ready"], described["methods"], described["max_passes"]) == (True, list(METHODS), 50)
    assert service.ask(path="/v2/health/live").json == {"live": True}
    assert service.ask(path="/v2/health/ready").json == {"ready": True}


def test_etags_tell_answers_apart_and_are_strong_where_bytes_are_the_same(service: Running) -> None:
    image = photo(5)
    asked = [
        "reproducible=true",
        "",
        "reproducible=true&target=0",
        "reproducible=true&passes=10",
        "reproducible=true&image_id=8",
    ]
    tags = [service.explain(image, query).headers["etag"] for query in asked]
    assert len(set(tags)) == len(asked)
    assert [tag.startswith('W/"') for tag in tags] == [False, True, False, False, False]
    assert service.explain(photo(6), asked[0]).headers["etag"] != tags[0]
    assert service.explain(image, asked[0]).headers["etag"] == tags[0]


def test_a_request_id_comes_back_and_into_the_log_and_no_image_does(service: Running) -> None:
    image = photo(7)
    body = instances(image)
    answer = service.ask("POST", PATH, body, {**JSON, "X-Request-ID": "order-66"})
    assert answer.headers["x-request-id"] == "order-66"
    strange = service.ask("POST", PATH, body, {**JSON, "X-Request-ID": "a b\\n{}"})
    assert strange.headers["x-request-id"] != "a b\\n{}"
    (line,) = [event for event in service.events("request") if event["request_id"] == "order-66"]
    assert (line["code"], line["route"], line["method"], line["images"]) == (200, "explain", "fampe", 1)
    text = service.log.read_text()
    assert base64.b64encode(image).decode()[:40] not in text


def test_the_counts_add_up(tmp_path: Path) -> None:
    with running(tmp_path, methods={"fampe": {}}) as service:
        for k in range(3):
            service.explain(photo(k), "passes=10")
        service.explain(b"no image")
        assert service.metric("fampe_passes_total") == 30
        assert service.metric("fampe_batch_images_sum") == 3
        assert service.metric("fampe_queue_seconds_count") == 3
        lines = service.ask(path="/metrics").body.decode()
        assert 'fampe_requests_total{code="200",route="explain"} 3.0' in lines
        assert 'fampe_requests_total{code="400",route="explain"} 1.0' in lines
        assert service.metric("fampe_queue_images") == 0
        assert service.metric("fampe_device_seconds_count") == 3
        assert 0 < service.metric("fampe_device_seconds_sum") < 30
