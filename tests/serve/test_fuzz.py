"""Malformed requests by the thousand, from a seed: each gets an answer that can be read, and none harms another."""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from fampe_fast.serve.asks import AskError, read_image_request, read_json_request
from fampe_fast.serve.replies import FORMS, chosen_form

from .running import PATH, Running, instances, photo, running

OVER_THE_WIRE, IN_PROCESS = 2_000, 8_000


def spoiled(draw: random.Random, data: bytes) -> bytes:
    """Change, cut, double or mix up some bytes."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(found) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            found[at:at] = draw.randbytes(draw.randint(1, 8))
        elif kind == 1:
            del found[at : at + draw.randint(1, 20)]
        elif kind == 2 and found:
            found[at % len(found)] = draw.randrange(256)
        elif kind == 3:
            found[at:at] = found[at : at + 30]
        else:
            found[at:at] = draw.choice([b"\0", b"\r\n", b"\r\n\r\n", b'"', b"{", b"[", b"}", b"-1", b"1e999", b"\xc3("])
    return bytes(found)


def a_request(draw: random.Random) -> bytes:
    """Make a request of which something is wrong, or perhaps nothing."""
    image = photo(draw.randrange(4), (8, 8))
    body = draw.choice([image, instances(image, target=draw.randrange(9)), b"", draw.randbytes(40)])
    if draw.random() < 0.6:
        body = spoiled(draw, body)
    query = draw.choice(
        ["", "passes=2", "target=9&seed=3", "reproducible=true", "passes=99999999999999999999999", "%00=%ff"]
    )
    media = draw.choice(
        ["image/png", "application/json", "application/json; charset=x", "text/plain", "multipart/form-data", ""]
    )
    length = draw.choice(
        [str(len(body))] * 6
        + ["-1", "1e3", "99999999999999999999", str(len(body) + 5), str(max(0, len(body) - 5)), "x"]
    )
    line = draw.choice(
        [f"POST {PATH}?{query} HTTP/1.1"] * 6
        + [
            "GET / HTTP/1.1",
            "POST / HTTP/9.9",
            "\x16\x03\x01",
            "PRI * HTTP/2.0",
            f"POST {'/a' * 9000} HTTP/1.1",
            f"POST {PATH.replace('small', '%2e%2e%2f')} HTTP/1.1",
        ]
    )
    heads = [line, "Host: x", f"Content-Type: {media}", f"Content-Length: {length}", "Connection: close"]
    if draw.random() < 0.3:
        heads.insert(
            draw.randrange(1, len(heads)),
            draw.choice(
                [
                    "X: " + "y" * 40_000,
                    "Transfer-Encoding: chunked",
                    ": x",
                    "A B: c",
                    "Content-Length: 3",
                    "Accept: */*;q=x,image/*;q=,",
                    "X-Request-ID: \x01",
                    "Expect: 100-continue",
                ]
            ),
        )
    head = "\r\n".join(heads).encode("latin-1") + b"\r\n\r\n"
    return (spoiled(draw, head) if draw.random() < 0.3 else head) + body


def answer_to(service: Running, request: bytes) -> bytes:
    with service.socket() as stream:
        try:
            stream.sendall(request)
            stream.shutdown(socket.SHUT_WR)
            found = b""
            while part := stream.recv(65536):
                found += part
        except ConnectionError:  # it was refused before all of it was sent
            return b""
        return found


@pytest.mark.slow
def test_malformed_requests_over_the_wire(tmp_path: Path) -> None:
    draw = random.Random(20261126)
    allowed = {200, 400, 404, 405, 406, 408, 411, 413, 415, 422, 431, 501}
    with running(tmp_path, methods={"fampe": {}}, max_bytes=100_000, read_timeout=2.0) as service:
        codes: dict[int, int] = {}
        for k in range(OVER_THE_WIRE):
            request = a_request(draw)
            found = answer_to(service, request)
            if found.startswith(b"HTTP/1.1 100 "):
                found = found.partition(b"\r\n\r\n")[2]
            if found.startswith(b"HTTP/1.1 "):
                code = int(found[9:12])
                codes[code] = codes.get(code, 0) + 1
                assert code in allowed, (k, request[:300], found[:300])
                assert b"Traceback" not in found
            else:
                assert found == b"", (k, request[:300], found[:300])
            if k % 500 == 0:
                assert service.explain(photo()).code == 200
        assert service.explain(photo()).code == 200
        assert len(codes) >= 6
        assert codes[400] > 200
        assert not service.events("unexpected error")
        assert not service.events("Exception in ASGI application")
        assert service.end() == 0


def test_malformed_bodies_and_queries_are_asks_or_refusals() -> None:
    draw = random.Random(7)
    good = instances(
        photo(0, (8, 8)), photo(1, (8, 8)), parameters={"passes": 3, "method": "fampe"}, target=3, image_id=5
    )
    content = json.loads(good)
    asks, refusals = 0, list[str]()
    names = ["passes", "target", "seed", "image_id", "method", "reproducible", "x", ""]
    values = ["1", "-1", "true", "1.5", "", "９", "1" * 400, "fampe", "\0", "None", "0x10", " 3"]
    for _ in range(IN_PROCESS):
        query = [(draw.choice(names), draw.choice(values)) for _ in range(draw.randrange(3))]
        kind = draw.choice(["explain", "predict"])
        try:
            if draw.random() < 0.2:
                found = read_image_request(kind, query, "fampe", b"x")
            elif draw.random() < 0.5:
                found = read_json_request(kind, query, "fampe", spoiled(draw, good), 4)
            else:
                found = read_json_request(kind, query, "fampe", json.dumps(replaced(draw, content)).encode(), 4)
        except AskError as error:
            refusals.append(str(error))
            continue
        asks += 1
        assert 1 <= len(found.instances) <= 4
        assert all(isinstance(one.data, bytes) for one in found.instances)
        assert all(type(one.target) in (int, type(None)) and (one.target or 0) >= 0 for one in found.instances)
        assert type(found.ask.passes) in (int, type(None))
        assert type(found.ask.reproducible) is bool
    assert asks > 100
    assert len(refusals) > 1000
    assert max(map(len, refusals)) < 400


def replaced(draw: random.Random, value: object) -> object:
    """Put something else in some places of what JSON holds."""
    if draw.random() < 0.06:
        return draw.choice([None, True, -1, 2.5, 10**40, "", "x", [], {}, [[]], {"b64": "AA=="}, {"b64": 3}])
    if isinstance(value, dict):
        return {(key if draw.random() > 0.03 else key[::-1]): replaced(draw, one) for key, one in value.items()}
    return [replaced(draw, one) for one in value] if isinstance(value, list) else value


def test_any_accept_header_gives_a_form_or_none() -> None:
    draw = random.Random(3)
    parts = [
        "image/png",
        "*/*",
        "application/json",
        "application/x-npy",
        "image/*",
        "text/html",
        ";q=0",
        ";q=nan",
        ";q=0.5",
        ",",
        "q",
        "=",
        "/",
        " ",
    ]
    for _ in range(3000):
        found = chosen_form("".join(draw.choice(parts) for _ in range(draw.randrange(7))))
        assert found is None or found in FORMS


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("image/*", "image/png"),
        ("application/*", "application/json"),
        ("application/x-npy, application/json", "application/x-npy"),
        ("application/json;q=0.5, image/png;q=0.9", "image/png"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
        ("text/html", None),
        ("image/png;q=0", None),
        ("IMAGE/PNG", "image/png"),
    ],
)
def test_the_wanted_form_is_chosen(accept: str | None, form: str | None) -> None:
    assert chosen_form(accept) == form
