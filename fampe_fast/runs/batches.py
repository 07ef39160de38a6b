"""Process image files in batches, skipping files that cannot be read and images that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checks import check_image_ids
from ..files import digest_of
from ..images import load_images
from ..models.classifier import Classifier
from ..runtime.lost_device import is_of_device
from .records import Item, Records

Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """An image that could not be processed.

    Attributes:
        path: the image's file.
        reason: description of the error.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Batch:
    """Images that go through the model together.

    Attributes:
        paths: their files.
        positions: (B,) their positions in the whole run.
        ids: (B,) their names in the random stream.
        images: (B, C, H, W) in [0, 1], on the classifier's device.
    """

    paths: list[Path]
    positions: list[int]
    ids: list[int]
    images: Tensor

    def singles(self) -> list[Batch]:
        """Split into the same images one by one."""
        return [self.part([k]) for k in range(len(self.paths))]

    def part(self, keep: Sequence[int]) -> Batch:
        """Select some of the images by their index in the batch."""
        return Batch(
            [self.paths[k] for k in keep],
            [self.positions[k] for k in keep],
            [self.ids[k] for k in keep],
            self.images[list(keep)],
        )


def targets_of_batch(classifier: Classifier, batch: Batch, targets: Sequence[int] | None) -> Tensor:
    """Select the targets (B,) int64 of a batch from those of the whole run; None if the model chooses."""
    if targets is not None:
        return torch.tensor([targets[position] for position in batch.positions], device=batch.images.device)
    with torch.no_grad():
        found: Tensor = classifier(batch.images).argmax(1)
    return found


def check_same_task(classifier: Classifier, other: Classifier, what: str) -> None:
    """Refuse a second model with other classes or channels, as far as these are known.

    Args:
        classifier: the model.
        other: the second model, which gets the same images and classes.
        what: the job that needs two models of one task, for the message.

    Raises:
        ValueError: the models differ; the message names both.
    """
    counts = classifier.num_classes, other.num_classes
    if None not in counts and counts[0] != counts[1]:
        raise ValueError(
            f"{what} models of the same classes; {classifier.name} has {counts[0]} classes and {other.name} has "
            f"{counts[1]}"
        )
    if classifier.channels != other.channels:
        raise ValueError(
            f"{what} models of the same images; {classifier.name} takes {classifier.channels} channels and "
            f"{other.name} takes {other.channels}"
        )


def device_of(classifier: Classifier) -> torch.device:
    """Find the device of the classifier's normalisation, and so of the model."""
    return classifier.mean.device


class Group:
    """Images that go through the model together; they are read only if one of their results is missing."""

    def __init__(self, classifier: Classifier, items: Sequence[Item], on_failure: Callable[[Failure], None]) -> None:
        """Store the images of a batch.

        Args:
            classifier: the model, whose transform reads them.
            items: the images.
            on_failure: called for an image that cannot be read or fails; it is then removed from ``items``.
        """
        self.items = list(items)
        self._classifier, self._on_failure = classifier, on_failure
        self._batch: Batch | None = None

    def again(self, on_failure: Callable[[Failure], None]) -> Group:
        """Make a group of the same images for other work, whose failures do not affect this group."""
        other = Group(self._classifier, self.items, on_failure)
        other._batch = self._batch
        return other

    def batch(self) -> Batch | None:
        """Read the images; None if none can be read."""
        if self._batch is None and self.items:
            good: list[tuple[Item, Tensor]] = []
            loaded = load_images([item.path for item in self.items], self._classifier.transform)
            for item, (path, image) in zip(list(self.items), loaded, strict=True):
                if isinstance(image, Tensor):
                    good.append((item if item.digest else replace(item, digest=digest_of(path)), image))
                else:
                    self._on_failure(Failure(path, image.reason))
            self.items = [item for item, _ in good]
            if good:
                images = torch.stack([image for _, image in good]).to(device_of(self._classifier))
                self._batch = Batch(
                    [item.path for item in self.items],
                    [item.position for item in self.items],
                    [item.image_id for item in self.items],
                    images,
                )
        return self._batch

    def release(self) -> None:
        """Free the memory of the images; they are read again if they are asked for."""
        self._batch = None

    def settle(
        self,
        done: Callable[[Item], bool],
        work: Callable[[Batch], Result],
        keep: Callable[[Batch, list[Item], Result], None],
    ) -> None:
        """Process the images without results, together or, if that fails, one by one.

        Args:
            done: tells whether an image already has its results.
            work: computes results without writing; if it raises, the image is skipped.
            keep: stores results; if it raises, the run ends.
        """
        if all(done(item) for item in self.items):
            return
        batch = self.batch()
        if batch is None:
            return
        pending = [k for k, item in enumerate(self.items) if not done(item)]
        if not pending:
            return
        by_position = {item.position: item for item in self.items}
        lost = {self.items[k].position for k in pending}
        for part, found in one_by_one_on_error(batch.part(pending), work, self._on_failure):
            keep(part, [by_position[position] for position in part.positions], found)
            lost.difference_update(part.positions)
        if lost:
            kept = [k for k, item in enumerate(self.items) if item.position not in lost]
            self.items = [self.items[k] for k in kept]
            self._batch = batch.part(kept) if kept else None

    def settle_in(
        self, records: Records, context: str, work: Callable[[Batch], list[dict[str, Any]]], part: str = ""
    ) -> None:
        """Process images like ``settle``, and store the results in records."""

        def keep(batch: Batch, items: list[Item], found: list[dict[str, Any]]) -> None:
            records.add(context, items, found, part)

        self.settle(lambda item: records.get(context, item, part) is not None, work, keep)


