"""Measure the energy cut-offs of photographs, of textures with known cut-offs, and of medical-like images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..checks import check_count, check_number
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
from ..images import FoundImages, load_images
from ..images.generated import FloatArray
from ..images.medical import chest_radiograph, head_slice
from ..images.textures import textures
from ..models.transforms import PixelTransform, ResizeAndCrop
from ..ops import primitives as ops
from ..plots import save_figure
from ..plots.energy_cutoffs import KindRow, energy_cutoffs_figure
from .batches import Failure

SPECTRA, TABLE = "spectra", "spectra table"
"""The kinds of ``spectra.json`` and of ``spectra.md``."""
TAUS = (0.5, 0.7, 0.9, 0.95, 0.99)
COUNTS = {"without DC": False, "with DC": True}
"""Names of the two counts: whether the image's mean counts as energy."""


@dataclass
class Kind:
    """The cut-offs of one kind of image.

    Attributes:
        name: name of the kind; for photographs, their folder.
        files: files of the images; empty for generated ones.
        cutoffs: by the names of ``COUNTS``, a list per image with an entry for each share, in cycles per side.
        expected: by the same names, the cut-offs of the kind's expected spectrum; empty if unknown.
        example: (3 or 1, S, S), one of the images.
    """

    name: str
    files: list[str] = field(default_factory=list)
    cutoffs: dict[str, list[list[float]]] = field(default_factory=lambda: {name: [] for name in COUNTS})
    expected: dict[str, list[float]] = field(default_factory=dict)
    example: Tensor | None = None

    def add(self, image: Tensor, taus: Sequence[float]) -> None:
        """Measure an image (C, S, S)."""
        self.example = image if self.example is None else self.example
        for name, found in energy_cutoffs(torch.fft.rfft2(image.double()), taus).items():
            self.cutoffs[name].append(found)

    def spread(self, name: str) -> list[tuple[float, float, float]]:
        """Compute the median, the smallest and the largest cut-off over the images, for each share."""
        found = torch.tensor(self.cutoffs[name], dtype=torch.float64)
        middle, low, high = found.quantile(0.5, 0).tolist(), found.amin(0).tolist(), found.amax(0).tolist()
        return list(zip(middle, low, high, strict=True))


@dataclass
class Spectra:
    """The result of a survey.

    Attributes:
        size: side of all images in pixels.
        taus: the shares of the energy.
        seed: seed of the generated images.
        kinds: the kinds with at least one image.
        failures: image files that were left out.
    """

    size: int
    taus: tuple[float, ...]
    seed: int
    kinds: list[Kind] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


def energy_cutoffs(spectrum: Tensor, taus: Sequence[float]) -> dict[str, list[float]]:
    """Find the cut-offs of an image, with DC and without.

    Args:
        spectrum: (C, S, S//2+1) complex, ``rfft2`` of the image, S even.
        taus: shares of the energy, in (0, 1].
    """
    side = spectrum.shape[-2]
    return {
        name: [float(ops.energy_cutoff(spectrum[None].to(torch.complex64), side, tau, dc)) for tau in taus]
        for name, dc in COUNTS.items()
    }


def spectra_outputs(out: Path) -> list[Output]:
    """List the files that ``survey_spectra`` writes."""
    return [
        Output(out, FOLDER),
        Output(out / "spectra.json", SPECTRA),
        Output(out / "spectra.md", TABLE),
        Output(out / "spectra.png", FIGURE),
    ]


