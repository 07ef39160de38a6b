"""Feed a model the images of one shard after the other, decoded in advance."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from .decoding import Decoded, Decoders
from .plan import Plan, Row, read_rows
from .storage import Storage

ROWS_TOGETHER = 8
"""Rows that a process decodes at once: few, so that all processes work on the next batch."""


@dataclass
class ShardImages:
    """A shard whose images are needed now or soon.

    Attributes:
        number: number of the shard.
        rows: all of its rows.
        found: the decoded images, in order; they are kept until the shard is done, as it may be made again.
        asked: the following rows that processes are decoding.
    """

    number: int
    rows: list[Row]
    found: list[Decoded] = field(default_factory=list)
    asked: deque[Future[list[Decoded]]] = field(default_factory=deque)

    def next_rows(self) -> list[Row]:
        """Return the next rows to submit together."""
        start = len(self.found) + ROWS_TOGETHER * len(self.asked)
        return self.rows[start : start + ROWS_TOGETHER]


class Feed:
    """The shards of a run and their images."""

    def __init__(self, storage: Storage, plan: Plan, decoders: Decoders, shards: Iterable[int]) -> None:
        """Store the shards, in the order in which they will be made.

        Args:
            storage: the plan's storage.
            plan: the plan.
            decoders: decoding processes; enough images are submitted for all of them to work during a batch.
            shards: numbers of the shards; the next one is requested some batches before it begins.
        """
        self._storage, self._plan, self._decoders = storage, plan, decoders
        self._source = iter(shards)
        self._coming: deque[ShardImages] = deque()
        self._begun = False
        self._ahead = True
        self._alone: Iterator[Decoded] | None = None
        self._window = 2 * decoders.processes - (-2 * plan.batch_size // ROWS_TOGETHER)

    def begin(self) -> ShardImages | None:
        """Go to the next shard; None if there is none."""
        if self._begun:
            self._coming.popleft()
        self._ahead, self._alone = True, None
        self._begun = bool(self._coming) or self._pull()
        return self._coming[0] if self._begun else None

    def images(self, first: int, last: int) -> list[Decoded]:
        """Wait for the images of some of the shard's rows, in ascending order.

        Args:
            first: position of the first one in the shard.
            last: position after the last one.

        Raises:
            DecoderDiedError: a decoder died; call ``again``, and repeat the call.
        """
        shard = self._coming[0]
        while len(shard.found) < last:
            if self._alone is not None:
                shard.found.append(next(self._alone))
            elif not self._decoders.processes:
                shard.found += self._decoders.here(shard.next_rows())
            else:
                self._ask()
                shard.found += self._decoders.result(shard.asked[0])
                shard.asked.popleft()
        self._ask()
        return shard.found[first:last]

    def again(self, *, one_by_one: bool) -> None:
        """Continue after a decoder's death, without images of other shards until this one is done.

        Another death is then caused by this shard.

        Args:
            one_by_one: decode single images in a separate process, to find the one that kills it.
        """
        for shard in self._coming:
            shard.asked.clear()
        self._ahead = False
        if one_by_one:
            self._alone = self._decoders.one_by_one(self._coming[0].rows[len(self._coming[0].found) :])

    def _ask(self) -> None:
        """Submit images up to the window, this shard's before later ones."""
        if not self._decoders.processes or self._alone is not None:
            return
        asked = sum(len(shard.asked) for shard in self._coming)
        while asked < self._window:
            of = [shard for shard in self._coming if shard.next_rows()][:1]
            if not self._ahead and of != [self._coming[0]]:
                return
            if not of:
                if not self._pull():
                    return
                continue
            of[0].asked.append(self._decoders.submit(of[0].next_rows()))
            asked += 1

    def _pull(self) -> bool:
        number = next(self._source, None)
        if number is None:
            return False
        self._coming.append(ShardImages(number, read_rows(self._storage, self._plan, number)))
        return True
