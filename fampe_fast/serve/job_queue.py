"""Hold the images that wait for the device, in a bounded queue that groups images for batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from ..answers.explainer import Answer, Item
from ..answers.result import RowError
from .asks import Ask
from .method_book import Recipe


class QueueFullError(Exception):
    """The queue has no room for these images now."""


class QueueClosedError(Exception):
    """The queue is closed."""


class Prediction(NamedTuple):
    """The model's prediction for an image."""

    probabilities: tuple[float, ...]
    """The largest probabilities, in descending order."""
    classes: tuple[int, ...]
    """Their classes."""


class Outcome(NamedTuple):
    """The device's result for an image."""

    found: Answer | Prediction | RowError
    batch_size: int
    """Images that were explained together."""
    chunk: int
    """Samples per model pass."""
    waited: float
    """Seconds in the queue."""
    took: float
    """Seconds of the device for the whole batch."""
    recipe: Recipe | None = None
    """The method that explained it."""


@dataclass(eq=False)
class Job:
    """An image, its options, and the future of its outcome."""

    ask: Ask
    item: Item
    deadline: float
    """Deadline on the monotonic clock; work that has not begun by then is given up."""
    future: Future[Outcome] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class JobQueue:
    """A bounded queue between the threads of requests and the device's thread."""

    def __init__(self, size: int, changed: Callable[[int], None] = lambda waiting: None) -> None:
        """Make an empty queue.

        Args:
            size: largest number of images.
            changed: called with the number of waiting images whenever it changes.
        """
        self._size = size
        self._changed = changed
        self._jobs: deque[Job] = deque()
        self._closed = False
        self._filled = threading.Condition()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def full(self) -> bool:
        """Whether there is no room for another image."""
        return len(self._jobs) >= self._size

    def oldest(self) -> float:
        """Return the age of the image that waits longest, in seconds; 0 if none waits."""
        with self._filled:
            return time.monotonic() - self._jobs[0].since if self._jobs else 0.0

    def put(self, jobs: Sequence[Job]) -> None:
        """Add all images of a request, or none.

        Raises:
            QueueFullError: there is no room for all of them.
            QueueClosedError: the queue was closed.
        """
        with self._filled:
            if self._closed:
                raise QueueClosedError
            if len(self._jobs) + len(jobs) > self._size:
                raise QueueFullError
            self._jobs.extend(jobs)
            self._changed(len(self._jobs))
            self._filled.notify()

    def take(self, most: int) -> list[Job] | None:
        """Wait for an image, and take the waiting images that can share its batch, without waiting for more.

        Images whose request was given up, or whose deadline has passed, are dropped.

        Args:
            most: largest number of images in a batch.

        Returns:
            At least one image, whose futures are running; None if the queue is closed and empty.
        """
        while True:
            with self._filled:
                self._filled.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return None
                chosen = self._choose(most)
                self._changed(len(self._jobs))
            running = []
            for job in chosen:
                if not job.future.set_running_or_notify_cancel():
                    continue
                if time.monotonic() >= job.deadline:
                    job.future.set_exception(TimeoutError())
                    continue
                running.append(job)
            if running:
                return running

    def _choose(self, most: int) -> list[Job]:
        first = self._jobs.popleft()
        if first.ask.reproducible:
            return [first]
        chosen, left = [first], list[Job]()
        while self._jobs and len(chosen) < most:
            job = self._jobs.popleft()
            (chosen if job.ask == first.ask else left).append(job)
        self._jobs.extendleft(reversed(left))
        return chosen

    def give_up(self, jobs: Sequence[Job]) -> int:
        """Remove images whose request was given up.

        Returns:
            The number of images that the device had not begun; it finishes those that it has begun.
        """
        with self._filled:
            for job in jobs:
                if job in self._jobs:
                    self._jobs.remove(job)
            self._changed(len(self._jobs))
        return sum(job.future.cancel() for job in jobs)

    def close(self) -> list[Job]:
        """Close the queue, and return the waiting images."""
        with self._filled:
            self._closed = True
            left = list(self._jobs)
            self._jobs.clear()
            self._changed(0)
            self._filled.notify_all()
        return left
