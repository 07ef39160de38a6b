"""Provide the images of the whole run as partners, for metrics that need them."""

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

_KEPT = 32  # images; all methods of a comparison need the partners of a batch, one after the other


def partners_of_run(
    classifier: Classifier,
    groups: Iterable[Group],
    records: Records,
    answers: str,
    answer: Callable[[Batch], list[dict[str, Any]]],
) -> tuple[Partners, str]:
    """Make the images of a run each other's partners, read again when needed.

    Args:
        classifier: the model, whose transform reads them.
        groups: all images; images that cannot be read or fail are not partners.
        records: records of the answers, to which missing ones are added.
        answers: context of the answers.
        answer: computes the answers of a batch, with the class as ``target``.

    Returns:
        The partners, and a key of everything they depend on: the images' content, ids and classes.
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
