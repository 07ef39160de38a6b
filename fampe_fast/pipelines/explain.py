"""Explain image files: a picture and an archive for each."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..methods.base import AttributionMethod, PathMethod
from ..methods.forgrad import FORGrad
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..plots import explanation_figure, save_figure
from ..plots.saving import write_atomically
from .batches import Batch, Failure, one_by_one_on_error, read_batches


@dataclass(frozen=True)
class Explanation:
    """What is known of an explained file.

    Attributes:
        path: the file.
        target: the class explained.
        class_name: its name.
        probability: the model's for that class.
        predicted: the model's own first choice.
        cutoff: in cycles over the shorter side; None for methods without one.
        seconds: of the batch, divided by its images.
        picture: the PNG written.
        archive: the ``.npz`` written: map, image, target, probability, cutoff, settings (JSON).
    """

    path: Path
    target: int
    class_name: str
    probability: float
    predicted: int
    cutoff: float | None
    seconds: float
    picture: Path
    archive: Path


def explain_files(
    classifier: Classifier,
    method: AttributionMethod,
    paths: Sequence[Path],
    out: Path,
    *,
    target: int | None = None,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    on_result: Callable[[Explanation], None] = lambda result: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> list[Explanation]:
    """Explain files and write ``NAME.png`` and ``NAME.npz`` for each into ``out``, each whole or not at all.

    Args:
        classifier: the model.
        method: made for this classifier.
        paths: image files; a file's place in this list names it in the random stream.
        out: folder, made if missing.
        target: class explained in every image; None explains the model's own choice.
        batch_size: images read and explained together.
        internal_batch_size: samples per model pass.
        on_result: called as soon as a file's results are written.
        on_failure: called for a file that cannot be read or explained.

    Returns:
        The explanations, in order.

    Raises:
        OSError: the results cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = unique_names(paths)
    settings = {**identity_of(classifier), **settings_of(method)}
    done: list[Explanation] = []

    def work(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float]:
        began = time.perf_counter()
        with torch.no_grad():
            probabilities = classifier(batch.images).softmax(1)
        targets = probabilities.argmax(1) if target is None else torch.full_like(probabilities[:, 0], target).long()
        ids, chunk = batch.positions, internal_batch_size
        cutoff: Tensor | None = None
        if isinstance(method, PathMethod):
            maps, details = method.attribute(
                batch.images, targets, image_ids=ids, internal_batch_size=chunk, return_details=True
            )
            cutoff = details.cutoff
        else:
            maps = method.attribute(batch.images, targets, image_ids=ids, internal_batch_size=chunk)
        return maps, probabilities, targets, cutoff, (time.perf_counter() - began) / len(batch.paths)

    for whole in read_batches(classifier, paths, batch_size, on_failure):
        for batch, (maps, probabilities, targets, cutoffs, seconds) in one_by_one_on_error(whole, work, on_failure):
            for k, (path, position) in enumerate(zip(batch.paths, batch.positions, strict=True)):
                chosen = int(targets[k])
                result = Explanation(
                    path,
                    chosen,
                    classifier.class_name(chosen),
                    float(probabilities[k, chosen]),
                    int(probabilities[k].argmax()),
                    None if cutoffs is None else float(cutoffs[k]),
                    seconds,
                    out / f"{names[position]}.png",
                    out / f"{names[position]}.npz",
                )
                _write(result, batch.images[k], maps[k], settings)
                done.append(result)
                on_result(result)
    return done


def settings_of(method: AttributionMethod) -> dict[str, object]:
    """The method and its configuration, for a record."""
    settings: dict[str, object] = {"method": getattr(method, "name", type(method).__name__)}
    config = getattr(method, "config", None)
    if config is not None:
        settings["config"] = dataclasses.asdict(config)
    elif hasattr(method, "passes"):
        settings["config"] = {"passes": method.passes, "noise": getattr(method, "noise", None)}
    elif isinstance(method, FORGrad):
        settings |= {"map_cutoff": method.cutoff, "signed": method.signed, "filtered": settings_of(method.method)}
    return settings


def unique_names(paths: Sequence[Path]) -> list[str]:
    """File names without their endings; where several files share one, all but the first get a number."""
    taken: set[str] = set()
    names = []
    for path in paths:
        name, number = path.stem, 1
        while name in taken:
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name)
        names.append(name)
    return names


def _write(result: Explanation, image: Tensor, attribution: Tensor, settings: dict[str, object]) -> None:
    figure = explanation_figure(
        image, attribution, class_name=result.class_name, probability=result.probability, cutoff=result.cutoff
    )
    save_figure(figure, result.picture)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        map=attribution.cpu().numpy(),
        image=image.cpu().numpy(),
        target=result.target,
        probability=result.probability,
        cutoff=np.nan if result.cutoff is None else result.cutoff,
        settings=json.dumps(settings),
    )
    write_atomically(result.archive, buffer.getvalue())
