"""Tell workers on other machines to end; the actor that does so imports nothing else."""

from __future__ import annotations


class StopSign:
    """Says to all workers whether to begin another shard."""

    def __init__(self) -> None:
        """Let them."""
        self._set = False

    def set(self) -> None:
        """Have them begin no other."""
        self._set = True

    def is_set(self) -> bool:
        """Tell whether they are to end."""
        return self._set
