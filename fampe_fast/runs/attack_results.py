"""Define the settings and results of band-limited attacks on image files: records, summaries, curves, JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ..catalog import GRADIENTS, gradient_options, load
from ..checks import check_count
from ..engine.config import PathConfig
from ..files import json_content
from ..metrics import Estimate, mean_and_error
from ..metrics.summary import bootstrap_interval
from ..plots.bands import BandCurve
from ..robustness.attack_bands import BANDS, Band, BandLimit
from ..robustness.band_limited import DEFAULT_CONFIG, BandLimitedAttack
from ..robustness.guided_smoothing import check_smoothness
from ..robustness.simba import SimBA, SimBAConfig
from ..robustness.transfer import fooled_share
from ..runtime.model import Model
from .batches import Failure
from .records import Item

DEFAULT_BANDS: tuple[Band, ...] = ("low", "high", "all")
"""The bands that need only one cut-off."""

ATTACK = "attack"
"""The kind of ``attack.json``."""
CONFIDENCE = 0.95
ROUNDING = 1e-4  # in levels of 1/255: float32 represents k / 255 to 1e-5 levels


def attack_config(gradients: str = "plain", **options: Any) -> PathConfig | SimBAConfig:
    """Make the configuration of an attack, by default ten steps with eps 8/255, without smoothing or input diversity.

    Args:
        gradients: a name in ``GRADIENTS``; ``plain`` has one sample per step, ``none`` is SimBA.
        **options: values of other fields of the configuration.

    Raises:
        ValueError: an unknown name or field, a value out of range, or several samples without randomness.
        TypeError: a value of a wrong type.
    """
    if gradients not in GRADIENTS:
        raise ValueError(f"gradients must be one of {', '.join(GRADIENTS)}; got {gradients!r}")
    known = {option.name for option in gradient_options(gradients)}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"an attack with {gradients} gradients has no option(s) {', '.join(unknown)}; known: "
            f"{', '.join(sorted(known))}"
        )
    if "steps" in options:
        check_count("steps", options["steps"])  # of a path at least one, as an attack has no views
    row = GRADIENTS[gradients]
    config: PathConfig | SimBAConfig = load(row.options)(**{**row.defaults, **options})
    if isinstance(config, PathConfig) and gradients == "plain" and config.samples > 1 and not config.input_diversity:
        raise ValueError(f"plain gradients of {config.samples} samples would all be the same: use samples=1")
    return config


@dataclass(frozen=True)
class AttackSettings:
    """The settings of the attacks on every image.

    Attributes:
        bands: the bands of ``BANDS`` to attack, one at a time; at least one.
        cutoff: radius where the low band ends, in cycles over the shorter side, 0 or more.
        config: configuration of the attacks, as from ``attack_config``.
        rings: number of rings of equal width in which the perturbations' energy is measured.
        upper_cutoff: radius where the high band begins, above the middle one; None is the cut-off.
        smoothness: strength of smoothing the steps of gradients along the image, in [0, 1); 0 for none.

    Raises:
        ValueError: no band or an unknown one, a middle band without a radius, a radius or a smoothness out of range, a
            smoothness of an attack without gradients, fewer than one ring.
        TypeError: numbers of a wrong type.
    """

    bands: tuple[Band, ...] = DEFAULT_BANDS
    cutoff: float = 30.0
    config: PathConfig | SimBAConfig = DEFAULT_CONFIG
    rings: int = 16
    upper_cutoff: float | None = None
    smoothness: float = 0.0

    def __post_init__(self) -> None:
        unknown = [band for band in self.bands if band not in BANDS]
        if unknown or not self.bands:
            raise ValueError(f"unknown band(s) {', '.join(unknown) or '(none given)'}; known: {', '.join(BANDS)}")
        limits = [BandLimit(band, self.cutoff, self.upper_cutoff) for band in self.bands]
        object.__setattr__(self, "cutoff", limits[0].cutoff)
        object.__setattr__(self, "upper_cutoff", limits[0].upper_cutoff)
        object.__setattr__(self, "rings", check_count("rings", self.rings))
        object.__setattr__(self, "smoothness", check_smoothness(self.smoothness))
        if self.smoothness and isinstance(self.config, SimBAConfig):
            raise ValueError(
                f"an attack without gradients cannot be smoothed: smoothness must be 0, got {self.smoothness:g}"
            )

    @property
    def radius(self) -> float:
        """The largest change of a value that the attacks allow, in pixel units; infinite without a bound."""
        return self.config.eps if isinstance(self.config, PathConfig) else math.inf

    def attack(self, model: Model, band: Band) -> BandLimitedAttack | SimBA:
        """Make the attack on a model in one band."""
        if isinstance(self.config, SimBAConfig):
            return SimBA(model, band, self.cutoff, self.config, upper_cutoff=self.upper_cutoff)
        return BandLimitedAttack(
            model, band, self.cutoff, self.config, upper_cutoff=self.upper_cutoff, smoothness=self.smoothness
        )


@dataclass(frozen=True)
class Answer:
    """A model's answer for one image.

    Attributes:
        right: whether it predicts the target.
        probability: the model's probability of the target.
    """

    right: bool
    probability: float


@dataclass(frozen=True)
class SavedImage:
    """An attacked image rounded to 8 bits.

    Attributes:
        file: the PNG, relative to the study's folder.
        largest_change: largest change of a value from the model's input, in pixel units.
        band_share: the share of that change's energy in the band.
        answer: the model's answer to the saved image.
    """

    file: str
    largest_change: float
    band_share: float
    answer: Answer


@dataclass(frozen=True)
class AttackedImage:
    """One image attacked in one band on one model.

    Attributes:
        band_share: the share of the perturbation's energy in the band.
        energy: the perturbation's energy per ring, which sums to its squared Euclidean norm.
        queries: number of model passes of the attack.
        answers: answers of every model, by name.
        saved: the saved image; None if it was not saved.
    """

    band_share: float
    energy: list[float]
    queries: int
    answers: dict[str, Answer]
    saved: SavedImage | None = None

    @classmethod
    def of_result(cls, result: dict[str, Any], saved_as: str) -> AttackedImage:
        """Read an attacked image from the values of ``as_result``."""
        saved = result["saved"]
        if saved is not None:
            saved = SavedImage(**{**saved, "answer": Answer(**saved["answer"])})
            saved = replace(saved, file=str(PurePosixPath(saved.file).with_name(saved_as)))
        return cls(result["band_share"], result["energy"], result["queries"], _answers(result["answers"]), saved)

    @property
    def norm(self) -> float:
        """The perturbation's Euclidean norm, in pixel units."""
        return math.sqrt(sum(self.energy))


