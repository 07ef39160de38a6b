"""Refusals: each with its code and a sentence, in order, and before anything is spent on the request."""

from __future__ import annotations

import base64
import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from .running import JSON, PATH, PNG, Running, encoded, instances, photo, running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    with running(folder, max_bytes=200_000, max_pixels=1_000_000, queue=16, read_timeout=1.0) as found:
        yield found


def png_header(width: int, height: int) -> bytes:
    """Write a PNG of zeros that claims to be of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10**6))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("body", "query", "code", "words"),
    [
        (b"", "", 400, "empty"),
        (b"hello", "", 400, "not an image"),
        (photo()[:-40], "", 400, "truncated"),
        (png_header(20_000, 20_000), "", 400, "too many pixels"),
        (png_header(1001, 1000), "", 400, "too many pixels"),
        (photo(), "target=5", 400, "the target 5 is out of range: the model has 5 classes"),
        (photo(), "target=-1", 400, "target must be a whole number of at least 0"),
        (photo(), "target=1&target=2", 400, "target is given twice"),
        (photo(), "taget=1", 400, "there is no option 'taget'"),
        (photo(), "method=rise", 400, "the method 'rise' is not served; served are fampe, centre_prior, attexplore"),
        (photo(), "method=centre_prior&passes=3", 400, "the method centre_prior has no passes"),
        (photo(), "method=centre_prior&seed=3", 400, "the method centre_prior has no seed"),
        (photo(), "passes=0", 400, "passes must be a whole number from 1"),
        (photo(), "passes=201", 400, "passes may be at most 200 here"),
        (photo(), "image_id=4294967295", 400, "image_id must be a whole number from 0 to 4294967294"),
        (photo(), "seed=1e3", 400, "seed must be a whole number"),
        (photo(), "reproducible=yes", 400, "reproducible must be true or false"),
        (photo() + b"\0" * 200_000, "", 413, "larger than the limit of 200000 bytes"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_answered_gets_a_sentence(
    service: Running, body: bytes, query: str, code: int, words: str
) -> None:
    answer = service.explain(body, query)
    assert answer.code == code, answer.body
    assert words in answer.error
    assert "\n" not in answer.error
    assert "Traceback" not in answer.error


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"[" * 100_000, 400, "too deeply nested"),
        (b'{"instances": [' + b"[" * 5000, 400, "too deeply nested"),
        (b"[]", 400, "expected"),
        (b'{"instances": {}}', 400, "expected"),
        (b'{"instances": []}', 400, "expected 1 to 16 instances, got 0"),
        (instances(*[b"x"] * 17), 400, "expected 1 to 16 instances, got 17"),
        (b'{"instances": [3]}', 400, "instance 0 must be an object"),
        (b'{"instances": [{"image": "x"}]}', 400, "instance 0 has no image"),
        (b'{"instances": [{"image": {"b64": "?"}}]}', 400, "not base64"),
        (b'{"instances": [{"image": {"b64": "", "url": "http://x/"}}]}', 400, "has 'url', which is unknown"),
        (b'{"instances": [{"path": "/etc/passwd"}]}', 400, "has 'path', which is unknown"),
        (b'{"instances": [{"image": {"b64": ""}, "target": true}]}', 400, "target must be a whole number"),
        (b'{"instances": [{"image": {"b64": ""}, "target": 1.5}]}', 400, "target must be a whole number"),
        (b'{"instances": [{"image": {"b64": ""}, "target": NaN}]}', 400, "NaN is not a JSON number"),
        (instances(photo(), parameters={"target": 3}), 400, "there is no parameter 'target'"),
        (instances(photo(), b"hello"), 400, "not an image"),
        (instances(photo(), parameters={"passes": 10**30}), 400, "passes must be a whole number"),
    ],
)
def test_a_body_in_json_that_is_something_else_is_refused(service: Running, body: bytes, code: int, words: str) -> None:
    answer = service.ask("POST", PATH, body, JSON)
    assert answer.code == code, answer.body
    assert words in answer.error


def test_a_long_head_is_refused_and_an_images_bytes_are_repeated_nowhere(service: Running) -> None:
    answer = service.ask("POST", PATH, photo(), {**PNG, "X-Long": "x" * 20_000})
    assert (answer.code, answer.error) == (431, "the head is longer than 16384 bytes")
    answer = service.explain(b"secret of the client")
    assert answer.code == 400
    assert b"secret" not in answer.body
    assert "secret" not in service.log.read_text()


def test_options_in_two_places_are_refused(service: Running) -> None:
    body = instances(photo(), parameters={"passes": 3})
    assert "twice" in service.ask("POST", f"{PATH}?passes=3", body, JSON).error
    assert "belongs to an instance" in service.ask("POST", f"{PATH}?target=3", body, JSON).error
    predict = PATH.replace("explain", "predict")
    assert "is an option of explanations" in service.ask("POST", f"{predict}?passes=3", instances(photo()), JSON).error


def test_addresses_methods_and_kinds_of_content(service: Running) -> None:
    assert service.ask(path="/v1/models/other").code == 404
    assert service.ask("POST", "/v1/models/other:explain", photo(), PNG).code == 404
    assert service.ask(path="/etc/passwd").code == 404
    assert service.ask(path=PATH).code == 405
    assert service.ask("POST", PATH, photo(), {"Content-Type": "multipart/form-data; boundary=x"}).code == 415
    assert service.ask("POST", PATH, photo(), {"Content-Type": "application/x-www-form-urlencoded"}).code == 415
    assert service.ask("POST", PATH, photo(), {}).code == 415
    assert service.explain(photo(), accept="text/html").code == 406
    both = service.ask("POST", PATH, instances(photo(), photo(1)), {**JSON, "Accept": "image/png"})
    assert both.code == 406
    assert service.explain(photo(), accept="text/html, */*;q=0.1").code == 200


def test_a_body_without_a_length_is_counted(service: Running) -> None:
    connection = service.connect()
    parts = (b"x" * 50_000 for _ in range(40))
    connection.request("POST", PATH, parts, PNG, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    small = service.connect()
    small.request("POST", PATH, iter([photo()]), PNG, encode_chunked=True)
    assert small.getresponse().status == 200


def test_a_refused_body_does_not_end_the_connection(service: Running) -> None:
    connection = service.connect()
    assert service.explain(b"x" * 150_000, "target=x", connection=connection).code == 400
    assert service.explain(b"x" * 300_000, connection=connection).code == 413
    assert service.explain(photo(), connection=connection).code == 200


@pytest.mark.slow
def test_the_queue_is_full_before_a_body_is_read(tmp_path: Path) -> None:
    with running(tmp_path, methods={"fampe": {}}, queue=2, batch_size=1, deadline=60.0) as service:
        service.hold()
        threads = [threading.Thread(target=service.explain, args=(photo(k),)) for k in range(3)]
        threads[0].start()
        service.wait_until(lambda: service.holding)
        for thread in threads[1:]:
            thread.start()
        service.wait_until(lambda: service.metric("fampe_queue_images") == 2)
        # The body is announced, and never sent.
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 100000\r\n\r\n"
        with service.socket() as stream:
            stream.sendall(head.encode())
            answer = stream.recv(4096).decode()
        assert answer.startswith("HTTP/1.1 429"), answer
        seconds = next(line for line in answer.split("\r\n") if line.lower().startswith("retry-after: "))
        assert 1 <= int(seconds.partition(": ")[2]) <= 60
        service.release()
        for thread in threads:
            thread.join()
        assert service.explain(photo()).code == 200


@pytest.mark.slow
def test_a_deadline_that_passes_costs_the_device_nothing(tmp_path: Path) -> None:
    with running(tmp_path, methods={"fampe": {}}, batch_size=1, deadline=0.5) as service:
        service.hold()
        codes: list[int] = []
        threads = [threading.Thread(target=lambda k=k: codes.append(service.explain(photo(k)).code)) for k in range(6)]
        for thread in threads:
            thread.start()
        service.wait_until(lambda: len(codes) == 6)
        service.release()
        assert codes == [504] * 6
        assert service.explain(photo()).code == 200
        assert service.metric("fampe_cancelled_total") == 5
        assert not [line for line in service.log.read_text().splitlines() if '"level": "error"' in line]
        assert service.metric("fampe_batch_images_sum") == 2  # the one it was held with, and the last one


@pytest.mark.slow
def test_slow_senders_are_ended_and_others_are_answered_meanwhile(service: Running) -> None:
    starts = [b"", b"POST ", f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-A: ".encode()]
    streams = [service.socket() for _ in range(300)]
    try:
        for k, stream in enumerate(streams):
            stream.sendall(starts[k % 3])
        body = service.socket()
        body.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 99\r\n\r\nx".encode()
        )
        assert service.explain(photo()).code == 200
        assert body.recv(4096).startswith(b"HTTP/1.1 408")
        body.close()
        for stream in streams:  # their timeout is a minute, the service's a second
            assert stream.recv(10) in (b"", b"HTTP/1.1 4")
    finally:
        for stream in streams:
            stream.close()


@pytest.mark.slow
def test_a_connection_that_was_answered_does_not_wait_for_ever(service: Running) -> None:
    with service.socket() as stream:
        stream.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert stream.recv(4096).startswith(b"HTTP/1.1 200")
        stream.sendall(b"GET /v2/heal")
        began = time.monotonic()
        while stream.recv(4096):
            pass
        assert time.monotonic() - began < 30


def test_bombs_of_every_kind_are_refused_in_little_memory(service: Running) -> None:
    before = resident(service)
    for body in (png_header(16_384, 10_000), encoded(Image.new("1", (1200, 1200))), instances(png_header(3000, 3000))):
        headers = JSON if body.startswith(b"{") else PNG
        assert service.ask("POST", PATH, body, headers).code == 400
    names = json.dumps({"instances": [{"image": {"b64": base64.b64encode(photo()).decode()}}], "x" * 100_000: 1})
    assert len(service.ask("POST", PATH, names.encode(), JSON).body) < 1000
    assert resident(service) - before < 60 * 2**20


def resident(service: Running) -> int:
    """Read the bytes of memory that the service holds."""
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
