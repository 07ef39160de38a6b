"""Make one shard after the other, for every engine and on every machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch

from ..answers.environment import processor_of, versions_now
from ..answers.explainer import Answer, Explainer, Item, OutOfMemoryError
from ..answers.result import Result, RowError
from ..methods.base import passes_of
from ..models.classifier import Classifier
from ..ops.backends import VARIABLE
from ..runtime.out_of_memory import release_memory
from . import attempts
from .decoding import Decoded, Decoder, DecoderDiedError, Decoders, usual_processes
from .feed import Feed, ShardImages
from .plan import Plan, Row, read_back, warn_of_versions
from .planning import method_of
from .run_log import RunLog
from .shards import encode_shard, shard_name
from .storage import Storage

ALONE_FROM = 3
"""The attempt from which a shard's images are decoded one by one, in a separate process."""


class ShardReport(NamedTuple):
    """The result of making a shard."""

    shard: int
    rows: int
    errors: int
    """Rows without a map."""
    transient: int
    """Those of them that another try may heal."""
    bytes: int
    sha256: str
    chunk: int
    """Samples per model pass: the plan's, or fewer after an out-of-memory error."""
    attempt: int
    """Number of this attempt, from 1."""
    seconds: float
    """Duration in seconds, from the end of the previous shard."""
    explaining: float
    """Seconds of these in which the device explained it."""
    waiting: float
    """Seconds of these in which the device waited for its images."""
    storing: float
    """Seconds for encoding and storing it, in parallel to the next shard."""


