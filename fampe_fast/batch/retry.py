"""Try again after a transient failure, with growing pauses."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from .failures import TransientError

Result = TypeVar("Result")


class Retry:
    """Call functions again after a ``TransientError``, each time after a longer pause.

    Pauses double from ``base`` up to ``longest`` and are shortened by up to a half at random, so that workers that
    failed together do not retry together.
    """

    def __init__(
        self,
        attempts: int = 4,
        base: float = 0.5,
        longest: float = 30.0,
        *,
        seed: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Set the number of attempts and the pauses.

        Args:
            attempts: total number of calls, at least 1.
            base: seconds before the second call.
            longest: seconds before any call.
            seed: seed of the pauses' random part; None differs in every process.
            sleep: function that waits for seconds.
        """
        self._attempts, self._base, self._longest, self._sleep = attempts, base, longest, sleep
        self._random = random.Random(seed)

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a function without arguments until it succeeds.

        Raises:
            TransientError: the error of the last attempt; other errors are raised at once.
        """
        for attempt in range(self._attempts):
            try:
                return function()
            except TransientError:
                if attempt == self._attempts - 1:
                    raise
            self._sleep(min(self._longest, self._base * 2**attempt) * (1 - self._random.random() / 2))
        raise ValueError(f"attempts must be at least 1, got {self._attempts}")
