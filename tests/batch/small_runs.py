"""Small batch runs that tests share: a model of a millisecond, images that cannot be read, and one that kills."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fampe_fast.batch.model_spec import ModelSpec
from fampe_fast.batch.plan import Plan, write_plan
from fampe_fast.batch.planning import make_plan
from fampe_fast.batch.sources import list_rows
from fampe_fast.batch.storage import Storage, open_storage
from fampe_fast.models.classifier import Classifier
from fampe_fast.models.transforms import PixelTransform, ResizeAndCrop

DEADLY = (13, 17)
"""The size of an image that kills whoever transforms it."""
WHITE = 0.99
"""The mean of an image that the model refuses."""

most_images = 10**9  # that the model takes in one pass, as a small memory would have it


class Fragile(nn.Module):
    """A small model that refuses white images, and more than ``most_images``."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh())
            self.head = nn.Linear(8, 5)
            nn.init.normal_(self.head.weight, std=3)

    def forward(self, pixels: Tensor) -> Tensor:
        if len(pixels) > most_images:
            raise torch.OutOfMemoryError(f"tried to allocate {len(pixels)} images")
        if len(pixels) and float(pixels.detach().mean((1, 2, 3)).max()) > WHITE:
            raise ValueError("the model refuses white images")
        logits: Tensor = self.head(self.features(pixels).mean((2, 3)))
        return logits


class Deadly(PixelTransform):
    def __call__(self, image: Image.Image) -> Tensor:
        if image.size == DEADLY:
            os.kill(os.getpid(), signal.SIGABRT)
        return super().__call__(image)


def a_classifier() -> Classifier:
    return Classifier(
        Fragile(), name="fragile", input_size=24, num_classes=5, transform=Deadly(ResizeAndCrop((24, 24)))
    ).eval()


def draw(folder: Path, count: int, size: tuple[int, int] = (30, 26)) -> Path:
    """Save images of smooth noise, numbered from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        coarse = np.random.default_rng(k).integers(0, 200, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize(size).save(folder / f"{k:03d}.png")
    return folder


def draw_with_errors(folder: Path, count: int) -> Path:
    """Save images of which number 2 is empty, 5 no image, 6 cut off and 9 refused by the model."""
    draw(folder, count)
    (folder / "002.png").write_bytes(b"")
    (folder / "005.png").write_bytes(b"hello")
    (folder / "006.png").write_bytes((folder / "006.png").read_bytes()[:-40])
    Image.new("RGB", (30, 26), "white").save(folder / "009.png")
    return folder


def planned(dest: Path | str, folder: Path, classifier: Classifier, **changes: Any) -> Storage:
    """Write a plan for the images in a folder."""
    options = changes.pop("options", {"steps": 2, "samples": 2, "views": 0})
    sizes = {"rows_per_shard": 4, "batch_size": 4, "internal_batch_size": 4, "threads": 1}
    storage = open_storage(dest)
    plan: Plan = make_plan(
        classifier,
        changes.pop("model", ModelSpec(source="fragile")),
        changes.pop("method", "fampe"),
        options,
        [str(folder)],
        **(sizes | changes),
    )
    write_plan(storage, plan, list_rows([str(folder)]))
    return storage


def digest_of(storage: Storage) -> str:
    """Compute the digest over all shards, and nothing else."""
    found = hashlib.sha256()
    for name in storage.names("maps"):
        found.update(name.encode() + b"\0" + storage.read(name))
    return found.hexdigest()
