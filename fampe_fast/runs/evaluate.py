"""Evaluate methods on image files: scores of their maps with standard errors, and a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..files import FIGURE, FOLDER, Output, check_outputs, json_content, write_atomically
from ..images import load_images
from ..methods.base import AttributionMethod
from ..models.classifier import Classifier
from ..plots import contact_sheet, save_figure
from .batches import Failure
from .comparison import MAPS_FOLDER, SCORES_FILE, Comparison, Maps, compare_files
from .measurement import Measurement
from .records import RECORDS

SCORES = "scores"
"""The kind of ``scores.json``."""


def evaluation_outputs(out: Path) -> list[Output]:
    """List the files that ``evaluate_files`` writes."""
    return [
        Output(out, FOLDER),
        Output(out / "scores.json", SCORES),
        Output(out / "contact_sheet.png", FIGURE),
        Output(out / SCORES_FILE, RECORDS),
        Output(out / MAPS_FOLDER, FOLDER),
    ]


def evaluate_files(
    classifier: Classifier,
    methods: Mapping[str, AttributionMethod],
    paths: Sequence[Path],
    out: Path,
    *,
    measurement: Measurement | None = None,
    targets: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    sheet_rows: int = 16,
    on_scores: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Comparison:
    """Explain files with every method and measure the maps; write ``out/scores.json`` and ``out/contact_sheet.png``.

    Finished work is not repeated, as in ``compare_files``.

    Args:
        classifier: the model.
        methods: by name, made for this classifier; the others are compared with the first.
        paths: image files.
        out: folder, made if missing.
        measurement: the metrics and their options; default: insertion and deletion in RISE's protocol.
        targets: class of each file; None uses the model's prediction.
        image_ids: unique id of each file in the random stream, 0 to 2^32 - 2; default: its position in ``paths``.
        batch_size: images read together.
        internal_batch_size: samples per model pass.
        sheet_rows: number of images on the contact sheet.
        on_scores: called with the number of newly scored maps (images times methods).
        on_failure: called for each image that is left out.

    Raises:
        OSError: the results cannot be written.
        ValueError: an output would replace an image or a file of another's, an option of a metric does not fit the
            images' size, the methods or the number of classes, or image ids are not unique or out of range.
    """
    check_outputs(evaluation_outputs(out), paths)

    def write(result: Comparison, maps: Maps) -> None:
        write_atomically(out / "scores.json", json_content(SCORES, result.as_json()).encode())
        _write_sheet(classifier, result, maps, out / "contact_sheet.png")

    return compare_files(
        "evaluate",
        classifier,
        methods,
        paths,
        out,
        write,
        measurement=measurement or Measurement(),
        targets=targets,
        image_ids=image_ids,
        batch_size=batch_size,
        internal_batch_size=internal_batch_size,
        maps_kept=sheet_rows,
        on_scores=on_scores,
        on_failure=on_failure,
    )


def _write_sheet(classifier: Classifier, result: Comparison, maps: Maps, path: Path) -> None:
    # Read again, with a black image if a file no longer exists.
    read = [image for _, image in load_images(maps.paths, classifier.transform)]
    # A difference summarises its two scores.
    scores = result.measurement.scores
    shown = next((score for score in scores if not isinstance(score.field, str)), scores[0])
    notes = [result.measurement.protocol] if isinstance(shown.field, tuple) else []
    notes += ["low is better"] if shown.better == "low" else []
    figure = contact_sheet(
        [image if isinstance(image, Tensor) else torch.zeros(3, *classifier.input_size) for image in read],
        {label: maps.of(label) for label in result.scores},
        [classifier.class_name(target) for target in result.targets[: len(read)]],
        scores={label: result.columns(label)[shown.name][: len(read)] for label in result.scores},
        score_name=shown.title + "".join(f" ({note})" for note in notes),
    )
    save_figure(figure, path)
