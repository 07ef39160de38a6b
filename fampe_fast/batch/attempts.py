"""Count on disk how often a shard was begun and not finished, as killed processes leave no other trace."""

from __future__ import annotations

from .storage import Storage

FOLDER = "attempts"


def begin(storage: Storage, shard: int) -> int:
    """Mark a shard as begun.

    Returns:
        The number of this attempt: 1 if no earlier one ended its process.
    """
    number = 1
    while storage.exists(_name(shard, number)):
        number += 1
    storage.write(_name(shard, number), b"")
    return number


def clear(storage: Storage, shard: int) -> None:
    """Remove all marks of a finished shard."""
    for name in list(storage.names(f"{FOLDER}/{shard:06d}-")):
        storage.remove(name)


def take_back(storage: Storage, shard: int, number: int) -> None:
    """Remove the mark of an attempt that ended for another reason than the shard, such as a full disk."""
    storage.remove(_name(shard, number))


def unfinished(storage: Storage) -> dict[int, int]:
    """Count the attempts of every shard with marks."""
    counts: dict[int, int] = {}
    for name in storage.names(f"{FOLDER}/"):
        shard, _, number = name.rpartition("/")[2].partition("-")
        if shard.isdigit() and number.isdigit():
            counts[int(shard)] = max(counts.get(int(shard), 0), int(number))
    return counts


def _name(shard: int, number: int) -> str:
    return f"{FOLDER}/{shard:06d}-{number}"
