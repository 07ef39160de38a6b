"""Define the settings of the defence experiment."""

from __future__ import annotations

from dataclasses import dataclass

from ..checks import LARGEST, check_count, check_fraction, check_gaussian_cutoff, check_number, check_positive


@dataclass(frozen=True, kw_only=True)
class DefenceSettings:
    """The settings of the experiment.

    Attributes:
        seed: seed of images, initial weights, order, augmentations and attacks, 0 to 2^31 - 1.
        size: side of the textures in pixels, at least 64; digits have 8.
        contrast: largest deviation of a texture from the background, in pixel units, at most 0.125; not for digits.
        train_images: number of training images.
        test_images: number of separate images for the accuracies and the reliance.
        train_steps: number of optimiser steps of each classifier.
        batch_size: number of images per step.
        learning_rate: largest learning rate of AdamW, with a one-cycle schedule.
        cutoff: radius that separates the low from the high band, in cycles over the side; the textures' bands end at 9
            and begin at 16.
        probability: probability that a training image is augmented.
        eps: radius of the attacks and of adversarial training (maximum norm), in pixel units.
        attack_steps: number of sign steps of each attack.
        adversarial_steps: number of steps of adversarial training for each batch.
    """

    seed: int = 0
    size: int = 64
    contrast: float = 0.12
    train_images: int = 384
    test_images: int = 128
    train_steps: int = 100
    batch_size: int = 32
    learning_rate: float = 5e-3
    cutoff: float = 12.0
    probability: float = 0.5
    eps: float = 4 / 255
    attack_steps: int = 10
    adversarial_steps: int = 5

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            name: check_count(name, getattr(self, name))
            for name in (
                "train_images", "test_images", "train_steps", "batch_size", "attack_steps", "adversarial_steps"
            )
        }  # fmt: skip
        checked["size"] = check_count("size", self.size, at_least=64)
        checked["seed"] = check_count("seed", self.seed, at_least=0)
        if self.seed >= 2**31:
            raise ValueError(f"seed must be in [0, 2^31), got {self.seed}")
        checked["contrast"] = check_number("contrast", self.contrast, 0, 0.125, open_low=True)
        checked["learning_rate"] = check_positive("learning_rate", self.learning_rate)
        checked["eps"] = check_positive("eps", self.eps, largest=LARGEST)
        checked["probability"] = check_fraction("probability", self.probability)
        checked["cutoff"] = check_gaussian_cutoff("cutoff", self.cutoff)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
