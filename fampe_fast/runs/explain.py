"""Explain image files, and write a picture and an archive for each."""

from __future__ import annotations

import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .._version import __version__
from ..files import (
    FIGURE,
    FOLDER,
    Output,
    check_outputs,
    json_text,
    mark_of,
    npz_content,
    remove_leftovers,
    write_atomically,
)
from ..methods.base import AttributionMethod, describe
from ..methods.explained import Explained, explain_batch
from ..methods.settings import everything_of
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..plots import explanation_figure, save_figure
from .batches import Batch, Failure, check_run_ids, groups_of
from .records import Item, digest_of_settings
from .settings import unique_names

MAP = "map"
"""The kind of the archives."""


@dataclass(frozen=True)
class Explanation:
    """The result for an explained file.

    Attributes:
        path: the file.
        target: the explained class.
        class_name: name of the class.
        probability: the model's probability of that class.
        predicted: the model's predicted class.
        cutoff: cut-off in cycles over the shorter side; None for methods without one.
        seconds: duration of the batch, divided by its number of images.
        picture: path of the PNG.
        archive: path of the ``.npz``: map, image, image_id, target, predicted, probability, cutoff, seconds, settings
            (JSON).
        earlier: whether an earlier run had finished it.
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
    earlier: bool = False


def explanation_outputs(paths: Sequence[Path], out: Path) -> list[Output]:
    """List the files that ``explain_files`` writes."""
    return [
        Output(out, FOLDER),
        *(
            output
            for name in unique_names(paths)
            for output in (Output(out / f"{name}.png", FIGURE), Output(out / f"{name}.npz", MAP))
        ),
    ]


def explain_files(
    classifier: Classifier,
    method: AttributionMethod,
    paths: Sequence[Path],
    out: Path,
    *,
    targets: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    on_result: Callable[[Explanation], None] = lambda result: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
    on_replaced: Callable[[Path], None] = lambda archive: None,
) -> list[Explanation]:
    """Explain files and write ``NAME.png`` and ``NAME.npz`` for each into ``out``, atomically.

    An existing archive of the same image, id, target, model and settings is reused.

    Args:
        classifier: the model.
        method: the method, made for this classifier.
        paths: image files.
        out: folder, made if missing.
        targets: class of each file; None uses the model's prediction.
        image_ids: unique id of each file in the random stream, 0 to 2^32 - 2; default: its position in ``paths``.
            A file with the same id has the same map in any other call, order or subset of the files.
        batch_size: number of images read and explained together.
        internal_batch_size: samples per model pass.
        on_result: called after a file's results are written.
        on_failure: called for a file that cannot be read or explained.
        on_replaced: called for an archive of another image or other settings that is about to be replaced.

    Returns:
        The explanations, in order.

    Raises:
        ValueError: image ids that are not unique or out of range, or an output would replace an image or a file that
            this package did not write.
        OSError: the results cannot be written.
    """
    image_ids = check_run_ids(paths, image_ids)
    check_outputs(explanation_outputs(paths, out), paths)
    remove_leftovers(out)
    names = unique_names(paths)
    model = identity_of(classifier)
    settings = {**model, **describe(method)}
    everything = {"command": "explain", "version": __version__, **model, "maps": everything_of(method, classifier)}
    done: dict[int, Explanation] = {}

    def key_of(item: Item) -> str:
        return digest_of_settings(everything | {"image": item.digest, "id": item.image_id, "target": item.target})

    def finished(item: Item, result: Explanation, image: Tensor, attribution: Tensor) -> None:
        # Only the picture has the name: the same map may be drawn with another one.
        key = digest_of_settings({"archive": key_of(item), "class_name": result.class_name})
        mark = mark_of(result.picture)
        if mark is None or mark.key != key:
            figure = explanation_figure(
                image, attribution, class_name=result.class_name, probability=result.probability, cutoff=result.cutoff
            )
            save_figure(figure, result.picture, key=key)
        done[item.position] = result
        on_result(result)

    def work(batch: Batch) -> tuple[Explained, list[str], float]:
        began = time.perf_counter()
        chosen = None if targets is None else [targets[position] for position in batch.positions]
        found = explain_batch(
            method, classifier, batch.images, chosen, image_ids=batch.ids, internal_batch_size=internal_batch_size
        )
        class_names = [classifier.class_name(target) for target in found.targets.tolist()]
        return found, class_names, (time.perf_counter() - began) / len(batch.paths)

    def keep(batch: Batch, items: list[Item], done_with: tuple[Explained, list[str], float]) -> None:
        (maps, probabilities, chosen, cutoffs), class_names, seconds = done_with
        results = []
        for k, item in enumerate(items):
            target = int(chosen[k])
            picture, archive = (out / f"{names[item.position]}.{ending}" for ending in ("png", "npz"))
            results.append(
                Explanation(
                    item.path,
                    target,
                    class_names[k],
                    float(probabilities[k, target]),
                    int(probabilities[k].argmax()),
                    None if cutoffs is None else float(cutoffs[k]),
                    seconds,
                    picture,
                    archive,
                )
            )
        # All archives first: a resumed run reuses them, and a picture takes longer than an archive.
        for k, (item, result) in enumerate(zip(items, results, strict=True)):
            mark = mark_of(result.archive)
            if mark is not None and mark.key != key_of(item):
                on_replaced(result.archive)
            _write(result, item, batch.images[k], maps[k], settings, key_of(item))
        for k, (item, result) in enumerate(zip(items, results, strict=True)):
            finished(item, result, batch.images[k], maps[k])

    for group in groups_of(classifier, paths, targets, batch_size, on_failure, image_ids):
        for item in group.items:
            earlier = _earlier(item, out / names[item.position], key_of(item), classifier)
            if earlier is not None:
                finished(item, *earlier)
        group.settle(lambda item: item.position in done, work, keep)
    return [done[position] for position in sorted(done)]


def _earlier(item: Item, stem: Path, key: str, classifier: Classifier) -> tuple[Explanation, Tensor, Tensor] | None:
    """Read an earlier run's result of an image, with the image and its map; None if there is none."""
    picture, archive = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.npz")
    mark = mark_of(archive)
    if item.digest is None or mark is None or mark.kind != MAP or mark.key != key:
        return None
    try:
        with np.load(archive) as found:
            chosen, cutoff = int(found["target"]), float(found["cutoff"])
            result = Explanation(
                item.path,
                chosen,
                classifier.class_name(chosen),
                float(found["probability"]),
                int(found["predicted"]),
                None if np.isnan(cutoff) else cutoff,
                float(found["seconds"]),
                picture,
                archive,
                earlier=True,
            )
            return result, torch.from_numpy(found["image"]), torch.from_numpy(found["map"])
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error):  # was damaged
        return None


def _write(
    result: Explanation, item: Item, image: Tensor, attribution: Tensor, settings: dict[str, object], key: str
) -> None:
    content = npz_content(
        MAP,
        key,
        map=attribution.cpu().numpy(),
        image=image.cpu().numpy(),
        image_id=item.image_id,
        target=result.target,
        predicted=result.predicted,
        probability=result.probability,
        cutoff=np.nan if result.cutoff is None else result.cutoff,
        seconds=result.seconds,
        settings=json_text(settings),
    )
    write_atomically(result.archive, content)
