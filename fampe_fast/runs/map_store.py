"""Store maps on disk that a command needs again, for its contact sheet or a search."""

from __future__ import annotations

import contextlib
import hashlib
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import mark_of, npz_content, write_atomically
from .records import Item

KIND = "stored map"


class MapStore:
    """A folder of maps, one file per image and context; the file name is a hash of both."""

    def __init__(self, folder: Path) -> None:
        """Set the folder, which is made with the first map."""
        self.folder = folder

    def _path(self, context: str, item: Item) -> Path:
        name = f"{context} {item.digest} {item.image_id} {item.target}"
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.npz"

    def holds(self, context: str, item: Item) -> bool:
        """Tell whether there is a map of an image in a context of ``Records``."""
        mark = mark_of(self._path(context, item))
        return mark is not None and mark.kind == KIND

    def save(self, context: str, item: Item, attribution: Tensor) -> None:
        """Store a map (C, H, W).

        Raises:
            OSError: the map cannot be written.
        """
        write_atomically(self._path(context, item), npz_content(KIND, map=attribution.detach().cpu().numpy()))

    def load(self, context: str, item: Item) -> Tensor:
        """Load a map (C, H, W), on the CPU.

        Raises:
            OSError: the map does not exist or is damaged.
        """
        path = self._path(context, item)
        try:
            with np.load(path) as archive:
                return torch.from_numpy(archive["map"])
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise OSError(f"{path} is damaged ({error}): remove it, and run the same command again") from error

    def remove(self, context: str, items: list[Item]) -> None:
        """Remove maps that are no longer needed, and the folder with the last one."""
        for item in items:
            with contextlib.suppress(OSError):
                self._path(context, item).unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()
