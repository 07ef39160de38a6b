"""Attribute image files to their frequencies: how much each contributes, where a band acts, what the images hold."""

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
    centred,
    equal_width_bands,
    octave_bands,
    orientation_sectors,
    product_per_frequency,
    three_bands,
)
from ..frequency.bands import NAMES_OF_THREE
from ..images import load_images
from ..methods.settings import never_twice
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..plots import contact_sheet, save_figure
from ..plots.bands import BandCurve
from ..plots.frequency_plane import frequency_plane_figure
from ..plots.reliance import ClassPoint, ModelReliance, reliance_figure
from ..robustness.frequency_attribution import FrequencyAttribution
from .batches import Batch, Failure, Group, check_run_ids, groups_of
from .frequency_results import FREQUENCY, FrequencyStudy, ImageEvidence, Spread
from .map_store import MapStore
from .records import RECORDS, Item, Records

MAPS_FOLDER = "maps"
_DETAIL = "high"  # of the three bands, the one whose classes are drawn


def frequency_outputs(out: Path) -> list[Output]:
    """List what ``frequency_files`` writes."""
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
    """Attribute every file to its frequencies, and write what follows for each, for the classes and over all.

    ``frequency.json`` has the numbers, ``frequency.png`` the mean over the plane, rings and sectors, ``places.png`` the
    first images with the evidence of each band, and ``reliance.png`` the images' spectrum beside the reliance on it.
    Every image's values are kept under ``maps``. What is done is on disk at once and is not done again for the same
    image, id, target, model and settings; interrupted, the run sums up what there is and lets the interrupt through.

    Args:
        classifier: the model.
        method: made for this classifier.
        paths: image files.
        out: folder, made if missing.
        targets: the class of each file; None takes the model's own choice.
        image_ids: what names each file in the records, unique, 0 to 2^32 - 2; default: its place in ``paths``.
        beside: runs of other models on the same files, drawn in the same figure.
        rings: number of rings of equal width.
        sectors: number of sectors of orientation.
        edges: radii between the low, the middle and the high band, in cycles over the shorter side; None is a sixteenth
            and a sixth of its pixels.
        pictures: number of images whose bands are drawn.
        confidence: coverage of the bootstrap intervals, in (0, 1).
        seed: number that the bootstrap's random numbers follow from, any 64-bit integer.
        batch_size: images read together.
        internal_batch_size: images per model pass.
        on_images: called with the number of images just done.
        on_failure: called for an image left out.

    Raises:
        TypeError: a number that is not whole.
        ValueError: a confidence outside (0, 1), more rings, sectors or bands than the images have frequencies for,
            image ids that are not unique or out of range, a run beside this one of the same name or with other files
            or octaves, or an output would replace an image or a file of another's.
        OSError: the results cannot be written.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
    parts: dict[str, RadialBands | OrientationSectors] = {
        "rings": equal_width_bands(*classifier.input_size, check_count("rings", rings), include_dc=True),
        "octaves": octave_bands(*classifier.input_size, include_dc=True),
        "sectors": orientation_sectors(*classifier.input_size, sectors),
        "bands": three_bands(*classifier.input_size, edges),
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

        def settle(group: Group, drawn: bool) -> None:

            def work(batch: Batch) -> tuple[list[dict[str, Any]], list[Tensor]]:
                chosen = None if targets is None else [targets[position] for position in batch.positions]
                found = method(batch.images, chosen, internal_batch_size=internal_batch_size)
                values, power = found.coefficients(), product_per_frequency(batch.images, batch.images)
                columns = {
                    "target": found.target.tolist(),
                    "score": found.score.tolist(),
                    "baseline_score": found.baseline_score.tolist(),
                    "evidence": _by_part(parts, values),
                    "energy": _by_part(parts, _shares(power, batch.images)),
                }
                for target in columns["target"]:
                    classifier.class_name(target)  # one without a name costs the image here, and not the run at its end
                rows = [{name: column[k] for name, column in columns.items()} for k in range(len(values))]
                maps = [values.float()[:, None]]
                if drawn:
                    maps.append(found.places(three_bands(*classifier.input_size, edges)).sum(2))
                return rows, maps

            def keep(batch: Batch, items: list[Item], found: tuple[list[dict[str, Any]], list[Tensor]]) -> None:
                rows, maps = found
                for name, values in zip(_stored(context), maps, strict=False):
                    for item, value in zip(items, values, strict=True):
                        store.save(name, item, value)
                records.add(context, items, rows)

            group.settle(lambda item: complete(item, drawn), work, keep)

        try:
            for group in groups_of(classifier, paths, targets, batch_size, failed, image_ids):
                study.earlier += sum(complete(item) for item in group.items)
                # Of every image of a group that reaches into the picture: one that fails makes room for another.
                drawn = sum(len(earlier.items) for earlier in groups) < pictures
                groups.append(group)
                settle(group, drawn)
                on_images(len(group.items))
        finally:
            # Of the group at work too, where the interrupt came between its results and the next line.
            items = [item for group in groups for item in group.items if complete(item)]
            if items:
                _fill(study, classifier, records, context, items)
                write_atomically(out / "frequency.json", study.as_json().encode())
                _draw_plane(study, [store.load(context, item) for item in items], classifier, out / "frequency.png")
                _draw_reliance([*beside, study], out / "reliance.png")
                shown = [k for k, item in enumerate(items) if store.holds(_stored(context)[1], item)][:pictures]
                if shown:
                    places = [store.load(_stored(context)[1], items[k]) for k in shown]
                    read = load_images([items[k].path for k in shown], classifier.transform)
                    _draw_places(study, shown, [image for _, image in read], places, out / "places.png")
    return study


def _stored(context: str) -> tuple[str, str]:
    """Name the contexts in which an image's values per frequency and its bands' places are kept."""
    return context, f"{context} places"


def _by_part(parts: Mapping[str, RadialBands | OrientationSectors], values: Tensor) -> list[dict[str, list[float]]]:
    """Sum values (B, H, W//2+1) in every part of every partition; a dict per image."""
    sums = {name: part.sums(values).tolist() for name, part in parts.items()}
    return [{name: found[k] for name, found in sums.items()} for k in range(len(values))]


def _shares(power: Tensor, images: Tensor) -> Tensor:
    """Divide each image's power per frequency by its sum without DC's, which becomes 0; zeros for a flat image."""
    power = power.clone()
    power[:, 0, 0] = 0
    flat = (images.amax((-2, -1)) == images.amin((-2, -1))).all(1).cpu()  # whose other power is rounding's
    return power / torch.where(flat, torch.inf, power.sum((1, 2)))[:, None, None]


def _check_beside(study: FrequencyStudy, beside: Sequence[FrequencyStudy], paths: Sequence[Path]) -> None:
    """Refuse runs that cannot stand in one figure.

    Raises:
        ValueError: a model's name comes twice, or a run has other files, octaves or another score.
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


def _curve(study: FrequencyStudy, partition: str, spread: Spread) -> BandCurve:
    return BandCurve(torch.tensor(study.edges[partition], dtype=torch.float64), spread.mean, spread.interval)


def _fill(study: FrequencyStudy, classifier: Classifier, records: Records, context: str, items: Sequence[Item]) -> None:
    """Take the images from what is on record."""
    for item in items:
        result = records.get(context, item)
        assert result is not None
        study.images.append(ImageEvidence(item.path.name, item.image_id, **result))
        study.class_names[study.images[-1].target] = classifier.class_name(study.images[-1].target)


def _draw_plane(study: FrequencyStudy, maps: Sequence[Tensor], classifier: Classifier, path: Path) -> None:
    """Draw the mean over the images, whose values per frequency are (1, H, W//2+1) each."""
    mean = sum(values.double() for values in maps) / torch.tensor(len(maps))
    plane = centred(mean, classifier.input_size[1])[0]
    curves = {name: _curve(study, name, study.spread(study.evidence(name))) for name in ("rings", "sectors")}
    name, count = study.settings["model"], len(study.images)
    figure = frequency_plane_figure(
        plane, curves["rings"], curves["sectors"],
        title=f"{name}: evidence by frequency, {count} image{'s' if count > 1 else ''}",
        unit=str(study.settings["score"]),
        confidence=study.confidence if count > 1 else None,
    )  # fmt: skip
    save_figure(figure, path)


def _draw_reliance(studies: Sequence[FrequencyStudy], path: Path) -> None:
    """Draw the last study's spectrum, which is of the images as its model sees them, and the reliance of all."""
    last, place = studies[-1], NAMES_OF_THREE.index(_DETAIL)
    models = {}
    for study in studies:
        energy, reliance = study.energy("bands")[:, place], study.reliance("bands")[:, place]
        points = []
        for rows in study.rows_of_classes().values():
            spread = study.spread(reliance[rows, None])
            interval = None if spread.interval is None else (float(spread.interval[0]), float(spread.interval[1]))
            points.append(ClassPoint(float(energy[rows].mean()), float(spread.mean), interval))
        octaves = _curve(study, "octaves", study.spread(study.reliance("octaves")))
        models[str(study.settings["model"])] = ModelReliance(octaves, tuple(points), str(study.connection(_DETAIL)))
    low, high = last.edges["bands"][place : place + 2]
    figure = reliance_figure(
        _curve(last, "octaves", last.spread(last.energy("octaves"))), models,
        title=f"Energy and evidence by frequency, {len(last.images)} images",
        band=f"radii from {low:.3g} to {high:.3g}",
        confidence=last.confidence,
    )  # fmt: skip
    save_figure(figure, path)


def _draw_places(
    study: FrequencyStudy, rows: Sequence[int], read: Sequence[object], places: Sequence[Tensor], path: Path
) -> None:
    """Draw the bands' places, (3, H, W) each, of some of the study's images, beside what was read of their files."""
    edges, shown = study.edges["bands"], [study.images[k] for k in rows]
    maps = {"all bands": [bands.sum(0) for bands in places]}
    sums = {"all bands": [sum(image.evidence["bands"]) for image in shown]}
    for k, name in enumerate(NAMES_OF_THREE):
        label = f"{name}, {edges[k]:.3g} to {edges[k + 1]:.3g}"
        maps[label] = [bands[k] for bands in places]
        sums[label] = [image.evidence["bands"][k] for image in shown]
    figure = contact_sheet(
        # A black one where a file has gone since.
        [image if isinstance(image, Tensor) else torch.zeros(3, *places[0].shape[-2:]) for image in read],
        maps,
        [study.class_names[image.target] for image in shown],
        scores=sums,
        score_name=f"the band's evidence, in units of the {study.settings['score']}",
    )
    save_figure(figure, path)
