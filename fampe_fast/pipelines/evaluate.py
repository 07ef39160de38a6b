"""Judge methods on image files: their maps' scores with standard errors, side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..methods.base import AttributionMethod
from ..methods.passes import passes_of
from ..metrics import Estimate, mean_and_error, paired_difference
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..plots import contact_sheet, save_figure
from ..plots.saving import write_atomically
from .batches import Batch, Failure, one_by_one_on_error, read_batches
from .explain import settings_of
from .scoring import Measurement, Scores


@dataclass
class Evaluation:
    """The state of an evaluation, complete for every image it names.

    Attributes:
        measurement: what is measured.
        model: name and fingerprint.
        settings: of the methods, by name, with the passes of the model that each makes for an image.
        paths: images scored with every method.
        targets: the class of each.
        probabilities: the model's for that class.
        scores: by method.
        failures: images left out.
    """

    measurement: Measurement
    model: dict[str, object]
    settings: dict[str, dict[str, object]]
    paths: list[Path] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    @property
    def protocol(self) -> str:
        """Of insertion and deletion."""
        return self.measurement.protocol

    def summary(self) -> dict[str, dict[str, Estimate]]:
        """Means with standard errors, and for each the paired difference to the first method, ``..._minus_first``."""
        if not self.paths:
            return {}
        columns = {name: score.columns() for name, score in self.scores.items()}
        first = next(iter(columns.values()))
        return {
            name: {
                **{key: mean_and_error(values) for key, values in found.items()},
                **{f"{key}_minus_first": paired_difference(values, first[key]) for key, values in found.items()},
            }
            for name, found in columns.items()
        }

    def as_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(
            {
                **({"protocol": self.protocol} if "insertion" in self._measured() else {}),
                "metrics": self.measurement.options(),
                **self.model,
                "methods": self.settings,
                "summary": {
                    name: {key: vars(estimate) for key, estimate in row.items()} for name, row in self.summary().items()
                },
                "seconds_per_image": {
                    name: score.seconds / max(1, len(self.paths)) for name, score in self.scores.items()
                },
                "images": [
                    {
                        "file": path.name,
                        "target": self.targets[k],
                        "probability": self.probabilities[k],
                        **{
                            key: {name: score.values[key][k] for name, score in self.scores.items()}
                            for key in self._measured()
                        },
                    }
                    for k, path in enumerate(self.paths)
                ],
                "failures": [{"file": failure.path.name, "reason": failure.reason} for failure in self.failures],
            },
            indent=1,
        )

    def _measured(self) -> list[str]:
        return list(next(iter(self.scores.values()), Scores()).values)


def evaluate_files(
    classifier: Classifier,
    methods: Mapping[str, AttributionMethod],
    paths: Sequence[Path],
    out: Path,
    *,
    targets: Sequence[int] | None = None,
    metrics: Sequence[str] = ("insertion_deletion",),
    protocol: str = "rise",
    metric_steps: int | None = None,
    metric_passes: int | None = None,
    mu_fidelity_samples: int = 200,
    stability_samples: int = 10,
    metric_seed: int = 0,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    sheet_rows: int = 16,
    on_images: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Evaluation:
    """Explain every file with every method and score the maps; ``out/scores.json`` and ``out/contact_sheet.png``.

    A batch counts once all methods have scored it. Interrupted by Ctrl-C, it writes what has been scored and lets the
    interrupt through.

    Args:
        classifier: the model.
        methods: by name, made for this classifier; the first is the one others are compared with.
        paths: image files.
        out: folder, made if missing.
        targets: the class of each file; None takes the model's own choice.
        metrics: of ``scoring.METRICS``; mu-fidelity and stability have their functions' defaults but for what is here.
        protocol: of insertion and deletion, by name.
        metric_steps: at most this many steps of insertion and deletion; None is the protocol's own number.
        metric_passes: at most so many of them are measured, the others interpolated; None measures all.
        mu_fidelity_samples: subsets per image and method, each a pass of the model.
        stability_samples: perturbed copies per image and method, each an attribution.
        metric_seed: of mu-fidelity's subsets and stability's perturbations; an image's id is its place in ``paths``.
        batch_size: images read together.
        internal_batch_size: samples per model pass.
        sheet_rows: images on the contact sheet.
        on_images: called with the number of images just scored.
        on_failure: called for an image left out.

    Returns:
        The ``Evaluation``.

    Raises:
        OSError: the results cannot be written.
        ValueError: an unknown metric or protocol.
    """
    measure = Measurement(
        tuple(metrics), protocol, metric_steps, metric_passes, mu_fidelity_samples, stability_samples, metric_seed
    )
    out.mkdir(parents=True, exist_ok=True)
    settings = {name: {**settings_of(method), "passes": passes_of(method)} for name, method in methods.items()}
    result = Evaluation(measure, identity_of(classifier), settings, scores={name: Scores() for name in methods})
    sheet: list[tuple[Tensor, dict[str, Tensor], str]] = []

    def failed(failure: Failure) -> None:
        result.failures.append(failure)
        on_failure(failure)

    def work(batch: Batch) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, dict[str, list[float]], float]]]:
        with torch.no_grad():
            probabilities = classifier(batch.images).softmax(1)
        chosen = probabilities.argmax(1)
        if targets is not None:
            chosen = torch.tensor([targets[position] for position in batch.positions], device=chosen.device)
        scored = {}
        for name, method in methods.items():
            began = time.perf_counter()
            maps = method.attribute(
                batch.images, chosen, image_ids=batch.positions, internal_batch_size=internal_batch_size
            )
            seconds = time.perf_counter() - began
            values = measure(classifier, method, batch.images, maps, chosen, batch.positions, internal_batch_size)
            scored[name] = (maps, values, seconds)
        return chosen, probabilities.gather(1, chosen[:, None])[:, 0], scored

    try:
        for whole in read_batches(classifier, paths, batch_size, failed):
            for batch, (chosen, probability, scored) in one_by_one_on_error(whole, work, failed):
                result.paths += batch.paths
                result.targets += chosen.tolist()
                result.probabilities += probability.tolist()
                for name, (_, values, seconds) in scored.items():
                    result.scores[name].add(values, seconds)
                for k in range(min(len(batch.paths), sheet_rows - len(sheet))):
                    maps = {name: found[0][k].cpu() for name, found in scored.items()}
                    sheet.append((batch.images[k].cpu(), maps, classifier.class_name(int(chosen[k]))))
                on_images(len(batch.paths))
    finally:
        if result.paths:
            write_atomically(out / "scores.json", result.as_json().encode())
            _write_sheet(sheet, result, out / "contact_sheet.png")
    return result


_SHEET_SCORES = {"mu_fidelity": "mu-fidelity", "stability": "stability (low is stable)"}


def _write_sheet(sheet: list[tuple[Tensor, dict[str, Tensor], str]], result: Evaluation, path: Path) -> None:
    rows = len(sheet)
    shown = "faithfulness" if "insertion" in result._measured() else result._measured()[0]
    figure = contact_sheet(
        [image for image, _, _ in sheet],
        {name: [maps[name] for _, maps, _ in sheet] for name in result.scores},
        [title for _, _, title in sheet],
        scores={name: score.columns()[shown][:rows] for name, score in result.scores.items()},
        score_name=_SHEET_SCORES.get(shown, f"insertion − deletion ({result.protocol})"),
    )
    save_figure(figure, path)
