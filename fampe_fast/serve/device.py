"""Run the device: one thread explains the waiting images in batches, and reports a lost device."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

import torch

from ..answers.explainer import Answer, Item, OutOfMemoryError
from ..answers.pixels import batch_of
from ..answers.result import RowError
from ..errors import first_line, kind_and_line
from ..models.classifier import Classifier
from ..runtime.lost_device import is_of_device
from ..runtime.model_probe import probabilities_of
from ..runtime.out_of_memory import release_memory
from .asks import Ask
from .job_queue import Job, JobQueue, Outcome, Prediction
from .log import log
from .method_book import MethodBook, Recipe
from .settings import ServiceSettings

TOP = 5
"""Number of classes in a prediction."""


class Observer(Protocol):
    """Receives reports of the device's work, in its thread."""

    def batch(self, images: int, passes: int, took: float, waited: Sequence[float]) -> None:
        """Record a batch."""

    def halved(self) -> None:
        """Record a chunk that did not fit into memory."""


class DeviceLostError(RuntimeError):
    """The device can no longer be used by this process."""


class Device:
    """The thread that runs the model."""

    def __init__(
        self,
        classifier: Classifier,
        book: MethodBook,
        queue: JobQueue,
        settings: ServiceSettings,
        observer: Observer,
        threads: int,
    ) -> None:
        """Store the parts; ``start`` begins the work.

        Args:
            classifier: the model, on the device.
            book: the methods.
            queue: queue of the images.
            settings: settings of the service.
            observer: receives reports of the work.
            threads: torch's number of threads on a CPU.
        """
        self._classifier = classifier
        self._book = book
        self._queue = queue
        self._size = settings.batch_size
        self._pinned = self._chunk = settings.internal_batch_size
        self._observer = observer
        self._threads = threads
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self.ready = False
        """Whether every method has made a first map."""
        self.failure = ""
        """The reason why the device has stopped; empty while it works."""
        self.seconds_per_image = 0.1
        """Recent seconds per image."""
        self.busy = 0.0
        """Total seconds of work."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Wait for the thread to end, after the queue was closed."""
        self._thread.join(timeout)

    def _run(self) -> None:
        if self._classifier.mean.device.type == "cpu":
            torch.set_num_threads(self._threads)  # of this thread
        try:
            began = time.monotonic()
            self._book.warm_up()
            self.ready = True
            log("ready", seconds=round(time.monotonic() - began, 3), methods=list(self._book.names))
            while (jobs := self._queue.take(self._size)) is not None:
                self._work(jobs)
        except BaseException as error:  # whatever ends the thread ends the service
            self.failure = kind_and_line(error)
            log("device lost" if self.ready else "cannot start", level="error", reason=self.failure)
            for job in self._queue.close():
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(DeviceLostError(self.failure))

    def _work(self, jobs: list[Job]) -> None:
        began = time.monotonic()
        waited = [began - job.since for job in jobs]
        try:
            found, chunk, recipe = self._found(jobs[0].ask, [job.item for job in jobs])
        except Exception as error:
            lost = is_of_device(error)
            if lost:  # whoever is answered finds it said
                self.failure = kind_and_line(error)
            for job in jobs:
                job.future.set_exception(DeviceLostError(first_line(error)) if lost else error)
            if lost:
                raise
            log("batch failed", level="error", images=len(jobs), reason=kind_and_line(error))
            return
        took = time.monotonic() - began
        self.busy += took
        self.seconds_per_image += 0.2 * (took / len(jobs) - self.seconds_per_image)
        self._observer.batch(len(jobs), len(jobs) * (1 if recipe is None else recipe.passes), took, waited)
        for job, one, seconds in zip(jobs, found, waited, strict=True):
            job.future.set_result(Outcome(one, len(jobs), chunk, seconds, took, recipe))

    def _found(
        self, ask: Ask, items: list[Item]
    ) -> tuple[Sequence[Answer | Prediction | RowError], int, Recipe | None]:
        if ask.kind == "predict":
            return self._predictions(items), self._chunk, None
        recipe = self._book.recipe(ask)
        chunk = self._pinned if ask.reproducible else self._chunk
        while True:
            try:
                return recipe.explainer(items, chunk), chunk, recipe
            except OutOfMemoryError as error:
                if ask.reproducible:  # another chunk would change the last bits
                    reason = f"out of memory with the {chunk} samples per model pass that a reproducible map takes"
                    return [RowError(reason, "transient")], chunk, recipe
                reason = first_line(error)
            chunk //= 2
            # Kept for later batches, which would otherwise fail first.
            self._chunk = chunk
            self._observer.halved()
            log("out of memory", level="warning", chunk=chunk, reason=reason)
            release_memory(self._classifier.mean.device)

    def _predictions(self, items: Sequence[Item]) -> list[Prediction]:
        images = batch_of(
            [item.image for item in items if not isinstance(item.image, RowError)], self._classifier.mean.device
        )
        probabilities = probabilities_of(self._classifier, images, self._chunk)
        found = probabilities.topk(min(TOP, probabilities.shape[1]))
        return [
            Prediction(tuple(values), tuple(classes))
            for values, classes in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]
