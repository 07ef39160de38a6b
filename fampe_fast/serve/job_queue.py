"""Hold images that wait for the device: so many and no more, in order, those that can share a batch together."""

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
    """There is no room for these images now."""


class QueueClosedError(Exception):
    """Nothing is taken in any more."""


class Prediction(NamedTuple):
    """What the model says of an image."""

    probabilities: tuple[float, ...]
    """The largest ones, in falling order."""
    classes: tuple[int, ...]
    """Their classes."""


class Outcome(NamedTuple):
    """What became of an image on the device."""

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
    """An image, what is asked of it, and the future of its outcome."""

    ask: Ask
    item: Item
    deadline: float
    """On the monotonic clock; what is not begun by then is given up."""
    future: Future[Outcome] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class JobQueue:
    """A bounded queue between the requests' threads and the one that owns the device."""

    def __init__(self, size: int, changed: Callable[[int], None] = lambda waiting: None) -> None:
        """Make an empty queue.

        Args:
            size: images it holds at most.
            changed: told how many wait, whenever that changes.
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
        """Whether there is no room for a single image."""
        return len(self._jobs) >= self._size

    def oldest(self) -> float:
        """Give the age of the image that waits longest, in seconds; 0 where none waits."""
        with self._filled:
            return time.monotonic() - self._jobs[0].since if self._jobs else 0.0

    def put(self, jobs: Sequence[Job]) -> None:
        """Add the images of a request, all or none.

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
        """Wait for images and take those that can share a batch with the first one; it waits for no company.

        Images whose request was given up, or whose deadline has passed, are left out.

        Args:
            most: images of a batch.

        Returns:
            At least one, whose futures are running; None where the queue is closed and empty.
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
        """Take out images whose request nobody waits for any more.

        Returns:
            How many of them cost the device nothing; what it has begun it ends.
        """
        with self._filled:
            for job in jobs:
                if job in self._jobs:
                    self._jobs.remove(job)
            self._changed(len(self._jobs))
        return sum(job.future.cancel() for job in jobs)

    def close(self) -> list[Job]:
        """Take nothing in any more, and give back what waits."""
        with self._filled:
            self._closed = True
            left = list(self._jobs)
            self._jobs.clear()
            self._changed(0)
            self._filled.notify_all()
        return left
