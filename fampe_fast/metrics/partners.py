"""Choose partner images for a composite by seed and ids, independent of the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_image_ids, check_targets, check_unit_images
from .random_words import Stream, random_words

__all__ = ["Partners"]


@dataclass(frozen=True, eq=False)
class Partners:
    """Images that can be partners of another one in a composite.

    Attributes:
        ids: (P,) int64 in [0, 2^32 - 2], their names in the random stream; no two alike.
        targets: (P,) int64, the class of each.
        load: returns an image, (C, H, W) in [0, 1], by its index in ``ids``.
    """

    ids: Tensor
    targets: Tensor
    load: Callable[[int], Tensor]

    @classmethod
    def of(
        cls, images: Tensor, targets: int | Sequence[int] | Tensor, image_ids: Sequence[int] | Tensor | None = None
    ) -> Partners:
        """Make partners from the images of a tensor.

        Args:
            images: (P, C, H, W) floating-point in [0, 1].
            targets: class of each image.
            image_ids: their names in the random stream; default: their position.

        Raises:
            TypeError: images, targets or ids of a wrong type.
            ValueError: wrong shapes, values outside their range.
        """
        check_unit_images(images)
        classes = check_targets(targets, images).cpu()
        return cls(check_image_ids(image_ids, images).cpu(), classes, images.detach().__getitem__)

    def check(self, classes: Tensor, count: int) -> None:
        """Check that an image of each of these classes finds enough partners.

        Args:
            classes: (B,) int64.
            count: number of partners of an image.

        Raises:
            ValueError: there are fewer other classes; the message names the class.
        """
        known = set(self.targets.tolist())
        for target in sorted(set(classes.tolist())):
            others = len(known - {target})
            if others < count:
                raise ValueError(
                    f"an image needs {count} partners of different other classes, but for class {target} there are "
                    f"images of {others} others: give images of more classes, or a smaller grid"
                )

    def choose(self, image_id: int, target: int, count: int, seed: int) -> list[int]:
        """Choose the partners of an image, of other classes than its own and all of different classes.

        Every partner gets a random number from the seed, the image's id and its own id, and those with the smallest
        numbers are chosen: adding or removing a partner changes only choices that contain it.

        Args:
            image_id: the image's name in the random stream.
            target: its class.
            count: number of partners; ``check`` tests whether there are enough.
            seed: seed of the choice, 64 bits.

        Returns:
            The partners' indices in ``ids``.
        """
        (words,) = random_words(Stream.PARTNERS, seed, torch.full_like(self.ids, image_id), self.ids, 1).unbind(1)
        order = ((words - 2**31) * 2**32 + self.ids).argsort()  # equal words in the order of the ids
        chosen: dict[int, int] = {}
        classes = self.targets.tolist()
        for place in order.tolist():
            if len(chosen) == count:
                break
            if classes[place] != target:
                chosen.setdefault(classes[place], place)
        return list(chosen.values())