@dataclass(frozen=True)
class ImageRecord:
    """Everything about one image.

    Attributes:
        path: the image's file.
        id: the image's id in the random stream.
        target: the attacked class.
        before: the models' answers to the original image, by name.
        attacks: the attacked images by band, then by attacked model.
    """

    path: Path
    id: int
    target: int
    before: dict[str, Answer]
    attacks: dict[str, dict[str, AttackedImage]]

    def as_result(self) -> dict[str, Any]:
        """Return everything except path and id as values for JSON."""
        return {key: value for key, value in asdict(self).items() if key not in ("path", "id")}

    @classmethod
    def of_result(cls, item: Item, result: dict[str, Any], saved_as: str) -> ImageRecord:
        """Read a record from the values of ``as_result``.

        Args:
            item: the image.
            result: values from ``as_result``, read from JSON.
            saved_as: the current name of its saved images.
        """
        attacks = {
            band: {model: AttackedImage.of_result(found, saved_as) for model, found in sources.items()}
            for band, sources in result["attacks"].items()
        }
        return cls(item.path, item.image_id, result["target"], _answers(result["before"]), attacks)


def _answers(found: dict[str, Any]) -> dict[str, Answer]:
    return {model: Answer(**answer) for model, answer in found.items()}


@dataclass
class AttackStudy:
    """The state of a study, complete for every image it names.

    Attributes:
        settings: settings of the attacks.
        models: names of the models; attacks are transferred to and from the second one.
        edges: radii of the rings, in cycles over the shorter side.
        records: the records of the attacked images.
        failures: images that were left out.
        earlier: number of images that an earlier run had attacked.
    """

    settings: AttackSettings
    models: tuple[str, ...]
    edges: list[float]
    records: list[ImageRecord] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    earlier: int = 0

    def accuracy(self, model: str) -> Estimate:
        """Compute the share of images whose target the model predicts, before any attack."""
        return mean_and_error([float(record.before[model].right) for record in self.records])

    def fooled(self, band: str, source: str, model: str) -> Estimate | None:
        """Compute the share of a model's correct images that it misclassifies after an attack on ``source``."""
        before = [record.before[model].right for record in self.records]
        return fooled_share(before, [record.attacks[band][source].answers[model].right for record in self.records])

    def fooled_as_saved(self, band: str) -> Estimate | None:
        """Compute ``fooled`` of the first model for the saved images; None if none were saved."""
        saved = [(record, record.attacks[band][self.models[0]].saved) for record in self.records]
        kept = [(record.before[self.models[0]].right, image.answer.right) for record, image in saved if image]
        return fooled_share([before for before, _ in kept], [after for _, after in kept])

    def confidence(self, band: str | None) -> Estimate | None:
        """Compute the first model's mean probability of the target over its correct images.

        Args:
            band: the band of the attack; None for the original images.
        """
        name, right = self.models[0], self._right()
        found = [r.before[name] if band is None else r.attacks[band][name].answers[name] for r in right]
        return mean_and_error([answer.probability for answer in found]) if found else None

    def queries(self, band: str, *, fooled: bool = False) -> Estimate | None:
        """Compute the mean passes of attacks on the first model over its correct images.

        Args:
            band: the band of the attack.
            fooled: use only the images that were then misclassified.
        """
        name = self.models[0]
        attacks = [record.attacks[band][name] for record in self._right()]
        found = [attack.queries for attack in attacks if not (fooled and attack.answers[name].right)]
        return mean_and_error([float(count) for count in found]) if found else None

    def queries_until_fooled(self, band: str) -> list[int | None]:
        """List the passes until the first model was fooled, for its correct images; None if it was not fooled."""
        name = self.models[0]
        attacks = [record.attacks[band][name] for record in self._right()]
        return [None if attack.answers[name].right else attack.queries for attack in attacks]

    def norm(self, band: str) -> Estimate | None:
        """Compute the mean Euclidean norm of perturbations of the first model over its correct images."""
        found = [record.attacks[band][self.models[0]].norm for record in self._right()]
        return mean_and_error(found) if found else None

    def _right(self) -> list[ImageRecord]:
        return [record for record in self.records if record.before[self.models[0]].right]

    def band_share(self, band: str) -> Estimate:
        """Compute the mean share of the perturbations' energy in the band, for attacks on the first model."""
        return mean_and_error([record.attacks[band][self.models[0]].band_share for record in self.records])

    def band_share_as_saved(self, band: str) -> Estimate | None:
        """Compute ``band_share`` of the saved images (rounding spreads over all bands); None if none were saved."""
        saved = [record.attacks[band][self.models[0]].saved for record in self.records]
        shares = [image.band_share for image in saved if image]
        return mean_and_error(shares) if shares else None

    def ring_shares(self, band: str) -> Tensor:
        """Return the rings' shares of the energy of attacks on the first model, (images, rings) float64."""
        energy = torch.tensor(
            [record.attacks[band][self.models[0]].energy for record in self.records], dtype=torch.float64
        )
        return energy / energy.sum(1, keepdim=True).clamp(min=1e-300)

    def largest_saved_change(self) -> float | None:
        """Find the largest change of a value in the saved images, in pixel units; None if none were saved."""
        saved = [record.attacks[band][self.models[0]].saved for record in self.records for band in self.settings.bands]
        return max((image.largest_change for image in saved if image), default=None)

    def saved_stay_inside(self) -> bool:
        """Tell whether all saved images, rounded to 8 bits, are as close to the originals as the attack allows."""
        largest = self.largest_saved_change()
        return largest is None or largest <= self.settings.radius + ROUNDING / 255

    def curves(self) -> dict[str, BandCurve]:
        """Make the curves to plot: each ring's mean share with its interval, by band."""
        edges = torch.tensor(self.edges, dtype=torch.float64)
        shares = {band: self.ring_shares(band) for band in self.settings.bands}
        return {
            f"{band} band" if band != "all" else "no limit": BandCurve(
                edges, found.mean(0), bootstrap_interval(found, CONFIDENCE)
            )
            for band, found in shares.items()
        }

    def as_json(self) -> str:
        """Return everything as values for JSON; without images there is no summary."""
        return json_content(
            ATTACK,
            {
                "settings": {
                    "models": self.models,
                    **asdict(self.settings),
                    "config_type": type(self.settings.config).__name__,
                },
                "summary": self._summary() if self.records else {},
                "images": [
                    {"file": record.path.name, **{k: v for k, v in asdict(record).items() if k != "path"}}
                    for record in self.records
                ],
                "failures": [{"file": failure.path.name, "reason": failure.reason} for failure in self.failures],
            },
        )

    def _summary(self) -> dict[str, object]:
        def written(estimate: Estimate | None) -> dict[str, Any] | None:
            return None if estimate is None else asdict(estimate)

        name, rings = self.models[0], {}
        for band, curve in zip(self.settings.bands, self.curves().values(), strict=True):
            interval = curve.interval
            rings[band] = {
                "mean_share": curve.values.tolist(),
                "lower": None if interval is None else interval[0].tolist(),
                "upper": None if interval is None else interval[1].tolist(),
            }
        return {
            "images": len(self.records),
            "accuracy": {model: written(self.accuracy(model)) for model in self.models},
            "confidence_before": written(self.confidence(None)),
            "edges": self.edges,
            "interval": f"{CONFIDENCE:g}, percentile bootstrap over images",
            "bands": {
                band: {
                    "fooled": written(self.fooled(band, name, name)),
                    "fooled_as_saved": written(self.fooled_as_saved(band)),
                    "confidence_after": written(self.confidence(band)),
                    "queries": written(self.queries(band)),
                    "queries_where_fooled": written(self.queries(band, fooled=True)),
                    "norm": written(self.norm(band)),
                    "band_share": written(self.band_share(band)),
                    "band_share_as_saved": written(self.band_share_as_saved(band)),
                    "disturbance": rings[band],
                }
                for band in self.settings.bands
            },
            "transfer": {
                band: {
                    source: {model: written(self.fooled(band, source, model)) for model in self.models}
                    for source in self.models
                }
                for band in self.settings.bands
            },
            "largest_saved_change": self.largest_saved_change(),
        }
