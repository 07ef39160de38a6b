"""Image files in batches, where one bad file or one failing image costs itself and not the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..images import load_images
from ..models.classifier import Classifier

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """An image that could not be done.

    Attributes:
        path: its file.
        reason: what went wrong, in words.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Batch:
    """Images that go through the model together.

    Attributes:
        paths: their files.
        positions: (B,) their places in the whole run, which name them in the random stream.
        images: (B, C, H, W) in [0, 1], on the classifier's device.
    """

    paths: list[Path]
    positions: list[int]
    images: Tensor

    def singles(self) -> list[Batch]:
        """The same images one by one."""
        return [
            Batch([path], [position], self.images[k : k + 1])
            for k, (path, position) in enumerate(zip(self.paths, self.positions, strict=True))
        ]


def targets_of_batch(classifier: Classifier, batch: Batch, targets: Sequence[int] | None) -> Tensor:
    """(B,) int64: the targets of a batch among those of the whole run; where there are none, the model's own choice."""
    if targets is not None:
        return torch.tensor([targets[position] for position in batch.positions], device=batch.images.device)
    with torch.no_grad():
        found: Tensor = classifier(batch.images).argmax(1)
    return found


def device_of(classifier: Classifier) -> torch.device:
    """The device the classifier's normalisation, and with it the model, is on."""
    return classifier.mean.device


def read_batches(
    classifier: Classifier, paths: Sequence[Path], size: int, on_failure: Callable[[Failure], None]
) -> Iterator[Batch]:
    """Batches of at most ``size`` readable images, in order; unreadable files go to ``on_failure``."""
    stream = enumerate(load_images(paths, classifier.transform))
    while part := list(islice(stream, size)):
        good = []
        for position, (path, image) in part:
            if isinstance(image, Tensor):
                good.append((position, path, image))
            else:
                on_failure(Failure(path, image.reason))
        if good:
            positions, names, images = zip(*good, strict=True)
            yield Batch(list(names), list(positions), torch.stack(images).to(device_of(classifier)))


def one_by_one_on_error(
    batch: Batch, work: Callable[[Batch], Result], on_failure: Callable[[Failure], None]
) -> Iterator[tuple[Batch, Result]]:
    """The batch's result; if it fails, the results of its images one by one, failures to ``on_failure``."""
    try:
        yield batch, work(batch)
        return
    except Exception as error:
        if len(batch.paths) == 1:
            on_failure(Failure(batch.paths[0], f"{type(error).__name__}: {error}"))
            return
    for single in batch.singles():
        yield from one_by_one_on_error(single, work, on_failure)
