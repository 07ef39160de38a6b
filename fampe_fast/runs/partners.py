"""Give metrics that show an image beside others the images of the whole run, whatever batch they are in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..images import load_images
from ..metrics import Partners
from ..models.classifier import Classifier
from .batches import Batch, Group, device_of
from .records import Item, Records, digest_of_settings

_KEPT = 32  # images; all methods of a comparison ask for the partners of a batch, one after the other


def partners_of_run(
    classifier: Classifier,
    groups: Iterable[Group],
    records: Records,
    answers: str,
    answer: Callable[[Batch], list[dict[str, Any]]],
) -> tuple[Partners, str]:
    """Offer the images of a run to each other, each read again where it is needed.

    Args:
        classifier: whose transform reads them.
        groups: all images; one that cannot be read or answered for is no partner.
        records: where the answers are, and where those that are missing go.
        answers: their context.
        answer: gives the answers of a batch, the class as ``target`` among them.

    Returns:
        The partners, and a name for all that they depend on: the images' content, their ids and their classes.
    """
    known: list[tuple[Item, int]] = []
    for group in groups:
        group.settle_in(records, answers, answer)
        found = [(item, records.get(answers, item)) for item in group.items]
        known += [(item, entry["target"]) for item, entry in found if entry is not None]

    @lru_cache(maxsize=_KEPT)
    def load(place: int) -> Tensor:
        ((_, image),) = load_images([known[place][0].path], classifier.transform)
        if not isinstance(image, Tensor):
            raise image  # gone since
        return image.to(device_of(classifier))

    ids = torch.tensor([item.image_id for item, _ in known], dtype=torch.long, device="cpu")
    targets = torch.tensor([target for _, target in known], dtype=torch.long, device="cpu")
    name = digest_of_settings({"partners": sorted((item.image_id, target, item.digest) for item, target in known)})
    return Partners(ids, targets, load), name
