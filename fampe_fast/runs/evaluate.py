"""Judge methods on image files: their maps' scores with standard errors, side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import FIGURE, FOLDER, Output, check_outputs, json_content, remove_leftovers, write_atomically
from ..images import load_images
from ..methods.base import AttributionMethod, describe, passes_of
from ..metrics import Estimate, mean_and_error, paired_difference
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..plots import contact_sheet, save_figure
from ..runtime.model_probe import probabilities_of
from .batches import Batch, Failure, Group, check_targets, groups_of
from .map_store import MapStore
from .measurement import Measurement, Scores
from .records import RECORDS, Item, Records
from .settings import everything_of

SCORES = "scores"
"""The kind of ``scores.json``."""


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
        earlier: how many images an earlier run had finished.
    """

    measurement: Measurement
    model: dict[str, object]
    settings: dict[str, dict[str, object]]
    paths: list[Path] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    earlier: int = 0

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
        return json_content(
            SCORES,
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
        )

    def _measured(self) -> list[str]:
        return list(next(iter(self.scores.values()), Scores()).values)


def evaluation_outputs(out: Path) -> list[Output]:
    """What ``evaluate_files`` writes."""
    return [
        Output(out, FOLDER),
        Output(out / "scores.json", SCORES),
        Output(out / "contact_sheet.png", FIGURE),
        Output(out / "scores.jsonl", RECORDS),
        Output(out / "maps", FOLDER),
    ]


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

    A method's scores of a batch are on disk (``out/scores.jsonl``; the maps of the contact sheet in ``out/maps``) as
    soon as they are found, and are not computed again for the same image, place, target, model and settings. An image
    counts once all methods have scored it. Interrupted, it sums up what has been scored and lets the interrupt through.

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
        ValueError: an unknown metric or protocol, or an output would replace an image or a file of another's.
    """
    measure = Measurement(
        tuple(metrics), protocol, metric_steps, metric_passes, mu_fidelity_samples, stability_samples, metric_seed
    )
    check_outputs(evaluation_outputs(out), paths)
    for folder in (out, out / "maps"):
        remove_leftovers(folder)
    settings = {name: {**describe(method), "passes": passes_of(method)} for name, method in methods.items()}
    result = Evaluation(measure, identity_of(classifier), settings, scores={name: Scores() for name in methods})
    store = MapStore(out / "maps")
    groups: list[Group] = []

    def failed(failure: Failure) -> None:
        result.failures.append(failure)
        on_failure(failure)

    def answer(batch: Batch) -> list[dict[str, Any]]:
        probabilities = probabilities_of(classifier, batch.images)
        chosen = probabilities.argmax(1)
        if targets is not None:
            chosen = torch.tensor([targets[position] for position in batch.positions], device=chosen.device)
            check_targets(chosen, probabilities)
        right = probabilities.gather(1, chosen[:, None])[:, 0]
        for target in chosen.tolist():
            classifier.class_name(target)  # one without a name costs the image here, and not the run at its end
        return [
            {"target": target, "probability": probability}
            for target, probability in zip(chosen.tolist(), right.tolist(), strict=True)
        ]

    with Records(out / "scores.jsonl", "evaluate") as records:
        answers = records.context({"of": "answers", **result.model})
        contexts = {
            name: records.context(
                {
                    "of": "scores",
                    **result.model,
                    "method": everything_of(method, classifier),
                    "metrics": measure.options(),
                }
            )
            for name, method in methods.items()
        }

        def settle(group: Group, name: str, shown: bool) -> None:
            method, context = methods[name], contexts[name]
            items = {item.position: item for item in group.items}

            def done(item: Item) -> bool:
                return records.get(context, item) is not None and (not shown or store.holds(context, item))

            def score(batch: Batch) -> tuple[Tensor, list[dict[str, Any]]]:
                known = [records.get(answers, items[position]) for position in batch.positions]
                chosen = torch.tensor([found["target"] for found in known if found], device=batch.images.device)
                began = time.perf_counter()
                maps = method.attribute(
                    batch.images, chosen, image_ids=batch.positions, internal_batch_size=internal_batch_size
                )
                seconds = (time.perf_counter() - began) / len(batch.paths)
                values = measure(classifier, method, batch.images, maps, chosen, batch.positions, internal_batch_size)
                return maps, [
                    {"values": {key: found[k] for key, found in values.items()}, "seconds": seconds}
                    for k in range(len(batch.paths))
                ]

            def keep(batch: Batch, part: list[Item], found: tuple[Tensor, list[dict[str, Any]]]) -> None:
                maps, values = found
                if shown:
                    for item, attribution in zip(part, maps, strict=True):
                        store.save(context, item, attribution)
                records.add(context, part, values)

            group.settle(done, score, keep)

        def complete(item: Item) -> bool:
            return all(records.get(context, item) is not None for context in (answers, *contexts.values()))

        try:
            for group in groups_of(classifier, paths, targets, batch_size, failed):
                result.earlier += sum(map(complete, group.items))
                group.settle_in(records, answers, answer)
                # Of every image of a group that reaches into the sheet: one that fails makes room for another.
                shown = sum(len(earlier.items) for earlier in groups) < sheet_rows
                groups.append(group)
                for name in methods:
                    settle(group, name, shown)
                on_images(len(group.items))
        finally:
            # Of the group at work too, where the interrupt came between its last result and the next line.
            scored = [item for group in groups for item in group.items if complete(item)]
            if scored:
                _fill(result, records, answers, contexts, scored)
                write_atomically(out / "scores.json", result.as_json().encode())
                _write_sheet(classifier, result, store, contexts, scored[:sheet_rows], out / "contact_sheet.png")
    return result


def _fill(
    result: Evaluation, records: Records, answers: str, contexts: Mapping[str, str], scored: Sequence[Item]
) -> None:
    """The result of what is on record."""
    for item in scored:
        found = records.get(answers, item)
        assert found is not None
        result.paths.append(item.path)
        result.targets.append(found["target"])
        result.probabilities.append(_number(found["probability"]))
        for name, context in contexts.items():
            of_method = records.get(context, item)
            assert of_method is not None
            values = {key: [_number(value)] for key, value in of_method["values"].items()}
            result.scores[name].add(values, of_method["seconds"])


def _number(value: float | None) -> float:
    """A number of a record, where NaN is null."""
    return math.nan if value is None else float(value)


_SHEET_SCORES = {"mu_fidelity": "mu-fidelity", "stability": "stability (low is stable)"}


def _write_sheet(
    classifier: Classifier,
    result: Evaluation,
    store: MapStore,
    contexts: Mapping[str, str],
    items: Sequence[Item],
    path: Path,
) -> None:
    # Read once more: a black one where a file has gone since.
    read = [image for _, image in load_images([item.path for item in items], classifier.transform)]
    shown = "faithfulness" if "insertion" in result._measured() else result._measured()[0]
    figure = contact_sheet(
        [image if isinstance(image, Tensor) else torch.zeros(3, *classifier.input_size) for image in read],
        {name: [store.load(context, item) for item in items] for name, context in contexts.items()},
        [classifier.class_name(target) for target in result.targets[: len(items)]],
        scores={name: score.columns()[shown][: len(items)] for name, score in result.scores.items()},
        score_name=_SHEET_SCORES.get(shown, f"insertion − deletion ({result.protocol})"),
    )
    save_figure(figure, path)
