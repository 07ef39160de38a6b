"""Attribute predictions for image files to frequencies: evidence of each, places of each band, the images' energy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import check_count, check_seed
from ..files import FIGURE, FOLDER, Output, check_outputs, remove_leftovers, write_atomically
from ..frequency import (
    OrientationSectors,
    RadialBands,
    equal_width_bands,
    octave_bands,
    orientation_sectors,
    product_per_frequency,
    three_bands,
)
from ..images import load_images
from ..methods.settings import never_twice
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..robustness.frequency_attribution import FrequencyAttribution, FrequencyEvidence
from .batches import Batch, Failure, Group, check_run_ids, groups_of, settle_all
from .frequency_figures import draw_places, draw_plane, draw_reliance
from .frequency_results import FREQUENCY, FrequencyStudy, ImageEvidence
from .map_store import MapStore
from .records import RECORDS, Item, Records

MAPS_FOLDER = "maps"


def frequency_outputs(out: Path) -> list[Output]:
    """List the files that ``frequency_files`` writes."""
    return [
        Output(out, FOLDER),
        Output(out / "frequency.json", FREQUENCY),
        Output(out / "frequency.jsonl", RECORDS),
        Output(out / "frequency.png", FIGURE),
        Output(out / "reliance.png", FIGURE),
        Output(out / "places.png", FIGURE),
        Output(out / MAPS_FOLDER, FOLDER),
    ]


def frequency_files(
    classifier: Classifier,
    method: FrequencyAttribution,
    paths: Sequence[Path],
    out: Path,
    *,
    targets: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    beside: Sequence[FrequencyStudy] = (),
    rings: int = 16,
    sectors: int = 12,
    edges: tuple[float, float] | None = None,
    pictures: int = 8,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    on_images: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> FrequencyStudy:
    """Attribute every file's prediction to frequencies, and write results per image, per class and over all.

    ``frequency.json`` has the numbers, ``frequency.png`` the mean over the plane, rings and sectors, ``places.png`` the
    first images with the evidence of each band, and ``reliance.png`` the images' spectrum beside the reliance on it.
    Every image's values are kept under ``maps``. Results are stored at once and not computed again for the same image,
    id, target, model and settings; after an interrupt, the results so far are summarised and the interrupt is raised
    again.

    Args:
        classifier: the model.
        method: the method, made for this classifier.
        paths: image files.
        out: folder, made if missing.
        targets: class of each file; None uses the model's prediction.
        image_ids: unique id of each file in the records, 0 to 2^32 - 2; default: its position in ``paths``.
        beside: runs of other models on the same files, to draw in the same figure.
        rings: number of rings of equal width.
        sectors: number of sectors of orientation.
        edges: radii between the low, the middle and the high band, in cycles over the shorter side; None is 1/16 and
            1/6 of its pixels.
        pictures: number of images whose bands are drawn.
        confidence: coverage of the bootstrap intervals, in (0, 1).
        seed: seed of the bootstrap, any 64-bit integer.
        batch_size: images read together.
        internal_batch_size: images per model pass.
        on_images: called with the number of newly finished images.
        on_failure: called for each image that is left out.

    Raises:
        TypeError: a number that is not whole.
        ValueError: a confidence outside (0, 1), more rings, sectors or bands than the images have frequencies for,
            image ids that are not unique or out of range, a run beside this one of the same name or with other files
            or octaves, or an output would replace an image or a foreign file.
        OSError: the results cannot be written.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    bands = three_bands(*classifier.input_size, edges)
    parts: dict[str, RadialBands | OrientationSectors] = {
        "rings": equal_width_bands(*classifier.input_size, check_count("rings", rings), include_dc=True),
        "octaves": octave_bands(*classifier.input_size, include_dc=True),
        "sectors": orientation_sectors(*classifier.input_size, sectors),
        "bands": bands,
    }
    check_count("pictures", pictures, at_least=0)
    limits = {
        name: (part.edges() if isinstance(part, OrientationSectors) else part.edges[0]).tolist()
        for name, part in parts.items()
    }
    image_ids = check_run_ids(paths, image_ids)
    settings: dict[str, Any] = {
        **identity_of(classifier),
        "method": method.name,
        **{name: getattr(method, name) for name in ("kind", "passes", "score", "include_dc")},
    }
    study = FrequencyStudy(settings, limits, confidence, check_seed(seed))
    _check_beside(study, beside, paths)
    check_outputs(frequency_outputs(out), paths)
    for folder in (out, out / MAPS_FOLDER):
        remove_leftovers(folder)
    store = MapStore(out / MAPS_FOLDER)
    groups: list[Group] = []

    def failed(failure: Failure) -> None:
        study.failures.append(failure)
        on_failure(failure)

    with Records(out / "frequency.jsonl", "frequency") as records:
        own = type(method) is FrequencyAttribution and method.forward_func is classifier
        unknown = {} if own else {"unknown": never_twice()}
        context = records.context({**settings, "edges": limits, "bounds": method.bounds, **unknown})

        def complete(item: Item, drawn: bool = False) -> bool:
            kept = _stored(context)[: 1 + drawn]
            return records.get(context, item) is not None and all(store.holds(name, item) for name in kept)

        def settle(group: Group) -> None:
            # For every image of the groups in the picture: if one fails, another takes its place.
            drawn = sum(len(earlier.items) for earlier in groups) < pictures
            groups.append(group)

            def work(batch: Batch) -> tuple[list[dict[str, Any]], list[Tensor]]:
                chosen = None if targets is None else [targets[position] for position in batch.positions]
                found = method(batch.images, chosen, internal_batch_size=internal_batch_size)
                for target in found.target.tolist():
                    classifier.class_name(target)  # a class without a name fails this image, not the run
                values = found.coefficients()
                maps = [values.float()[:, None], *([found.places(bands).sum(2)] if drawn else [])]
                return _results(found, values, batch.images, parts), maps

            def keep(batch: Batch, items: list[Item], found: tuple[list[dict[str, Any]], list[Tensor]]) -> None:
                rows, maps = found
                for name, values in zip(_stored(context), maps, strict=False):
                    for item, value in zip(items, values, strict=True):
                        store.save(name, item, value)
                records.add(context, items, rows)

            group.settle(lambda item: complete(item, drawn), work, keep)
            on_images(len(group.items))

        def finish(items: list[Item], earlier: int) -> None:
            study.earlier = earlier
            if items:
                _fill(study, classifier, records, context, items)
                write_atomically(out / "frequency.json", study.as_json().encode())
                maps, width = (store.load(context, item) for item in items), classifier.input_size[1]
                draw_plane(study, maps, width, out / "frequency.png")
                draw_reliance([*beside, study], out / "reliance.png")
                shown = [k for k, item in enumerate(items) if complete(item, drawn=True)][:pictures]
                if shown:
                    places = [store.load(_stored(context)[1], items[k]) for k in shown]
                    read = load_images([items[k].path for k in shown], classifier.transform)
                    draw_places(study, shown, [image for _, image in read], places, out / "places.png")

        settle_all(groups_of(classifier, paths, targets, batch_size, failed, image_ids), complete, settle, finish)
    return study


