"""Tell workers on other machines to stop, with an actor that needs no other imports."""

from __future__ import annotations


class StopSign:
    """Tells all workers whether to begin another shard."""

    def __init__(self) -> None:
        """Allow shards to begin."""
        self._set = False

    def set(self) -> None:
        """Stop workers from beginning another shard."""
        self._set = True

    def is_set(self) -> bool:
        """Tell whether workers must stop."""
        return self._set
