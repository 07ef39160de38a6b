"""The queue: bounded, in order, alike together."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from fampe_fast.answers.explainer import Item
from fampe_fast.serve.asks import Ask
from fampe_fast.serve.job_queue import Job, JobQueue, QueueClosedError, QueueFullError

PIXELS = np.zeros((3, 2, 2), np.uint8)


def job(method: str = "fampe", *, left: float = 60.0, **asked: object) -> Job:
    ask = Ask("explain", method, **asked)  # type: ignore[arg-type]
    return Job(ask, Item(PIXELS, None, 0), time.monotonic() + left)


def test_those_alike_are_taken_together_and_the_others_keep_their_order() -> None:
    queue = JobQueue(10)
    a, b, c, d, e = job(passes=1), job(passes=2), job(passes=1), job(passes=2), job(passes=1)
    queue.put([a, b, c, d, e])
    assert queue.take(2) == [a, c]
    assert queue.take(8) == [b, d]
    assert queue.take(8) == [e]


def test_a_reproducible_one_is_alone_and_waits_its_turn() -> None:
    queue = JobQueue(10)
    jobs = [job(), job(reproducible=True), job(), job(reproducible=True)]
    queue.put(jobs)
    assert [queue.take(8) for _ in range(3)] == [[jobs[0], jobs[2]], [jobs[1]], [jobs[3]]]


def test_a_request_is_taken_in_whole_or_not_at_all() -> None:
    told: list[int] = []
    queue = JobQueue(3, told.append)
    queue.put([job(), job()])
    with pytest.raises(QueueFullError):
        queue.put([job(), job()])
    assert (len(queue), queue.full) == (2, False)
    queue.put([job()])
    assert queue.full
    queue.take(8)
    assert told == [2, 3, 0]


def test_what_was_given_up_or_is_too_late_is_not_taken() -> None:
    queue = JobQueue(10)
    late, gone, good = job(left=-1), job(), job()
    queue.put([late, gone, good])
    assert queue.give_up([gone]) == 1
    assert queue.take(8) == [good]
    assert isinstance(late.future.exception(), TimeoutError)
    assert queue.give_up([good]) == 0  # the device has begun it


def test_a_closed_queue_gives_back_what_waits_and_ends_the_wait() -> None:
    queue = JobQueue(10)
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(queue.take(1)))
    waiting.start()
    assert queue.close() == []
    waiting.join(10)
    assert found == [None]
    with pytest.raises(QueueClosedError):
        queue.put([job()])


def test_the_oldest_one_has_an_age() -> None:
    queue = JobQueue(10)
    assert queue.oldest() == 0
    old = job()
    old.since -= 5
    queue.put([old, job()])
    assert 5 <= queue.oldest() < 60