def survey_spectra(
    folders: Sequence[FoundImages],
    out: Path,
    *,
    size: int = 224,
    count: int = 32,
    seed: int = 0,
    taus: Sequence[float] = TAUS,
    on_images: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Spectra:
    """Measure every kind's images, and write ``spectra.json``, ``spectra.md`` and ``spectra.png`` into a folder.

    Args:
        folders: folders of photographs, one kind each, which are resized and cropped as for ImageNet models: the centre
            of ``size`` pixels out of 8/7 of that.
        out: folder, made if missing.
        size: side of all images in pixels, a multiple of 32, at least 64.
        count: number of generated images of each kind, at least 1.
        seed: seed of the generated images, 0 or more.
        taus: shares of the energy, in (0, 1].
        on_images: called with the number of newly measured images.
        on_failure: called for each file that is left out.

    Raises:
        ValueError: a number out of range, two folders of one name, or an output would replace an image or a
            file of another's.
        OSError: the results cannot be written.
    """
    shares = tuple(check_number("taus", tau, 0, 1, open_low=True) for tau in taus)
    if not shares:
        raise ValueError("taus must be at least one share of the energy, got none")
    names = [found.paths[0].parent.name for found in folders]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"folders must have different names, which tables show; got {twice[0]!r} more than once")
    count, seed = check_count("count", count), check_count("seed", seed, at_least=0)
    known = textures(check_count("size", size))
    check_outputs(spectra_outputs(out), [path for found in folders for path in found.paths])
    remove_leftovers(out)
    result = Spectra(size, shares, seed)
    transform = PixelTransform(ResizeAndCrop((size, size)))
    for name, found in zip(names, folders, strict=True):
        kind = Kind(name)
        for path, image in load_images(found.paths, transform):
            if isinstance(image, Tensor):
                kind.add(image, shares)
                kind.files.append(path.name)
                on_images(1)
            else:
                result.failures.append(Failure(path, image.reason))
                on_failure(result.failures[-1])
        if kind.files:
            result.kinds.append(kind)
    for texture in known:
        kind = _generated(texture.name, texture.draw, count, seed, shares)
        kind.expected = energy_cutoffs(torch.from_numpy(texture.power).sqrt()[None].to(torch.complex128), shares)
        result.kinds.append(kind)
        on_images(count)
    for name, draw in (("head phantom with grain", head_slice), ("chest radiograph, low contrast", chest_radiograph)):
        result.kinds.append(_generated(name, partial(draw, size=size), count, seed, shares))
        on_images(count)
    _write(result, out)
    return result


def _generated(
    name: str, draw: Callable[[np.random.Generator], FloatArray], count: int, seed: int, taus: Sequence[float]
) -> Kind:
    kind = Kind(name)
    for index in range(count):
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(index,))))
        kind.add(torch.from_numpy(draw(rng))[None], taus)
    return kind


def as_json(result: Spectra) -> str:
    """Return everything as values for JSON, including the cut-offs of every image."""
    return json_content(
        SPECTRA,
        {
            "size": result.size,
            "taus": result.taus,
            "seed": result.seed,
            "kinds": [
                {
                    "kind": kind.name,
                    "images": len(kind.cutoffs["with DC"]),
                    **{
                        name: {
                            **dict(
                                zip(
                                    ("median", "smallest", "largest"), zip(*kind.spread(name), strict=True), strict=True
                                )
                            ),
                            **({"expected": kind.expected[name]} if kind.expected else {}),
                            "cutoffs": kind.cutoffs[name],
                        }
                        for name in COUNTS
                    },
                    **({"files": kind.files} if kind.files else {}),
                }
                for kind in result.kinds
            ],
            "failures": [{"file": failure.path.name, "reason": failure.reason} for failure in result.failures],
        },
    )


def table_rows(result: Spectra, name: str) -> list[list[str]]:
    """List the rows of a table, header first: median, range and, if known, the expected cut-off.

    Args:
        result: result of the survey.
        name: one of ``COUNTS``.
    """
    rows = [["kind", "images", *(f"tau = {tau:g}" for tau in result.taus)]]
    for kind in result.kinds:
        cells = [f"{middle:g} ({low:g} to {high:g})" for middle, low, high in kind.spread(name)]
        if kind.expected:
            cells = [f"{cell}; {value:g}" for cell, value in zip(cells, kind.expected[name], strict=True)]
        rows.append([kind.name, str(len(kind.cutoffs[name])), *cells])
    return rows


def as_table(result: Spectra) -> str:
    """Write two Markdown tables: without DC and with it."""
    lines = [
        f"Energy cut-offs in cycles per side of {result.size} pixels: the smallest radius that holds the share tau of "
        "the energy. Median (smallest to largest) over the images; after the semicolon that of the kind's expected "
        "spectrum."
    ]
    for name in COUNTS:
        head, *others = (f"| {' | '.join(row)} |" for row in table_rows(result, name))
        rule = "|---|--:" + "|---" * len(result.taus) + "|"
        lines += ["", name[0].upper() + name[1:] + ":", "", head, rule, *others]
    return "\n".join(lines) + "\n"


def _write(result: Spectra, out: Path) -> None:
    write_atomically(out / "spectra.json", as_json(result).encode())
    write_atomically(out / "spectra.md", markdown_content(TABLE, as_table(result)).encode())
    rows = {
        kind.name: KindRow(kind.example, {name: kind.spread(name) for name in COUNTS}, kind.expected)
        for kind in result.kinds
        if kind.example is not None
    }
    title = f"Energy cut-offs of images of {result.size} pixels a side"
    save_figure(energy_cutoffs_figure(rows, result.taus, title=title, highest=result.size / 2), out / "spectra.png")
