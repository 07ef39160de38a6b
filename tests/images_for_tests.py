"""Image files that tests share."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from fampe_fast.images.generated import generate


def draw(folder: Path, count: int, seed: int = 5, name: str = "object_{}.png") -> Path:
    """Make a folder and save generated images there, as 8-bit files numbered from 0."""
    folder.mkdir()
    for k, image in enumerate(generate(count, seed=seed).images):
        Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(folder / name.format(k))
    return folder
