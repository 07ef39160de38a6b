"""Train small classifiers with and without frequency augmentation, and attack them in the low and the high band.

The images are this package's own (``images.generated``): backgrounds of 1/f noise, on half of which lie a coarse and a
fine texture, faintly. Whether they do is the class, and either band alone tells it; which one a classifier leans on,
and so which attack fools it, is up to its training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..checks import LARGEST, check_count, check_fraction, check_gaussian_cutoff, check_number, check_positive
from ..engine.config import PathConfig
from ..files import FIGURE, FOLDER, Output, check_outputs, json_content, write_atomically
from ..images.generated import BANDS, band_texture, generate
from ..metrics import Estimate, mean_and_error
from ..metrics.summary import bootstrap_interval
from ..models.classifier import Classifier
from ..plots import save_figure
from ..plots.bands import BandCurve, bands_figure
from ..robustness import BandLimitedAttack, BandMixAugmentation, LowPassAugmentation, compare_reliance, transfer_rates
from ..robustness.band_limited import Band
from ..runtime.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..robustness import AdversarialImages

ATTACKS: tuple[Band, ...] = ("low", "high", "all")
DEFENCE = "defence"
"""The kind of ``defence.json``."""
CLASSES = ("plain background", "textured background")
_RINGS = 12


@dataclass(frozen=True, kw_only=True)
class DefenceSettings:
    """The settings of the experiment.

    Attributes:
        seed: of images, initial weights, order, augmentations and attacks.
        size: side of the images, pixels, at least 64.
        contrast: largest deviation of each texture from the background, in pixel units, at most 0.125.
        train_images: generated for training.
        test_images: generated for the accuracies, of another seed.
        train_steps: optimiser steps of each classifier.
        batch_size: images per step.
        learning_rate: at its highest, of AdamW on one cycle.
        cutoff: between the low and the high band, in cycles over the side; the textures' bands end at 9 and begin
            at 16.
        probability: that a training image is augmented.
        eps: radius of the attacks (maximum norm), in pixel units.
        attack_steps: of the attacks.
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

    def __post_init__(self) -> None:
        checked: dict[str, object] = {
            name: check_count(name, getattr(self, name))
            for name in ("train_images", "test_images", "train_steps", "batch_size", "attack_steps")
        }
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


@dataclass
class DefenceResult:
    """The result of the experiment.

    Attributes:
        settings: of the experiment.
        accuracy: by training (``plain``, ``low_pass``, ``band_mix``), then by attack (``clean``, ``low``, ``high``,
            ``all``), with standard errors over the test images; one classifier each, so the spread over trainings is
            not in them.
        band_share: by training and attack, the mean share of the perturbations' energy in the band.
        transfer: by attack, source and target training: the fooled share, None where the target has nothing right.
        edges: radii of the rings of ``drops``.
        drops: by training, (images, rings): drop in probability of the true class without the ring.
    """

    settings: DefenceSettings
    accuracy: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    band_share: dict[str, dict[str, float]] = field(default_factory=dict)
    transfer: dict[str, dict[str, dict[str, Estimate | None]]] = field(default_factory=dict)
    edges: Tensor = field(default_factory=lambda: torch.zeros(0))
    drops: dict[str, Tensor] = field(default_factory=dict)

    def as_json(self) -> str:
        """Write everything as JSON."""
        return json_content(
            DEFENCE,
            {
                "settings": asdict(self.settings),
                "classes": list(CLASSES),
                "accuracy": {name: {k: vars(v) for k, v in row.items()} for name, row in self.accuracy.items()},
                "band_share": self.band_share,
                "transfer": {
                    attack: {
                        source: {target: None if v is None else vars(v) for target, v in row.items()}
                        for source, row in rates.items()
                    }
                    for attack, rates in self.transfer.items()
                },
                "occluded_frequency": {
                    "edges": self.edges.tolist(),
                    "mean_drop": {name: drops.mean(0).tolist() for name, drops in self.drops.items()},
                },
            },
        )


class SmallNet(nn.Module):
    """Two convolutions, averaged over the image: sees textures, takes seconds to train."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 12, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(16, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (B, classes)."""
        logits: Tensor = self.head(self.features(pixels).mean((2, 3)))
        return logits


