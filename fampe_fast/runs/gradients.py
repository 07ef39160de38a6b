"""Test FORGrad's premises over image files: what low-passed gradients predict, and how layers change their spectra."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import check_count
from ..files import FIGURE, FOLDER, MARK, Output, check_outputs, json_content, remove_leftovers, write_atomically
from ..metrics import Estimate, mean_and_error
from ..metrics.summary import bootstrap_interval
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..plots import save_figure
from ..plots.gradients import ExplainedCurve, LayerCurves, explained_figure, layers_figure
from ..robustness.first_order import PERTURBATIONS, FirstOrderTest, Perturbation
from ..robustness.layer_spectra import layer_spectra
from ..robustness.occluded_frequency import Score
from .batches import Batch, Failure, Group, check_run_ids, groups_of, settle_all, targets_of_batch
from .records import RECORDS, Item, Records
from .searches import found_of

GRADIENTS = "gradients"
"""The kind of ``gradients.json``."""
CONFIDENCE = 0.95


@dataclass(frozen=True)
class GradientSettings:
    """The settings of the measurements on every image.

    Attributes:
        perturbations: kinds of perturbation in ``PERTURBATIONS``; at least one.
        samples: number of perturbations of each kind per image.
        size: root mean square of a perturbation's values, in pixel units, above 0.
        score: score whose change is predicted, as in ``FirstOrderTest``.
        seed: seed of the perturbations, any 64-bit integer.

    Raises:
        ValueError: no kind, an unknown one, or a number out of range.
        TypeError: numbers of a wrong type.
    """

    perturbations: tuple[Perturbation, ...] = PERTURBATIONS
    samples: int = 32
    size: float = 0.25 / 255
    score: Score = "logit"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.perturbations:
            raise ValueError(f"expected at least one kind of perturbation of {', '.join(PERTURBATIONS)}, got none")
        for kind in self.perturbations:
            self.test(lambda pixels: pixels, kind)

    def test(self, model: Any, kind: Perturbation) -> FirstOrderTest:
        """Make the first-order test of a model with one kind of perturbation."""
        return FirstOrderTest(model, kind, self.samples, self.size, self.score, seed=self.seed)


@dataclass
class GradientStudy:
    """The state of a study, complete for every image it names.

    Attributes:
        settings: settings of the measurements.
        model: name and fingerprint.
        paths: the measured images.
        image_ids: each image's id in the random stream.
        targets: class of each image.
        radii: (R,) cycles over the shorter side; the last is the whole gradient's.
        explained: by kind of perturbation, for each image zeta at each radius.
        gradient_share: for each image the share of its gradient's energy within each radius.
        layers: name, class and sizes of the strided layers.
        spectra: for each image and layer the mean amplitudes ``arriving`` and ``leaving``, and the share ``beyond``.
        failures: images that were left out.
        earlier: number of images that an earlier run had measured.
    """

    settings: GradientSettings
    model: dict[str, object]
    paths: list[Path] = field(default_factory=list)
    image_ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    radii: list[float] = field(default_factory=list)
    explained: dict[str, list[list[float]]] = field(default_factory=dict)
    gradient_share: list[list[float]] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    spectra: list[list[dict[str, Any]]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    earlier: int = 0

    def beyond(self, layer: int) -> Estimate:
        """Compute the mean share of a layer's gradient above its output's frequencies."""
        return mean_and_error([image[layer]["beyond"] for image in self.spectra])

    def summary(self) -> dict[str, Any]:
        """Return the means over the images, with intervals, as values for JSON."""
        return {
            "images": len(self.paths),
            "interval": f"{CONFIDENCE:g}, percentile bootstrap over images",
            "radii": self.radii,
            "gradient_share": _mean(self.gradient_share).tolist(),
            "explained": {kind: _with_interval(rows) for kind, rows in self.explained.items()},
            "layers": [
                {
                    **layer,
                    "beyond": asdict(self.beyond(k)),
                    **{
                        side: _geometric([image[k][side] for image in self.spectra]).tolist()
                        for side in ("arriving", "leaving")
                    },
                }
                for k, layer in enumerate(self.layers)
            ],
        }

    def as_json(self) -> dict[str, Any]:
        """Return everything as values for JSON."""
        return {
            **self.model,
            "settings": asdict(self.settings),
            "summary": self.summary(),
            "images": [
                {
                    "file": path.name,
                    "id": self.image_ids[k],
                    "target": self.targets[k],
                    "explained": {kind: rows[k] for kind, rows in self.explained.items()},
                    "gradient_share": self.gradient_share[k],
                    "beyond": [layer["beyond"] for layer in self.spectra[k]],
                }
                for k, path in enumerate(self.paths)
            ],
            "failures": [{"file": failure.path.name, "reason": failure.reason} for failure in self.failures],
        }


def gradient_outputs(out: Path) -> list[Output]:
    """List the files that ``measure_gradients`` writes.

    Raises:
        ValueError: an existing ``gradients.json`` cannot be read.
    """
    if (out / "gradients.json").exists():
        read_gradients(out / "gradients.json")
    return [
        Output(out, FOLDER),
        Output(out / "gradients.json", GRADIENTS),
        Output(out / "explained.png", FIGURE),
        Output(out / "layers.png", FIGURE),
        Output(out / "gradients.jsonl", RECORDS),
    ]


def read_gradients(path: Path) -> dict[str, dict[str, Any]]:
    """Read the results of models from a file of ``measure_gradients``, by name.

    Raises:
        ValueError: the file is not one of ``measure_gradients``.
    """
    try:
        found = json.loads(path.read_bytes())
        models = {str(name): dict(model) for name, model in found["models"].items()}
        if found.get(MARK) != GRADIENTS or not all("summary" in model for model in models.values()):
            raise KeyError("summary")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of measured gradients: {error!r}") from error
    return models


def measure_gradients(
    classifier: Classifier,
    paths: Sequence[Path],
    out: Path,
    settings: GradientSettings | None = None,
    *,
    targets: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    on_images: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> GradientStudy:
    """Measure gradients of every file: their predictions without high frequencies, and the layers these come from.

    ``out/gradients.json`` keeps the results of other models in the same folder; ``explained.png`` and, for models with
    strided layers, ``layers.png`` draw them side by side. The results of a batch are stored at once
    (``out/gradients.jsonl``), and are not computed again for the same image, id, target, model and settings. After an
    interrupt, the results so far are summarised and the interrupt is raised again.

    Args:
        classifier: the model.
        paths: image files.
        out: folder, made if missing.
        settings: the perturbations, their number and size.
        targets: class of each file; None uses the model's prediction.
        image_ids: unique id of each file in the random stream, 0 to 2^32 - 2; default: its position in ``paths``.
        batch_size: images read together.
        internal_batch_size: images per model pass.
        on_images: called with the number of newly measured images.
        on_failure: called for each image that is left out.

    Raises:
        ValueError: image ids that are not unique or out of range, or an output would replace an image or a file of
            another's.
        OSError: the results cannot be written.
    """
    settings = settings or GradientSettings()
    check_count("batch_size", batch_size)
    image_ids = check_run_ids(paths, image_ids)
    check_outputs(gradient_outputs(out), paths)
    remove_leftovers(out)
    study = GradientStudy(settings, identity_of(classifier))

    def failed(failure: Failure) -> None:
        study.failures.append(failure)
        on_failure(failure)

    def work(batch: Batch) -> list[dict[str, Any]]:
        chosen = targets_of_batch(classifier, batch, targets)
        fits = {
            kind: settings.test(classifier, kind)(
                batch.images, chosen, image_ids=batch.ids, internal_batch_size=internal_batch_size
            )
            for kind in settings.perturbations
        }
        layers = layer_spectra(classifier, batch.images, chosen, internal_batch_size=internal_batch_size)
        first = fits[settings.perturbations[0]]
        return [
            {
                "target": int(chosen[k]),
                "radii": first.radii.tolist(),
                "explained": {kind: fit.explained[k].tolist() for kind, fit in fits.items()},
                "gradient_share": first.gradient_share[k].tolist(),
                "layers": [
                    {"name": one.name, "kind": one.kind, "fine": one.fine, "coarse": one.coarse} for one in layers
                ],
                "spectra": [
                    {
                        "arriving": one.arriving[k].tolist(),
                        "leaving": one.leaving[k].tolist(),
                        "beyond": float(one.beyond[k]),
                    }
                    for one in layers
                ],
            }
            for k in range(len(batch.paths))
        ]

    with Records(out / "gradients.jsonl", "gradients") as records:
        context = records.context({**study.model, **asdict(settings)})

        def settle(group: Group) -> None:
            group.settle_in(records, context, work)
            on_images(len(group.items))

        def finish(measured: list[Item], earlier: int) -> None:
            study.earlier = earlier
            if measured:
                _fill(study, records, context, measured)
                _save(study, out)

        groups = groups_of(classifier, paths, targets, batch_size, failed, image_ids)
        settle_all(groups, lambda item: records.get(context, item) is not None, settle, finish)
    return study


def _fill(study: GradientStudy, records: Records, context: str, measured: Sequence[Item]) -> None:
    """Summarise the records."""
    for item in measured:
        found = found_of(records, context, item)
        study.paths.append(item.path)
        study.image_ids.append(item.image_id)
        study.targets.append(found["target"])
        study.radii, study.layers = found["radii"], found["layers"]
        for kind, row in found["explained"].items():
            study.explained.setdefault(kind, []).append(row)
        study.gradient_share.append(found["gradient_share"])
        study.spectra.append(found["spectra"])


def _save(study: GradientStudy, out: Path) -> None:
    path = out / "gradients.json"
    models = read_gradients(path) if path.exists() else {}
    models[str(study.model["model"])] = study.as_json()
    write_atomically(path, json_content(GRADIENTS, {"models": models}).encode())
    summaries = {name: model["summary"] for name, model in models.items()}
    save_figure(explained_figure(_explained_curves(summaries)), out / "explained.png")
    layers = _layer_curves(summaries)
    if layers:
        save_figure(layers_figure(layers), out / "layers.png")


def _explained_curves(summaries: dict[str, dict[str, Any]]) -> dict[str, dict[str, ExplainedCurve]]:
    """Make the curves to plot, by kind of perturbation and model."""
    kinds = [kind for kind in PERTURBATIONS if any(kind in found["explained"] for found in summaries.values())]
    return {
        kind: {
            f"{name}, {found['images']} images": ExplainedCurve(
                found["radii"],
                found["explained"][kind]["mean"],
                (found["explained"][kind]["lower"], found["explained"][kind]["upper"]),
                found["gradient_share"],
            )
            for name, found in summaries.items()
            if kind in found["explained"]
        }
        for kind in kinds
    }


def _layer_curves(summaries: dict[str, dict[str, Any]]) -> dict[str, list[LayerCurves]]:
    return {
        name: [
            LayerCurves(
                layer["name"],
                layer["kind"],
                min(layer["fine"]),
                min(layer["coarse"]),
                layer["arriving"],
                layer["leaving"],
                layer["beyond"]["mean"],
            )
            for layer in found["layers"]
        ]
        for name, found in summaries.items()
        if found["layers"]
    }


def _mean(rows: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).mean(0)


def _geometric(rows: Sequence[Sequence[float]]) -> Tensor:
    """Average geometrically over images, which have different scales."""
    values = torch.tensor(rows, dtype=torch.float64)
    return values.clamp(min=1e-300).log().mean(0).exp()


def _with_interval(rows: Sequence[Sequence[float]]) -> dict[str, list[float] | None]:
    values = torch.tensor(rows, dtype=torch.float64)
    interval = bootstrap_interval(values, CONFIDENCE)
    return {
        "mean": values.mean(0).tolist(),
        "lower": None if interval is None else interval[0].tolist(),
        "upper": None if interval is None else interval[1].tolist(),
    }
