"""What the examples of the documentation find around them, small enough for a test: models by name, and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fampe_fast.images.generated import generate
from fampe_fast.models import zoo

SIDE = 64
"""Pixels a side of the small models' images."""

NAMES = ("cat", "dog", "fox", "owl")


def small_models(patch: pytest.MonkeyPatch, downloads: Path) -> None:
    """Make timm's names build small architectures and their downloads hold random weights.

    All that the package does with a name, its configuration, its weights and its transform is done as ever.

    Args:
        patch: undoes it.
        downloads: a folder for the weights.
    """
    create = timm.create_model

    def create_small(name: str, **options: Any) -> nn.Module:
        small = "test_vit" if "vit" in name else "test_resnet"
        overlay = {**options.pop("pretrained_cfg_overlay", {}), "input_size": (3, SIDE, SIDE)}
        if small == "test_vit":
            options["img_size"] = SIDE
        return create(small, pretrained_cfg_overlay=overlay, **options)

    def downloaded(repository: str, candidates: object, *, what: str) -> Path:
        file = downloads / f"{repository.replace('/', '_')}.safetensors"
        if not file.exists():
            with torch.random.fork_rng():
                torch.manual_seed(len(repository))
                save_file(create_small(repository).state_dict(), file)
        return file

    patch.setattr(timm, "create_model", create_small)
    patch.setattr(zoo, "hub_file", downloaded)


def write_files(folder: Path) -> None:
    """Write the files that the pages name: single photographs, folders of them, and their labels."""
    pictures = [
        Image.fromarray((image.permute(1, 2, 0) * 255).byte().numpy()) for image in generate(len(NAMES), seed=7).images
    ]
    for place in ("photos", "PHOTOS", "A", "B"):
        (folder / place).mkdir()
        for name, picture in zip(NAMES, pictures, strict=True):
            picture.save(folder / place / f"{name}.jpg")
    for name in ("cat", "photo"):
        pictures[0].save(folder / f"{name}.jpg")
    (folder / "labels.json").write_text(json.dumps({f"{name}.jpg": k for k, name in enumerate(NAMES)}))