def check_run_ids(paths: Sequence[Path], image_ids: Sequence[int] | None) -> list[int]:
    """Return every file's image id: the given one, or its position.

    Raises:
        TypeError: ids that are not integers.
        ValueError: not one id per file, an id outside [0, 2^32 - 2], or one that two files share.
    """
    ids: list[int] = check_image_ids(image_ids, torch.empty(len(paths))).tolist()
    first: dict[int, Path] = {}
    for path, image_id in zip(paths, ids, strict=True):
        if image_id in first:
            raise ValueError(f"image ids must be unique; {first[image_id].name!r} and {path.name!r} have {image_id}")
        first[image_id] = path
    return ids


def groups_of(
    classifier: Classifier,
    paths: Sequence[Path],
    targets: Sequence[int] | None,
    size: int,
    on_failure: Callable[[Failure], None],
    image_ids: Sequence[int] | None = None,
) -> Iterator[Group]:
    """Split the images of a run into groups of ``size``, in order, done or not: a resumed run has the same groups.

    Args:
        classifier: the model, whose transform reads them.
        paths: image files.
        targets: class of each file; None uses the model's prediction.
        size: number of images in a group.
        on_failure: called for each image that is left out.
        image_ids: each image's id in the random stream; default: its position.

    Raises:
        TypeError, ValueError: image ids that ``check_run_ids`` refuses.
    """
    ids = check_run_ids(paths, image_ids)
    for start in range(0, len(paths), size):
        items = [
            Item(paths[k], k, ids[k], digest_of(paths[k]), None if targets is None else targets[k])
            for k in range(start, min(start + size, len(paths)))
        ]
        yield Group(classifier, items, on_failure)


def settle_all(
    groups: Iterable[Group],
    done: Callable[[Item], bool],
    settle: Callable[[Group], None],
    finish: Callable[[list[Item], int], None],
) -> None:
    """Process one group after the other, and finish with the completed images even if the run is interrupted.

    Args:
        groups: the run's groups, in order.
        done: tells whether an image's results exist.
        settle: processes a group and reports progress.
        finish: called with the completed images and the number of them that an earlier run had finished.
    """
    begun: list[Group] = []
    earlier = 0
    try:
        for group in groups:
            earlier += sum(map(done, group.items))
            begun.append(group)
            settle(group)
            group.release()
    finally:
        # Include the current group, in case the interrupt came right after its results.
        finish([item for group in begun for item in group.items if done(item)], earlier)


def one_by_one_on_error(
    batch: Batch, work: Callable[[Batch], Result], on_failure: Callable[[Failure], None]
) -> Iterator[tuple[Batch, Result]]:
    """Process a batch or, if that fails, its images one by one; images that fail again go to ``on_failure``."""
    try:
        yield batch, work(batch)
        return
    except Exception as error:
        if is_of_device(error):  # every later image would fail, too
            raise
        if len(batch.paths) == 1:
            on_failure(Failure(batch.paths[0], f"{type(error).__name__}: {error}"))
            return
    for single in batch.singles():
        yield from one_by_one_on_error(single, work, on_failure)
