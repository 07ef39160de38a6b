"""Compare trainings over several seeds: accuracy under attack and reliance on frequencies, with intervals.

A single classifier tells little about a training, so results are compared over seeds. Seeds are independent: each has
its own images (for digits, its own split), weights, order and random numbers. All trainings of a seed share the first
three, so that their differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..catalog import TRAINING_DATA, TRAININGS
from ..checks import check_choice, check_count
from ..files import (
    FIGURE,
    FOLDER,
    Output,
    check_outputs,
    json_content,
    markdown_content,
    remove_leftovers,
    write_atomically,
)
from ..frequency.bands import equal_width_bands
from ..plots import save_figure
from ..plots.band_panels import band_panels_figure
from ..robustness import OccludedFrequency
from ..robustness.transfer import answers_of, attack_and_ask
from .defence_data import DATA, DataSet, Split
from .defence_seed_results import CONFIDENCE, HEAD, SeedStudy, TaskResult
from .defence_settings import DefenceSettings
from .defence_training import ATTACKS, BATCH, band_attack, trained
from .records import RECORDS, Item, Records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STUDY, TABLE = "trainings", "trainings table"
"""The kinds of ``trainings.json`` and ``trainings.md``."""


def seed_outputs(out: Path) -> list[Output]:
    """List the files that ``compare_trainings`` writes."""
    return [
        Output(out, FOLDER),
        Output(out / "trainings.jsonl", RECORDS),
        Output(out / "trainings.json", STUDY),
        Output(out / "trainings.md", TABLE),
        Output(out / "trainings.png", FIGURE),
    ]


def compare_trainings(
    out: Path,
    seeds: int,
    data: Sequence[str] = TRAINING_DATA,
    *,
    on_trained: Callable[[int], None] = lambda count: None,
    **options: Any,
) -> SeedStudy:
    """Train, attack and occlude classifiers of every data set, training and seed, and write the report.

    Each classifier's results are stored in ``out/trainings.jsonl`` at once, and are not computed again after an
    interruption or with more seeds. ``out`` then has ``trainings.json``, ``trainings.md`` and ``trainings.png``, the
    reliance curves.

    Args:
        out: folder, made if missing.
        seeds: number of seeds, at least 3; the option ``seed`` is the first.
        data: names of data sets in ``catalog.TRAINING_DATA``.
        on_trained: called with the number of newly finished classifiers.
        **options: fields of ``DefenceSettings``, which override each data set's own.

    Returns:
        ``SeedStudy``.

    Raises:
        ImportError: ``data`` has the digits, and scikit-learn is not installed.
        ValueError: fewer than three seeds, an unknown data set, an option out of range, more images than there are
            digits, or an output would replace a file that this package did not write.
        TypeError: an unknown option, or one of a wrong type.
        OSError: the results cannot be written.
    """
    count = check_count("seeds", seeds, at_least=3)
    names = [check_choice("data", name, TRAINING_DATA) for name in dict.fromkeys(data)]
    if not names:
        raise ValueError(f"data must be one or more of {', '.join(TRAINING_DATA)}; got none")
    settings = {name: DATA[name].settings(**options) for name in names}
    check_outputs(seed_outputs(out), [])
    for name in names:
        DATA[name].check(settings[name])
    remove_leftovers(out)
    first = next(iter(settings.values())).seed
    study = SeedStudy(list(range(first, first + count)))
    with Records(out / "trainings.jsonl", "defend") as records:
        for name in names:
            study.tasks[name] = _task(name, settings[name], study, records, on_trained)
    _write(study, out)
    return study


def _task(
    name: str, settings: DefenceSettings, study: SeedStudy, records: Records, on_trained: Callable[[int], None]
) -> TaskResult:
    data = DATA[name]
    context = records.context({"data": name, "settings": {k: v for k, v in asdict(settings).items() if k != "seed"}})
    found: dict[str, list[dict[str, Any]]] = {training: [] for training in TRAININGS}
    for seed in study.seeds:
        own = replace(settings, seed=stream_of(seed))
        split = data.split(own)
        item = Item(Path(name), seed - study.seeds[0], seed, split.digest(), None)
        for training, results in found.items():
            result = records.get(context, item, training)
            study.earlier += result is not None
            if result is None:
                records.add(context, [item], [_trial(training, data, split, own)], training)
                result = records.get(context, item, training)
            assert result is not None
            results.append(result)
            on_trained(1)
    height, width = split.images.shape[-2:]
    return TaskResult(
        settings,
        equal_width_bands(height, width, data.rings).edges[0],
        {training: [result["accuracy"] for result in results] for training, results in found.items()},
        {
            training: torch.tensor([result["drops"] for result in results], dtype=torch.float64)
            for training, results in found.items()
        },
    )


def stream_of(seed: int) -> int:
    """Mix a seed's bits, so that neighbouring seeds share no images, weights or draws; in [0, 2^31)."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0] >> 1)


def _trial(training: str, data: DataSet, split: Split, settings: DefenceSettings) -> dict[str, Any]:
    """Train one classifier and measure it on the test images."""
    model = trained(training, data, split, settings)
    images, truth = split.test_images, split.test_labels
    right = answers_of(model, images, truth, BATCH).right
    accuracy = {"clean": float(right.double().mean())}
    for band in ATTACKS:
        attack = band_attack(model, band, settings)
        _, after = attack_and_ask(attack, {training: model}, images, truth, BATCH)
        # Misclassified images stay wrong here, so that an attack cannot improve the accuracy.
        accuracy[band] = float((right & after[training].right).double().mean())
    occluded = OccludedFrequency(model, data.rings)(images, truth, internal_batch_size=BATCH)
    return {"accuracy": accuracy, "drops": occluded.drops.double().mean(0).tolist()}


def _write(study: SeedStudy, out: Path) -> None:
    tasks = {name: task.as_json() for name, task in study.tasks.items()}
    content = {"seeds": study.seeds, "confidence": CONFIDENCE, "data": tasks}
    write_atomically(out / "trainings.json", json_content(STUDY, content).encode())
    parts = []
    for name, task in study.tasks.items():
        rows = [HEAD, ["---"] * len(HEAD), *task.rows()]
        parts.append("\n".join([study.title(name), "", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n")
    write_atomically(out / "trainings.md", markdown_content(TABLE, "\n".join(parts)).encode())
    save_figure(_figure(study), out / "trainings.png")


def _figure(study: SeedStudy) -> Figure:
    return band_panels_figure(
        {name: task.curves() for name, task in study.tasks.items()},
        title="bands that the classifiers rely on",
        over=f"{len(study.seeds)} seeds",
        ylabel="drop in probability without the band",
        cutoffs={name: task.settings.cutoff for name, task in study.tasks.items()},
        confidence=CONFIDENCE,
    )