class Worker:
    """Makes shards of a plan on one device: call it with a shard's number, or let it ``work`` through many."""

    def __init__(
        self,
        storage: Storage,
        *,
        device: str | None = None,
        classifier: Classifier | None = None,
        processes: int | None = None,
        trust_model: bool = False,
        plan: Plan | None = None,
    ) -> None:
        """Load the model, and compare it with the plan's.

        Args:
            storage: storage of the plan and the shards.
            device: device of the plan's kind; None for the first one.
            classifier: the plan's model, if it is already loaded.
            processes: number of decoding processes; 0 decodes in this process, None chooses.
            trust_model: load the model even if it is a program.
            plan: plan to use in place of the stored one, to run it on another kind of device.

        Raises:
            ValueError: no plan, a device of another kind than the plan's, or another model or method than the plan's.
            ImportError: a package for the plan is not installed.
        """
        self._storage = storage
        self.plan = plan = read_back(storage) if plan is None else plan
        device = device or plan.device
        if torch.device(device).type != plan.device:
            raise ValueError(f"the plan is for the device {plan.device!r}, got {device!r}: the maps would differ")
        versions = versions_now()
        warn_of_versions(plan, versions)
        os.environ[VARIABLE] = plan.backend
        self._set_threads()
        self._device = torch.device(device)
        self._classifier = plan.model.load(device, trust_model=trust_model) if classifier is None else classifier
        processes = usual_processes(device) if processes is None else processes
        self._decoders = Decoders(Decoder.of(plan, self._classifier.transform), processes)
        self._explainer = Explainer(method_of(plan, self._classifier), self._classifier, plan.shape)
        self._described = {
            "passes": passes_of(self._explainer.method),
            "versions": versions,
            "processor": processor_of(self._device),
        }
        self._finisher = ThreadPoolExecutor(1, "finish shards")
        self._begun: dict[int, int] = {}
        self.log = RunLog(storage, plan=plan.key, device=device, processes=processes, versions=versions)

    def __call__(self, shard: int) -> ShardReport:
        """Make a shard; it is stored when this returns. Errors are those of ``work``."""
        return next(self.work([shard]))

    def batch(self, rows: Sequence[Row], chunk: int) -> list[Result]:
        """Make the rows of one of the plan's batches, without storing them.

        Args:
            rows: rows of the whole batch.
            chunk: samples per model pass.

        Raises:
            OutOfMemoryError: the chunk does not fit.
            RuntimeError: the device fails, or the method's maps do not match the plan.
        """
        self._set_threads()
        decode = self._decoders.one_by_one if self._decoders.processes else self._decoders.here
        return self._finish(self._explain(rows, list(decode(rows)), chunk))

    def close(self) -> None:
        """End the decoding processes, and write the rest of the log."""
        self._decoders.close()
        self._finisher.shutdown()
        self.log.flush()

    def work(
        self, shards: Iterable[int], stop: Callable[[], bool] = lambda: False
    ) -> Generator[ShardReport, None, None]:
        """Make shards in order: while one is explained, the next is decoded and the last is stored.

        Args:
            shards: numbers of the shards; the next one is requested some batches before it begins.
            stop: returns True to begin no other shard.

        Yields:
            A report of each stored shard.

        Raises:
            OSError: the results cannot be stored; earlier shards are complete.
            RuntimeError: the device fails, or the method's maps do not match the plan.
        """
        self._set_threads()
        feed = Feed(self._storage, self.plan, self._decoders, shards)
        storing: Future[ShardReport] | None = None
        through = time.monotonic()
        try:
            while not stop() and (shard := feed.begin()) is not None:
                self._begun[shard.number] = attempts.begin(self._storage, shard.number)
                parts, chunk, explaining, waiting = self._make(feed, shard)
                if storing is not None:
                    yield storing.result()
                before, through = through, time.monotonic()
                storing = self._finisher.submit(
                    self._store, shard, parts, chunk, (through - before, explaining, waiting)
                )
            if storing is not None:
                yield storing.result()
        except (OSError, KeyboardInterrupt, GeneratorExit):
            # None of these is caused by the shard. If the store is lost, its marks remain.
            with contextlib.suppress(OSError):
                for number, attempt in list(self._begun.items()):
                    attempts.take_back(self._storage, number, attempt)
            raise

    def _make(self, feed: Feed, shard: ShardImages) -> tuple[list[Future[list[Result]]], int, float, float]:
        """Explain a shard, again with half the chunk after an out-of-memory error."""
        chunk, explaining, waiting = self.plan.internal_batch_size, 0.0, 0.0
        size = self.plan.batch_size
        if self._begun[shard.number] >= ALONE_FROM:
            feed.again(one_by_one=True)
        while True:
            parts: list[Future[list[Result]]] = []
            try:
                for first in range(0, len(shard.rows), size):
                    began = time.monotonic()
                    images = self._images(feed, shard, first, min(first + size, len(shard.rows)))
                    came = time.monotonic()
                    answers = self._explain(shard.rows[first : first + size], images, chunk)
                    explaining, waiting = explaining + time.monotonic() - came, waiting + came - began
                    parts.append(self._finisher.submit(self._finish, answers))
                return parts, chunk, explaining, waiting
            except OutOfMemoryError as error:
                self.log.write("out of memory", shard=shard.number, chunk=chunk, reason=str(error))
                explaining += time.monotonic() - came
                chunk //= 2
            release_memory(self._device)

    def _images(self, feed: Feed, shard: ShardImages, first: int, last: int) -> list[Decoded]:
        while True:
            try:
                return feed.images(first, last)
            except DecoderDiedError as error:
                attempt = self._begun[shard.number]
                self.log.write("decoder died", shard=shard.number, attempt=attempt, reason=str(error))
                self._begun[shard.number] = attempts.begin(self._storage, shard.number)
                feed.again(one_by_one=attempt + 1 >= ALONE_FROM)

    # On the device ----------------------------------------------------------------------------------------------------

    def _explain(self, rows: Sequence[Row], images: Sequence[Decoded], chunk: int) -> list[Answer | RowError]:
        given = zip(images, rows, strict=True)
        return self._explainer([Item(image, row.target, row.image_id) for image, row in given], chunk)

    # Beside the device ------------------------------------------------------------------------------------------------

    def _finish(self, answers: Sequence[Answer | RowError]) -> list[Result]:
        """Convert the answers to the stored form."""
        finish, plan = self._explainer.finish, self.plan
        return [
            answer if isinstance(answer, RowError) else finish(answer, plan.map_dtype, plan.overlay)
            for answer in answers
        ]

    def _store(
        self,
        shard: ShardImages,
        parts: Sequence[Future[list[Result]]],
        chunk: int,
        took: tuple[float, float, float],
    ) -> ShardReport:
        began = time.monotonic()
        results = [result for part in parts for result in part.result()]
        content = encode_shard(self.plan, shard.number, shard.rows, results, {"chunk": chunk, **self._described})
        self._storage.write(shard_name(shard.number), content)
        attempt = self._begun.pop(shard.number)
        attempts.clear(self._storage, shard.number)
        errors = [result for result in results if isinstance(result, RowError)]
        report = ShardReport(
            shard.number,
            len(results),
            len(errors),
            sum(error.kind == "transient" for error in errors),
            len(content),
            hashlib.sha256(content).hexdigest(),
            chunk,
            attempt,
            *(round(value, 4) for value in (*took, time.monotonic() - began)),
        )
        self.log.write("shard", plan=self.plan.key, **report._asdict())
        return report

    def _set_threads(self) -> None:
        # Set in the calling thread: engines may call from another thread than they made the worker in.
        if self.plan.device == "cpu":
            torch.set_num_threads(self.plan.threads)