def defend(
    out: Path, settings: DefenceSettings | None = None, *, on_stage: Callable[[str], None] = lambda stage: None
) -> DefenceResult:
    """Train, attack, compare; ``out/defence.json`` and ``out/reliance.png``.

    Three classifiers of one architecture, initial weights and order of images are trained: plain, with
    ``LowPassAugmentation`` and with ``BandMixAugmentation``. Each is attacked by a ``BandLimitedAttack`` in the low
    band, the high band and without a limit; each attack is also tried on the other classifiers; and the classifiers'
    occluded-frequency curves are drawn side by side. The same settings give the same figures on the same machine.

    Args:
        out: folder, made if missing.
        settings: the numbers; as they are, about a minute of one core's time.
        on_stage: called with what begins.

    Returns:
        ``DefenceResult``.

    Raises:
        ValueError: an output would replace a file that this package did not write.
        OSError: the results cannot be written.
    """
    settings = DefenceSettings() if settings is None else settings
    check_outputs(
        [Output(out, FOLDER), Output(out / "defence.json", DEFENCE), Output(out / "reliance.png", FIGURE)], []
    )
    on_stage("images")
    images, labels = _scenes(settings.train_images, settings.seed, settings)
    test, truth = _scenes(settings.test_images, settings.seed + 1, settings)
    models: dict[str, Model] = {}
    for name, augmentation in _augmentations(settings).items():
        on_stage(f"training, {name}")
        models[name] = _trained(name, images, labels, augmentation, settings)

    result = DefenceResult(settings)
    config = PathConfig(
        steps=settings.attack_steps, samples=1, eps=settings.eps, smoothing=False, input_diversity=False,
        seed=settings.seed,
    )  # fmt: skip
    for attack in ATTACKS:
        on_stage(f"attack, {attack} band")
        shares: list[float] = []

        def on_model(
            model: Model, band: Band = attack, shares: list[float] = shares
        ) -> Callable[[Tensor, Tensor], AdversarialImages]:
            made = BandLimitedAttack(model, band, settings.cutoff, config)

            def run(pixels: Tensor, targets: Tensor) -> AdversarialImages:
                found = made(pixels, targets, internal_batch_size=64)
                shares.append(float(found.band_share.mean()))
                return found

            return run

        rates = transfer_rates(models, test, truth, on_model, internal_batch_size=64)
        result.transfer[attack] = rates.rates
        for name, share in zip(models, shares, strict=True):
            result.band_share.setdefault(name, {})[attack] = share
            clean = result.accuracy.setdefault(name, {"clean": rates.accuracy[name]})["clean"]
            own = rates.rates[name][name]
            # An image that is wrong as it is stays wrong here: an attack cannot be let gain by it.
            kept = 0.0 if own is None else clean.mean * (1 - own.mean)
            right = round(kept * len(test))
            result.accuracy[name][attack] = mean_and_error([1.0] * right + [0.0] * (len(test) - right))
    on_stage("occluded frequency")
    curves = compare_reliance(models, test, truth, bands=_RINGS, internal_batch_size=64)
    result.edges = next(iter(curves.values())).edges[0]
    result.drops = {name: found.drops.double() for name, found in curves.items()}
    write_atomically(out / "defence.json", result.as_json().encode())
    save_figure(_figure(result), out / "reliance.png")
    return result


def _scenes(count: int, seed: int, settings: DefenceSettings) -> tuple[Tensor, Tensor]:
    """Generate images (count, 3, S, S) in [0, 1] and their classes: 1 with textures, 0 without, in turn."""
    backgrounds = generate(count, seed=seed, size=settings.size).backgrounds
    labels = torch.arange(count) % 2
    rng = np.random.default_rng(seed)
    textures = np.stack([sum(band_texture(rng, band, settings.size) for band in BANDS.values()) for _ in range(count)])
    added = settings.contrast * torch.from_numpy(textures).float() * labels[:, None, None]
    # Less contrast for the background, so that nothing is clipped.
    return (0.25 + 0.5 * backgrounds + added[:, None]).clamp(0, 1), labels


def _augmentations(settings: DefenceSettings) -> dict[str, nn.Module]:
    return {
        "plain": nn.Identity(),
        "low_pass": LowPassAugmentation(settings.cutoff, probability=settings.probability, seed=settings.seed),
        "band_mix": BandMixAugmentation(
            (0.5, 1.0), cutoff=settings.cutoff, probability=settings.probability, seed=settings.seed
        ),
    }


def _trained(
    name: str, images: Tensor, labels: Tensor, augmentation: nn.Module, settings: DefenceSettings
) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = SmallNet(len(CLASSES))
    model = Classifier(net, name=name, mean=0.5, std=0.25, input_size=settings.size, class_names=CLASSES)
    optimiser = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.train_steps + 1, pct_start=0.2
    )
    order = torch.Generator().manual_seed(settings.seed)
    model.train()
    augmentation.train()
    for _ in range(settings.train_steps):
        rows = torch.randint(len(images), (settings.batch_size,), generator=order)
        batch = images[rows]
        for axis in (2, 3):
            if torch.rand((), generator=order) < 0.5:
                batch = batch.flip(axis)
        loss = nn.functional.cross_entropy(model(augmentation(batch)), labels[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return model.eval()


def _figure(result: DefenceResult) -> Figure:
    return bands_figure(
        {
            name: BandCurve(result.edges, drops.mean(0), bootstrap_interval(drops))
            for name, drops in result.drops.items()
        },
        title="which bands the classifiers lean on",
    )
