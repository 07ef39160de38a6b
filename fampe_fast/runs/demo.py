"""Explain generated images with known objects, using the classifier included in the package."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..files import FIGURE, FOLDER, Output, check_outputs, png_content, write_atomically
from ..images.generated import generate
from ..methods.fampe import FAMPE
from ..metrics import insertion_deletion, relevance_mass
from ..models.embedded import load_embedded_classifier
from ..plots import explanation_figure
from ..plots.saving import png_bytes
from ..runtime.model_probe import probabilities_of


@dataclass(frozen=True)
class DemoRow:
    """The result of the demo for one image.

    Attributes:
        true_class: the class of the generated image.
        class_name: the predicted class, which is explained.
        probability: the model's probability of this class.
        cutoff: energy cut-off in cycles over the shorter side.
        insertion: area, RISE's protocol.
        deletion: area, RISE's protocol.
        mass_inside: share of the map's mass inside the object.
        object_share: share of the image that the object covers, which is the score of a random map.
    """

    true_class: str
    class_name: str
    probability: float
    cutoff: float
    insertion: float
    deletion: float
    mass_inside: float
    object_share: float


def run_demo(out: Path, *, images: int = 4, seed: int = 2024, passes: int = 1) -> tuple[list[DemoRow], Path]:
    """Explain generated images with FAMPE and write one picture, ``out/demo.png``.

    Args:
        out: folder, made if missing.
        images: number of images, at least 1.
        seed: seed of the images.
        passes: forward and backward passes per image.

    Returns:
        A row per image, and the picture's path.

    Raises:
        ValueError: an existing ``demo.png`` was not written by this package.
        OSError: the picture cannot be written.
    """
    path = out / "demo.png"
    check_outputs([Output(out, FOLDER), Output(path, FIGURE)], [])
    classifier = load_embedded_classifier()
    drawn = generate(images, seed=seed)
    probabilities = probabilities_of(classifier, drawn.images)
    chosen = probabilities.argmax(1)
    maps, details = FAMPE(classifier, passes=passes).attribute(
        drawn.images, chosen, internal_batch_size=32, return_details=True
    )
    areas = insertion_deletion(classifier, drawn.images, maps, chosen, protocol="rise", internal_batch_size=32)
    mass = relevance_mass(maps, drawn.masks)
    assert details.cutoff is not None
    rows, pictures = [], []
    for k in range(images):
        row = DemoRow(
            classifier.class_name(int(drawn.labels[k])),
            classifier.class_name(int(chosen[k])),
            float(probabilities[k, chosen[k]]),
            float(details.cutoff[k]),
            float(areas.insertion[k]),
            float(areas.deletion[k]),
            float(mass[k]),
            float(drawn.masks[k].float().mean()),
        )
        rows.append(row)
        figure = explanation_figure(
            drawn.images[k],
            maps[k],
            class_name=row.class_name,
            probability=row.probability,
            note=(
                f"insertion {row.insertion:.2f}   deletion {row.deletion:.2f}   "
                f"{row.mass_inside:.0%} of the map inside the object, which covers {row.object_share:.0%}"
            ),
            cutoff=row.cutoff,
            mask=drawn.masks[k],
            dpi=100,
        )
        pictures.append(Image.open(io.BytesIO(png_bytes(figure))))
    write_atomically(path, _stacked(pictures))
    return rows, path


def _stacked(pictures: Sequence[Image.Image]) -> bytes:
    page = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height
    return png_content(page, FIGURE)
