"""Measure how often images that attack one model fool another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_classes
from ..metrics import Estimate, mean_and_error
from ..runtime.chunking import ChunkSize
from ..runtime.isolation import isolated
from ..runtime.model import Model, check_model
from ..runtime.model_probe import call, probe
from ..runtime.outputs import is_right, probabilities
from .band_limited import AdversarialImages

Attack = Callable[[Tensor, Tensor], AdversarialImages]


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's answers to images of known classes; on the CPU.

    Attributes:
        right: (B,) bool, whether it predicts the class: as its top class, or, for independent classes, with a
            probability of 1/2 or more.
        probability: (B,) float64, its probability of the class.
    """

    right: Tensor
    probability: Tensor


@dataclass(frozen=True)
class TransferRates:
    """Shares of fooled images by source model, which is attacked, and target model, which classifies.

    Attributes:
        rates: ``rates[source][target]``: among the images that the target model classifies correctly, the share that it
            misclassifies after the attack, with its standard error; None if it classifies none correctly.
        accuracy: accuracy of each model on the original images.
        model_passes: passes of the attack, per image and source.
    """

    rates: dict[str, dict[str, Estimate | None]]
    accuracy: dict[str, Estimate]
    model_passes: int

    def matrix(self) -> Tensor:
        """Return the shares as a matrix, (sources, targets) float64, with NaN for missing ones."""
        rows = [[float("nan") if e is None else e.mean for e in row.values()] for row in self.rates.values()]
        return torch.tensor(rows, dtype=torch.float64, device="cpu")


def transfer_rates(
    models: Mapping[str, Model],
    images: Tensor,
    targets: Sequence[int] | Tensor,
    attack_factory: Callable[[Model], Attack],
    *,
    internal_batch_size: int | None = None,
) -> TransferRates:
    """Attack every model, and test the attacked images on every model.

    Args:
        models: by name, in evaluation mode; a single one is also allowed.
        images: (B, C, H, W), B at least 1, in the attacks' bounds.
        targets: (B,) ints, the true classes, for all models alike.
        attack_factory: makes the attack on a model, such as ``lambda model: BandLimitedAttack(model, "low", 15)``; the
            attack is called with (images, targets).
        internal_batch_size: images per model pass of the tests; the attack has its own.

    Returns:
        ``TransferRates``.

    Raises:
        TypeError: a model that cannot be called, or an attack that does not return ``AdversarialImages``.
        ValueError: no models, no images, targets of another number, or a model that answers NaN.
    """
    if not models:
        raise ValueError("expected at least one model, got none")
    classes = torch.as_tensor(targets, device=images.device)
    if not len(images) or classes.shape != (len(images),):
        raise ValueError(
            f"expected at least one image and a target for each, got {len(images)} images and targets of shape "
            f"{tuple(classes.shape)}"
        )
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(f"targets must hold integers, got {classes.dtype}")
    classes = classes.long()
    for model in models.values():
        check_model(model, images)
    chunk = internal_batch_size
    before = {name: answers_of(model, images, classes, chunk) for name, model in models.items()}
    rates: dict[str, dict[str, Estimate | None]] = {}
    passes = 0
    for source, attacked in models.items():
        found, after = attack_and_ask(attack_factory(attacked), models, images, classes, chunk)
        passes = found.model_passes
        rates[source] = {name: fooled_share(before[name].right, after[name].right) for name in models}
    return TransferRates(rates, {name: mean_and_error(answers.right) for name, answers in before.items()}, passes)


def attack_and_ask(
    attack: Attack, models: Mapping[str, Model], images: Tensor, classes: Tensor, chunk: int | None
) -> tuple[AdversarialImages, dict[str, Answers]]:
    """Attack images, and classify the results with models.

    Args:
        attack: called with (images, classes).
        models: by name, in evaluation mode.
        images: (B, C, H, W), in the attack's bounds.
        classes: (B,) int64, the true classes.
        chunk: images per model pass.

    Returns:
        The attack's result, and each model's answers to it.

    Raises:
        TypeError: an attack that does not return ``AdversarialImages``.
        ValueError: answers that are NaN.
    """
    found = attack(images, classes)
    if not isinstance(found, AdversarialImages):
        raise TypeError(f"the attack must return AdversarialImages, got {type(found).__name__}")
    return found, {name: answers_of(model, found.images, classes, chunk) for name, model in models.items()}


def answers_of(model: Model, images: Tensor, classes: Tensor, internal_batch_size: int | None = None) -> Answers:
    """Classify images of known classes with a model.

    Args:
        model: the model, in evaluation mode.
        images: (B, C, H, W), any values.
        classes: (B,) int64.
        internal_batch_size: images per model pass. Default: 8 on a CPU, 64 on a GPU; halved once, with a warning, after
            an out-of-memory error.

    Raises:
        ValueError: a class that the model does not have, or a probability that is NaN.
    """
    with isolated():
        right = [torch.zeros(0, dtype=torch.bool, device="cpu")]
        probability = [torch.zeros(0, dtype=torch.float64, device="cpu")]
        probed = probe(model, images)
        if len(images):
            check_classes(probed.shape, classes)
        chunks = ChunkSize.for_scores(model, images, internal_batch_size, probed)

        def ask(part: slice) -> tuple[Tensor, Tensor]:
            output, own = call(model, images[part], probed), classes[part]
            chance = probabilities(output, probed.reading).gather(1, own[:, None])[:, 0]
            return is_right(output, own, probed.reading).cpu(), chance.cpu().double()

        with chunks.advice():
            for _, (answer, chance) in chunks.each(len(images), ask):
                right.append(answer)
                probability.append(chance)
    found = Answers(torch.cat(right), torch.cat(probability))
    bad = found.probability.isnan()
    if bool(bad.any()):
        raise ValueError(f"the model's probability of the class is NaN for image {int(bad.nonzero()[0])}")
    return found


def fooled_share(before: Tensor | Sequence[bool], after: Tensor | Sequence[bool]) -> Estimate | None:
    """Compute the share of correctly classified images that the attack changed; None if none was correct.

    Args:
        before: (B,) bool, whether each original image was classified correctly.
        after: (B,) bool, the same after the attack.
    """
    known = torch.as_tensor(before, dtype=torch.bool, device="cpu")
    fooled = ~torch.as_tensor(after, dtype=torch.bool, device="cpu")[known]
    return mean_and_error(fooled) if len(fooled) else None