def _stored(context: str) -> tuple[str, str]:
    """Return the names under which an image's values per frequency and its bands' places are stored."""
    return context, f"{context} places"


def _results(
    found: FrequencyEvidence, values: Tensor, images: Tensor, parts: Mapping[str, RadialBands | OrientationSectors]
) -> list[dict[str, Any]]:
    """Sum the values (B, H, W//2+1) and the images' energy in every band, for the records."""
    power = product_per_frequency(images, images)
    # Image by image, as the last bits of a sum depend on the batch.
    return [
        {
            "target": int(found.target[k]),
            "score": float(found.score[k]),
            "baseline_score": float(found.baseline_score[k]),
            "evidence": _by_part(parts, values[k : k + 1]),
            "energy": _by_part(parts, _shares(power[k : k + 1], images[k : k + 1])),
        }
        for k in range(len(values))
    ]


def _by_part(parts: Mapping[str, RadialBands | OrientationSectors], values: Tensor) -> dict[str, list[float]]:
    """Sum one image's values, (1, H, W//2+1), in every band of every partition."""
    return {name: part.sums(values)[0].tolist() for name, part in parts.items()}


def _shares(power: Tensor, image: Tensor) -> Tensor:
    """Divide an image's power per frequency by its sum without DC, and set DC to 0; zeros for a constant image."""
    shares = power.clone()
    shares[:, 0, 0] = 0
    if bool((image.amax((-2, -1)) == image.amin((-2, -1))).all()):  # all other power is rounding
        return torch.zeros_like(shares)
    return shares / shares.sum()


def _check_beside(study: FrequencyStudy, beside: Sequence[FrequencyStudy], paths: Sequence[Path]) -> None:
    """Refuse runs that cannot be drawn in one figure.

    Raises:
        ValueError: a model's name occurs twice, or a run has other files, octaves or another score.
    """
    names, files = [study.settings["model"]], sorted(path.name for path in paths)
    for other in beside:
        name = other.settings["model"]
        if name in names:
            raise ValueError(f"{name} would be in the figure twice: give runs of other models")
        names.append(name)
        theirs = [*(image.file for image in other.images), *(failure.path.name for failure in other.failures)]
        for what, mine, its in (
            ("other files", files, sorted(theirs)),
            ("other octaves", study.edges["octaves"], other.edges["octaves"]),
            ("another score", study.settings["score"], other.settings["score"]),
        ):
            if mine != its:
                raise ValueError(f"the run of {name} has {what} than this one: expected the same in one figure")


def _fill(study: FrequencyStudy, classifier: Classifier, records: Records, context: str, items: Sequence[Item]) -> None:
    """Fill in the images from the records."""
    for item in items:
        result = records.get(context, item)
        assert result is not None
        study.images.append(ImageEvidence(item.path.name, item.image_id, **result))
        study.class_names[study.images[-1].target] = classifier.class_name(study.images[-1].target)
