"""Score images repeatedly with different settings, storing each batch's scores at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .batches import Batch, Group
from .records import Item, Records

Judge = Callable[[Batch, list[Item]], list[float]]


class ImagesLostError(Exception):
    """Images failed at one setting, and were removed from the search."""


def found_of(records: Records, context: str, item: Item, part: str = "") -> dict[str, Any]:
    """Look up the stored result of an image."""
    found = records.get(context, item, part)
    assert found is not None
    return found


def scores_of(groups: Sequence[Group], records: Records, context: str, part: str, judge: Judge) -> list[float]:
    """List the images' scores for one setting, in order, reusing stored ones.

    Args:
        groups: the images.
        records: the records of the scores.
        context: context of the search.
        part: name of the setting.
        judge: computes the scores of a batch.

    Raises:
        ImagesLostError: images failed, and were removed from their groups.
    """
    before = sum(len(group.items) for group in groups)
    for group in groups:
        items = {item.position: item for item in group.items}

        def work(batch: Batch, items: dict[int, Item] = items) -> list[dict[str, Any]]:
            return [{"score": score} for score in judge(batch, [items[position] for position in batch.positions])]

        group.settle_in(records, context, work, part)
    kept = [item for group in groups for item in group.items]
    if len(kept) < before:
        raise ImagesLostError
    return [float(found_of(records, context, item, part)["score"]) for item in kept]
