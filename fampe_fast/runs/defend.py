"""Train small classifiers with and without a defence, and attack them in the low and the high band.

The images are this package's textures (``defence_data``), in which either band suffices to tell the class; which band a
classifier relies on, and so which attack fools it, depends on its training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..catalog import TRAININGS
from ..files import FIGURE, FOLDER, Output, check_outputs, json_content, write_atomically
from ..metrics import Estimate, mean_and_error
from ..metrics.summary import bootstrap_interval
from ..plots import save_figure
from ..plots.bands import BandCurve, bands_figure
from ..robustness import compare_reliance, transfer_rates
from ..robustness.band_limited import Band
from ..runtime.model import Model
from .defence_data import DATA
from .defence_settings import DefenceSettings
from .defence_training import ATTACKS, BATCH, band_attack, trained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..robustness import AdversarialImages

DEFENCE = "defence"
"""The kind of ``defence.json``."""


@dataclass
class DefenceResult:
    """The result of the experiment.

    Attributes:
        settings: settings of the experiment.
        accuracy: by training (``plain``, ``low_pass``, ``band_mix``, ``adversarial``), then by attack (``clean``,
            ``low``, ``high``, ``all``), with standard errors over the test images; with one classifier each, they do
            not include the variation over seeds.
        band_share: by training and attack, the mean share of the perturbations' energy in the band.
        transfer: by attack, source and target training: the fooled share; None if the target has no correct image.
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
        """Return everything as values for JSON."""
        return json_content(
            DEFENCE,
            {
                "settings": asdict(self.settings),
                "classes": list(DATA["textures"].classes),
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


def defend(
    out: Path, settings: DefenceSettings | None = None, *, on_stage: Callable[[str], None] = lambda stage: None
) -> DefenceResult:
    """Train, attack and compare classifiers; write ``out/defence.json`` and ``out/reliance.png``.

    Four classifiers with the same architecture, initial weights and order of images are trained: plainly, with
    ``LowPassAugmentation``, with ``BandMixAugmentation`` and adversarially (``PGD``). Each is attacked by a
    ``BandLimitedAttack`` in the low band, the high band and without a limit; each attack is also tested on the other
    classifiers; and the classifiers' occluded-frequency curves are drawn side by side. The same settings give the same
    results on the same machine. ``defence_seeds`` does the same over several seeds.

    Args:
        out: folder, made if missing.
        settings: the settings; the defaults take about a minute on one core.
        on_stage: called with the name of each stage.

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
    data = DATA["textures"]
    split = data.split(settings)
    test, truth = split.test_images, split.test_labels
    models: dict[str, Model] = {}
    for name in TRAININGS:
        on_stage(f"training, {name}")
        models[name] = trained(name, data, split, settings)

    result = DefenceResult(settings)
    for attack in ATTACKS:
        on_stage(f"attack, {attack} band")
        shares: list[float] = []

        def on_model(
            model: Model, band: Band = attack, shares: list[float] = shares
        ) -> Callable[[Tensor, Tensor], AdversarialImages]:
            made = band_attack(model, band, settings)

            def run(pixels: Tensor, targets: Tensor) -> AdversarialImages:
                found = made(pixels, targets, internal_batch_size=BATCH)
                shares.append(float(found.band_share.mean()))
                return found

            return run

        rates = transfer_rates(models, test, truth, on_model, internal_batch_size=BATCH)
        result.transfer[attack] = rates.rates
        for name, share in zip(models, shares, strict=True):
            result.band_share.setdefault(name, {})[attack] = share
            clean = result.accuracy.setdefault(name, {"clean": rates.accuracy[name]})["clean"]
            own = rates.rates[name][name]
            # Misclassified images stay wrong here, so that an attack cannot improve the accuracy.
            kept = 0.0 if own is None else clean.mean * (1 - own.mean)
            right = round(kept * len(test))
            result.accuracy[name][attack] = mean_and_error([1.0] * right + [0.0] * (len(test) - right))
    on_stage("occluded frequency")
    curves = compare_reliance(models, test, truth, bands=data.rings, internal_batch_size=BATCH)
    result.edges = next(iter(curves.values())).edges[0]
    result.drops = {name: found.drops.double() for name, found in curves.items()}
    write_atomically(out / "defence.json", result.as_json().encode())
    save_figure(_figure(result), out / "reliance.png")
    return result


def _figure(result: DefenceResult) -> Figure:
    return bands_figure(
        {
            name: BandCurve(result.edges, drops.mean(0), bootstrap_interval(drops))
            for name, drops in result.drops.items()
        },
        title="bands that the classifiers rely on",
    )
