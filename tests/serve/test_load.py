"""Load: what is promised to those who are let in, what a drain costs them, and what company changes."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from .running import PATH, PNG, Running, photo, running
from .test_refusals import resident

ONE = {"fampe": {}}


def together(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.slow
def test_company_changes_no_byte_of_a_reproducible_answer(tmp_path: Path) -> None:
    query = "reproducible=true&passes=10"
    with running(tmp_path, methods=ONE, queue=200) as service:
        alone = [service.explain(photo(k), query).body for k in range(4)]
        found: dict[int, bytes] = {}

        def ask(k: int) -> None:
            if k % 3:
                service.explain(photo(k), "passes=10")
            else:
                found[k] = service.explain(photo(k // 3 % 4), query).body

        together(48, ask)
        assert service.metric("fampe_batch_images_sum") > service.metric("fampe_batch_images_count")
        assert [found[k] for k in sorted(found)] == [alone[k // 3 % 4] for k in sorted(found)]


@pytest.mark.slow
def test_images_of_one_ask_share_batches_and_of_others_do_not(tmp_path: Path) -> None:
    with running(tmp_path, methods=ONE, delay=0.05, batch_size=4) as service:
        sizes: dict[int, int] = {}

        def ask(k: int) -> None:
            answer = service.explain(photo(k), f"passes={2 if k % 2 else 1}")
            sizes[k] = answer.json["explanations"][0]["batch_size"]
            assert answer.json["explanations"][0]["passes"] == (2 if k % 2 else 1)

        together(16, ask)
        assert max(sizes.values()) == 4


@pytest.mark.slow
def test_overload_is_shed_and_those_who_are_let_in_get_what_the_queue_promises(tmp_path: Path) -> None:
    with running(tmp_path, methods=ONE, delay=0.02, queue=16, batch_size=8) as service:
        codes: Counter[int] = Counter()
        times: list[tuple[float, float]] = []
        headers: list[dict[str, str]] = []

        def ask(k: int) -> None:
            connection = service.connect()
            for _ in range(8):
                answer = service.explain(photo(k), connection=connection)
                codes[answer.code] += 1
                if answer.code == 200:
                    (found,) = answer.json["explanations"]
                    times.append((found["queue_ms"], found["device_ms"]))
                else:
                    headers.append(answer.headers)
                    time.sleep(0.02)

        together(64, ask)
        assert set(codes) == {200, 429}
        assert sum(codes.values()) == 512
        assert codes[429] > 50
        assert all(1 <= int(found["retry-after"]) <= 60 for found in headers)
        # A full queue is three batches: two that wait and the one on the device.
        slowest = max(device for _, device in times)
        assert sorted(map(sum, times))[int(0.99 * len(times))] < 3 * slowest + 300
        assert service.metric("fampe_queue_images") == 0


@pytest.mark.slow
def test_a_drain_under_load_breaks_no_request(tmp_path: Path) -> None:
    with running(tmp_path, methods=ONE, delay=0.01, queue=64) as service:
        codes: Counter[str] = Counter()
        end = threading.Event()

        def ask(k: int) -> None:
            connection: http.client.HTTPConnection | None = None
            while not end.is_set():
                try:
                    connection = connection or service.connect()
                    connection.connect() if connection.sock is None else None
                except OSError:  # nobody listens any more: refused before anything was asked
                    codes["not connected"] += 1
                    return
                try:
                    answer = service.explain(photo(k), connection=connection)
                    codes[str(answer.code)] += 1
                    if answer.headers.get("connection") == "close":
                        connection.close()
                        connection = None
                except (OSError, http.client.HTTPException) as error:
                    codes[f"broken: {error!r}"] += 1
                    return

        asking = threading.Thread(target=together, args=(16, ask))
        asking.start()
        service.wait_until(lambda: codes["200"] >= 50)
        code = service.end()
        end.set()
        asking.join()
        assert code == 0
        assert codes["200"] >= 50
        assert codes["503"] > 0
        assert not [name for name in codes if name.startswith("broken")], codes
        assert [line["event"] for line in service.events("draining")] == ["draining"]


@pytest.mark.slow
def test_what_was_taken_in_is_answered_after_the_request_to_end(tmp_path: Path) -> None:
    with running(tmp_path, methods=ONE, batch_size=1) as service:
        service.hold()
        codes: list[int] = []
        asking = threading.Thread(target=together, args=(6, lambda k: codes.append(service.explain(photo(k)).code)))
        asking.start()
        service.wait_until(lambda: service.metric("fampe_queue_images") == 5)
        assert service.process.pid is not None
        os.kill(service.process.pid, signal.SIGTERM)
        service.wait_until(lambda: bool(service.events("draining")))
        assert service.ask(path="/v2/health/ready").code == 503
        assert service.ask(path="/v2/health/live").code == 200
        late = service.explain(photo())
        assert (late.code, late.error, late.headers["connection"]) == (503, "the service is draining", "close")
        service.release()
        asking.join()
        service.process.join(30)
        assert codes == [200] * 6
        assert service.process.exitcode == 0


@pytest.mark.slow
def test_a_drain_ends_at_its_deadline_and_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with running(tmp_path, methods=ONE, batch_size=1, drain_timeout=0.5) as service:
        service.hold()
        asking = threading.Thread(target=together, args=(8, lambda k: quietly(service, k)))
        asking.start()
        service.wait_until(lambda: service.metric("fampe_queue_images") == 7)
        assert service.end(signal.SIGHUP) == 0
        assert service.events("drain timeout")
        asking.join()
    with running(tmp_path, methods=ONE, batch_size=1, drain_timeout=60) as service:
        service.hold()
        asking = threading.Thread(target=together, args=(8, lambda k: quietly(service, k)))
        asking.start()
        service.wait_until(lambda: service.metric("fampe_queue_images") == 7)
        assert service.process.pid is not None
        os.kill(service.process.pid, signal.SIGINT)
        service.wait_until(lambda: bool(service.events("draining")))
        assert service.end() == 128 + signal.SIGTERM
        asking.join()


def quietly(service: Running, k: int) -> None:
    try:
        service.explain(photo(k))
    except (OSError, http.client.HTTPException):
        return


@pytest.mark.slow
def test_clients_that_leave_cost_the_device_nothing(tmp_path: Path) -> None:
    with running(tmp_path, methods=ONE, batch_size=1) as service:
        service.hold()
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: {len(photo())}\r\n\r\n"
        streams = [service.socket() for _ in range(12)]
        for stream in streams:
            stream.sendall(head.encode() + photo())
        service.wait_until(lambda: service.holding and service.metric("fampe_queue_images") == 11)
        for stream in streams:
            stream.close()
        service.wait_until(lambda: service.metric("fampe_cancelled_total") == 11)
        service.release()
        service.wait_until(lambda: service.metric("fampe_queue_images") == 0)
        service.wait_until(lambda: 'code="499"' in service.ask(path="/metrics").body.decode())
        assert service.explain(photo()).code == 200
        assert service.metric("fampe_batch_images_sum") == 2  # the one it was held with, and the last one


@pytest.mark.slow
def test_memory_is_flat_over_thousands_of_requests(tmp_path: Path) -> None:
    with running(tmp_path, methods=ONE, queue=64) as service:
        images = [photo(k) for k in range(8)]

        def ask(count: int) -> None:
            def each(k: int) -> None:
                connection = service.connect()
                for n in range(count // 4):
                    body = images[(k + n) % 8] if n % 10 else b"no image"
                    # Methods of their own: what is kept of each has to be let go of.
                    path = f"{PATH}?seed={n}" if n % 5 == 1 else PATH.replace("explain", "predict")
                    answer = service.ask("POST", path, body, PNG, connection)
                    assert answer.code == (200 if n % 10 else 400)

            together(4, each)

        ask(1500)
        before = resident(service)
        ask(2000)
        assert resident(service) - before < 7 * 2**20  # 3.6 kB a request
        assert service.metric("fampe_requests_total") >= 3500
