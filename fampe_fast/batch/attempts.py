"""Count on disk how often a shard was begun and not finished: what kills a process leaves nothing else behind."""

from __future__ import annotations

from .storage import Storage

FOLDER = "attempts"


def begin(storage: Storage, shard: int) -> int:
    """Mark that a shard is begun.

    Returns:
        Which attempt this is: 1 where every earlier one ended without taking its process along.
    """
    number = 1
    while storage.exists(_name(shard, number)):
        number += 1
    storage.write(_name(shard, number), b"")
    return number


def clear(storage: Storage, shard: int) -> None:
    """Remove a shard's marks, whatever their numbers: it is finished."""
    for name in list(storage.names(f"{FOLDER}/{shard:06d}-")):
        storage.remove(name)


def take_back(storage: Storage, shard: int, number: int) -> None:
    """Remove the mark of an attempt that ended for a reason which is not the shard's, as a full disk."""
    storage.remove(_name(shard, number))


def unfinished(storage: Storage) -> dict[int, int]:
    """Count the attempts of each shard that has any."""
    counts: dict[int, int] = {}
    for name in storage.names(f"{FOLDER}/"):
        shard, _, number = name.rpartition("/")[2].partition("-")
        if shard.isdigit() and number.isdigit():
            counts[int(shard)] = max(counts.get(int(shard), 0), int(number))
    return counts


def _name(shard: int, number: int) -> str:
    return f"{FOLDER}/{shard:06d}-{number}"
