"""Draw the results of a ``frequency`` run: the frequency plane, the places of the bands, energy beside evidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from ..frequency import centred
from ..frequency.bands import NAMES_OF_THREE
from ..plots import contact_sheet, save_figure
from ..plots.bands import BandCurve
from ..plots.frequency_plane import frequency_plane_figure
from ..plots.reliance import ClassPoint, ModelReliance, reliance_figure
from .frequency_results import FrequencyStudy, Spread

_DETAIL = "high"
"""The band whose classes are drawn."""


def draw_plane(study: FrequencyStudy, maps: Iterable[Tensor], width: int, path: Path) -> None:
    """Draw the mean of the images' values per frequency, (1, H, W//2+1) each, for images W pixels wide."""
    total = reduce(torch.add, (values.double() for values in maps))  # one by one, as a data set may not fit into memory
    plane = centred(total / len(study.images), width)[0]
    curves = {name: _curve(study, name, study.spread(study.evidence(name))) for name in ("rings", "sectors")}
    name, count = study.settings["model"], len(study.images)
    figure = frequency_plane_figure(
        plane, curves["rings"], curves["sectors"],
        title=f"{name}: evidence by frequency, {count} image{'s' if count > 1 else ''}",
        unit=str(study.settings["score"]),
        confidence=study.confidence if count > 1 else None,
    )  # fmt: skip
    save_figure(figure, path)


def draw_reliance(studies: Sequence[FrequencyStudy], path: Path) -> None:
    """Draw the spectrum of the last study's images, as its model sees them, and the reliance of all studies."""
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


def draw_places(
    study: FrequencyStudy, rows: Sequence[int], read: Sequence[object], places: Sequence[Tensor], path: Path
) -> None:
    """Draw the bands' places, (3, H, W) each, of some of the study's images, beside the images."""
    edges, shown = study.edges["bands"], [study.images[k] for k in rows]
    maps = {"all bands": [bands.sum(0) for bands in places]}
    sums = {"all bands": [sum(image.evidence["bands"]) for image in shown]}
    for k, name in enumerate(NAMES_OF_THREE):
        label = f"{name}, {edges[k]:.3g} to {edges[k + 1]:.3g}"
        maps[label] = [bands[k] for bands in places]
        sums[label] = [image.evidence["bands"][k] for image in shown]
    figure = contact_sheet(
        # A black image if a file no longer exists.
        [image if isinstance(image, Tensor) else torch.zeros(3, *places[0].shape[-2:]) for image in read],
        maps,
        [study.class_names[image.target] for image in shown],
        scores=sums,
        score_name=f"the band's evidence, in units of the {study.settings['score']}",
    )
    save_figure(figure, path)


def _curve(study: FrequencyStudy, partition: str, spread: Spread) -> BandCurve:
    return BandCurve(torch.tensor(study.edges[partition], dtype=torch.float64), spread.mean, spread.interval)
