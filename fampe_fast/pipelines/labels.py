"""Labels of image files, from JSON or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path


def read_labels(path: Path) -> dict[str, int]:
    """Class indices by file name.

    Args:
        path: JSON ``{"name.jpg": 7}`` or ``{"name.jpg": {"index": 7, ...}}``, or CSV with rows ``name.jpg,7`` and
            perhaps a head line.

    Raises:
        ValueError: not readable as either; the message names the entry.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the labels {path}: {error}") from error
    if path.suffix.lower() == ".csv":
        return _from_csv(text, path)
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the labels {path} are not JSON ({error}); expected JSON, or CSV in a file named *.csv"
        ) from error
    if not isinstance(entries, dict):
        raise ValueError(
            f"the labels {path} must be a JSON object from file name to class index, got a list or a value"
        )
    labels = {}
    for name, entry in entries.items():
        index = entry.get("index") if isinstance(entry, dict) else entry
        if isinstance(index, bool) or not isinstance(index, int):
            raise ValueError(
                f"the labels {path} give {name!r} as {entry!r}; expected a class index or {{'index': ...}}"
            )
        labels[name] = index
    return labels


def _from_csv(text: str, path: Path) -> dict[str, int]:
    labels = {}
    for number, row in enumerate(csv.reader(text.splitlines()), 1):
        if not row:
            continue
        try:
            labels[row[0].strip()] = int(row[1])
        except (IndexError, ValueError) as error:
            if number == 1:  # a head line
                continue
            raise ValueError(
                f"the labels {path}, line {number}: expected 'file name,class index', got {row!r}"
            ) from error
    return labels


def labels_of(paths: Sequence[Path], labels: dict[str, int], classes: int | None) -> list[int]:
    """The label of every file.

    Raises:
        ValueError: files without a label, or a label that is no class of the model.
    """
    missing = [path.name for path in paths if path.name not in labels]
    if missing:
        raise ValueError(f"{len(missing)} of {len(paths)} images have no label, {missing[0]!r} first")
    found = [labels[path.name] for path in paths]
    for path, label in zip(paths, found, strict=True):
        if label < 0 or (classes is not None and label >= classes):
            raise ValueError(f"the label {label} of {path.name!r} is out of range: the model has {classes} classes")
    return found
