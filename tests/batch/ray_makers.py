"""Actors for the tests of the Ray engine: with the small model, slow, or ending their own process."""

from __future__ import annotations

import os
import signal
import sys
import time

from fampe_fast.batch import ray_engine
from fampe_fast.batch.decoding import Decoded
from fampe_fast.batch.feed import Feed, ShardImages
from fampe_fast.batch.ray_engine import ShardMaker
from fampe_fast.batch.storage import open_storage
from fampe_fast.batch.worker import Worker

from .small_runs import a_classifier

DEADLY_SHARD = 3


class _Slow(Worker):
    def _images(self, feed: Feed, shard: ShardImages, first: int, last: int) -> list[Decoded]:
        time.sleep(1)
        return super()._images(feed, shard, first, last)


class _Dying(Worker):
    deaths = 1

    def _images(self, feed: Feed, shard: ShardImages, first: int, last: int) -> list[Decoded]:
        if shard.number == DEADLY_SHARD and self._begun[DEADLY_SHARD] <= self.deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._images(feed, shard, first, last)


class _Poisoned(_Dying):
    deaths = 10**9


class SmallMaker(ShardMaker):
    """Has the small model, which no name stands for."""

    worker: type[Worker] = Worker

    def load(self) -> Worker:
        return self.worker(self.dest, classifier=a_classifier(), processes=self.decoders)


class SlowMaker(SmallMaker):
    """Takes a second for a shard."""

    worker = _Slow


class DyingMaker(SmallMaker):
    """Dies in the first attempt at a shard."""

    worker = _Dying


class PoisonedMaker(SmallMaker):
    """Dies in each attempt at a shard."""

    worker = _Poisoned


class UnloadableMaker(ShardMaker):
    """Has no model."""

    def load(self) -> Worker:
        raise ValueError("the model is not the planned one")


def drive() -> None:
    """Be a driver: python -c "from tests.batch.ray_makers import drive; drive()" DEST ADDRESS."""
    ray_engine.ShardMaker = SlowMaker  # type: ignore[misc]
    ray_engine.run_ray(open_storage(sys.argv[1]), address=sys.argv[2], workers=1, decoders=0)
