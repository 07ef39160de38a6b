"""Train one classifier in one of the compared ways, and set up the attacks on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..catalog import TRAININGS
from ..checks import check_choice
from ..engine.config import PathConfig
from ..models.classifier import Classifier
from ..robustness import PGD, BandLimitedAttack, BandMixAugmentation, LowPassAugmentation
from ..robustness.band_limited import Band
from ..runtime.model import Model
from .defence_data import DataSet, Split
from .defence_settings import DefenceSettings

ATTACKS: tuple[Band, ...] = ("low", "high", "all")
BATCH = 64
"""Images per model pass when a classifier is attacked or evaluated."""


def batch_change(training: str, settings: DefenceSettings) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Make the function that a training applies to each batch, of the model, the images and their classes.

    Raises:
        ValueError: an unknown training.
    """
    check_choice("training", training, TRAININGS)
    if training == "adversarial":
        return PGD(settings.eps, steps=settings.adversarial_steps, seed=settings.seed)
    augmentation: nn.Module = nn.Identity()
    probability, seed = settings.probability, settings.seed
    if training == "low_pass":
        augmentation = LowPassAugmentation(settings.cutoff, probability=probability, seed=seed)
    elif training == "band_mix":
        augmentation = BandMixAugmentation((0.5, 1.0), cutoff=settings.cutoff, probability=probability, seed=seed)
    return lambda model, images, labels: augmentation(images)


def trained(training: str, data: DataSet, split: Split, settings: DefenceSettings) -> Classifier:
    """Train a classifier; trainings of one seed have the same initial weights and the same images in the same order.

    Args:
        training: name of the training in ``catalog.TRAININGS``.
        data: the data set.
        split: its images, of which the training part is used.
        settings: steps, batches, rate and seed; the same settings give the same classifier on the same machine.

    Returns:
        The classifier, in evaluation mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = data.net(len(data.classes))
    size = tuple(split.images.shape[-2:])
    model = Classifier(net, name=training, mean=0.5, std=0.25, input_size=size, class_names=data.classes)
    optimiser = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.train_steps + 1, pct_start=0.2
    )
    order = torch.Generator().manual_seed(settings.seed)
    changed = batch_change(training, settings)
    model.train()
    for _ in range(settings.train_steps):
        rows = torch.randint(len(split.images), (settings.batch_size,), generator=order)
        batch, labels = split.images[rows], split.labels[rows]
        for axis in (2, 3) if data.flips else ():
            if torch.rand((), generator=order) < 0.5:
                batch = batch.flip(axis)
        loss = nn.functional.cross_entropy(model(changed(model, batch, labels)), labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return model.eval()


def band_attack(model: Model, band: Band, settings: DefenceSettings) -> BandLimitedAttack:
    """Make the attack of a band, with the settings' radius and steps."""
    config = PathConfig(
        steps=settings.attack_steps, samples=1, eps=settings.eps, smoothing=False, input_diversity=False,
        seed=settings.seed,
    )  # fmt: skip
    return BandLimitedAttack(model, band, settings.cutoff, config)
