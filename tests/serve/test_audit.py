"""Records: computed again from the photo and the model, and what is said where something is not as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from fampe_fast.answers.environment import processor_of
from fampe_fast.answers.result import RowResult
from fampe_fast.answers.summaries import summarise
from fampe_fast.cli import DONE, SOME_FAILED, UNUSABLE, main
from fampe_fast.serve.recheck import recheck
from fampe_fast.serve.record import decode_map, encode_map, read_record

from .running import JSON, PATH, Running, a_classifier, instances, photo, running

QUICK = ["--views", "0", "--steps", "2", "--samples", "2"]
QUERY = "passes=10&seed=4&reproducible=true&target=3"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service"), methods={"fampe": {}}) as found:
        yield found


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def saved(folder: Path, answer: dict) -> Path:
    path = folder / "answer.json"
    path.write_text(json.dumps(answer))
    return path


@pytest.mark.slow
def test_an_answer_is_computed_again_to_the_bit(service: Running, tmp_path: Path) -> None:
    image = photo(1)
    whole = saved(tmp_path, service.explain(image, QUERY).json)
    found = recheck(read_record(whole), image, a_classifier())
    assert (found.comparison.outcome, found.changed) == ("same", [])
    header = json.loads(service.explain(image, QUERY, "image/png").headers["fampe-record"])
    found = recheck(read_record(saved(tmp_path, header)), image, a_classifier())
    assert found.comparison.outcome == "same"


def test_an_answer_of_a_batch_is_alike(service: Running, tmp_path: Path) -> None:
    images = [photo(k) for k in range(4)]
    answers = service.ask("POST", f"{PATH}?passes=10", instances(*images), JSON).json["explanations"]
    record = next(one for one in answers if one["batch_size"] > 1)
    found = recheck(read_record(saved(tmp_path, record)), images[answers.index(record)], a_classifier())
    assert found.comparison.outcome in ("same", "alike")
    assert found.changed == [f"explained in a batch of {record['batch_size']} then, alone now"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"probability": 0.123}, "other values: probability"),
        ({"class": "wolf"}, "other values: class"),
        ({"predicted": 2}, "other values"),
        ({"map_scale": 0.5}, "other values: map_scale"),
    ],
)
def test_a_changed_value_is_named(service: Running, tmp_path: Path, change: dict, words: str) -> None:
    image = photo(2)
    (record,) = service.explain(image, QUERY).json["explanations"]
    if record["predicted"] == change.get("predicted"):
        change = {"predicted": 1}
    found = recheck(read_record(saved(tmp_path, {**record, **change})), image, a_classifier())
    assert found.comparison.outcome == "different"
    assert words in found.comparison.reason
    without = {name: value for name, value in {**record, **change}.items() if name != "map"}
    assert recheck(read_record(saved(tmp_path, without)), image, a_classifier()).comparison.outcome == "different"


def test_a_changed_map_contradicts_its_digest_and_a_changed_digest_the_map(service: Running, tmp_path: Path) -> None:
    image = photo(3)
    (record,) = service.explain(image, QUERY).json["explanations"]
    (other,) = service.explain(photo(4), QUERY).json["explanations"]
    swapped = {**record, "map": other["map"]}
    with pytest.raises(ValueError, match="the record contradicts itself"):
        recheck(read_record(saved(tmp_path, swapped)), image, a_classifier())
    forged = {**swapped, "map_sha256": other["map_sha256"]}
    found = recheck(read_record(saved(tmp_path, forged)), image, a_classifier())
    assert found.comparison.outcome == "different"


def test_another_image_model_or_configuration_is_refused(service: Running, tmp_path: Path) -> None:
    image = photo(5)
    (record,) = service.explain(image, QUERY).json["explanations"]
    read = read_record(saved(tmp_path, record))
    with pytest.raises(ValueError, match="the image is not the one that was explained"):
        recheck(read, photo(6), a_classifier())
    other = a_classifier()
    with torch.no_grad():
        other.model.head.bias += 1
    with pytest.raises(ValueError, match="the record is of another model"):
        recheck(read, image, other)
    with pytest.raises(ValueError, match="the method is configured otherwise"):
        recheck({**read, "options": {**read["options"], "gate_floor": 0.25}}, image, a_classifier())


def test_other_versions_allow_other_last_bits_and_no_more(service: Running, tmp_path: Path) -> None:
    image = photo(7)
    (record,) = service.explain(image, QUERY).json["explanations"]
    older = {**record, "versions": {**record["versions"], "torch": "2.0.0"}}
    found = recheck(older, image, a_classifier())
    assert found.comparison.outcome == "same"
    assert found.changed == [f"torch 2.0.0 then, {record['versions']['torch']} now"]
    without = {name: value for name, value in older.items() if name != "map"}
    with pytest.raises(ValueError, match="the record holds no map"):
        recheck({**without, "map_sha256": "0" * 64}, image, a_classifier())


def test_another_processor_allows_other_last_bits(service: Running, tmp_path: Path) -> None:
    image = photo(7)
    (record,) = service.explain(image, QUERY).json["explanations"]
    assert record["processor"] == processor_of(torch.device("cpu"))
    found = recheck(read_record(saved(tmp_path, {**record, "processor": "Another CPU 3000"})), image, a_classifier())
    assert found.changed == [f"processor Another CPU 3000 then, {record['processor']} now"]
    older = {name: value for name, value in record.items() if name != "processor"}  # of an earlier version
    assert recheck(read_record(saved(tmp_path, older)), image, a_classifier()).changed == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not a record"),
        ("[]", "is not a record of a service"),
        ('{"explanations": []}', "holds 0 explanations"),
        ('{"fampe_fast": "audit record", "image_id": 3}', "is not a record of a service"),
        ('{"fampe_fast": "service record"}', "image_id is missing"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_record(path)


@pytest.mark.slow
def test_the_command_serves_and_verifies(model_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """The whole way of an auditor, with the commands alone."""
    import multiprocessing
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert main(["serve", "--model", str(model_file), "--port", "0"]) == UNUSABLE
    assert "and loading it may run any code" in capfd.readouterr().err
    words = ["serve", "--model", str(model_file), "--trust-model", "--input-size", "96", "--port", str(port), *QUICK]
    context = multiprocessing.get_context("spawn")
    log = tmp_path / "serve.log"
    process = context.Process(target=serve_in, args=([*words, "--name", "small"], log), daemon=True)
    process.start()
    service = Running(process, port, log)
    image = tmp_path / "photo.png"
    image.write_bytes(photo(8, (120, 100)))
    try:
        service.wait_until(lambda: log.exists() and ('"ready"' in log.read_text() or not process.is_alive()), 120)
        answer = service.explain(image.read_bytes(), "reproducible=true")
        assert answer.code == 200, answer.body
        record = saved(tmp_path, answer.json)
    finally:
        code = service.end()
    assert code == 0
    given = ["--image", str(image), "--model", str(model_file), "--input-size", "96"]
    asked = ["verify", "--record", str(record), *given, "--trust-model", "--json", str(tmp_path / "report.json")]
    assert main(asked) == DONE
    shown = capfd.readouterr().out
    assert "same" in shown
    assert "must be bitwise equal" in shown
    assert json.loads((tmp_path / "report.json").read_text())["comparison"]["outcome"] == "same"
    (content,) = answer.json["explanations"]
    record.write_text(json.dumps({**content, "probability": 0.5}))
    assert main(asked) == SOME_FAILED
    assert main(["verify", "--record", str(record), *given]) == UNUSABLE
    assert main(["verify", "--record", str(record)]) == UNUSABLE
    assert "--record and --image" in capfd.readouterr().err
    assert main(["verify", str(tmp_path), "--image", str(image)]) == UNUSABLE
    assert main(["verify", str(tmp_path), "--model", "resnet18"]) == UNUSABLE
    assert "--model: the model of a run is in its plan" in capfd.readouterr().err


def serve_in(words: list[str], log: Path) -> None:
    import os

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    torch.set_num_threads(1)
    raise SystemExit(main(words))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_map_in_json_comes_back(dtype: str) -> None:
    numbers = np.random.default_rng(0).standard_normal((1, 3, 4)).astype(dtype)
    result = RowResult(0, "ant", 0.5, 0, None, 1.0, numbers, summarise(numbers.astype(np.float32)))
    back = decode_map(json.loads(json.dumps(encode_map(result))))
    assert back.dtype == numbers.dtype
    np.testing.assert_array_equal(back, numbers)


def test_what_is_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        decode_map({"b64": "AA==", "dtype": "<f2", "shape": [2, 2]})
    with pytest.raises(ValueError, match="cannot be read"):
        decode_map({"b64": "AA==", "dtype": "O", "shape": [1]})
