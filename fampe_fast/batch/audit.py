"""Describe one stored map so that it can be checked later by itself: an audit record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..answers.result import Result, result_values
from ..files import MARK, json_text, read_text
from .plan import Plan, Row

KIND = "audit record"
_OF_THE_MODEL = "model_fingerprint"


def record_of(plan: Plan, row: Row, stored: Result, described: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a map and everything it was made from, in values for JSON.

    Args:
        plan: the run's plan.
        row: the image.
        stored: its stored result.
        described: metadata of its shard.
    """
    record: dict[str, Any] = {
        "plan": plan.key,
        "image_id": row.image_id,
        "uri": row.shown_uri,
        "container": row.shown_container,
        "model": plan.identity["model"],
        _OF_THE_MODEL: plan.identity["fingerprint"],
        "method": plan.method,
        "configuration": plan.everything,
        "seed": plan.seed,
        "precision": plan.precision,
        "backend": plan.backend,
        "device": plan.device,
        "threads": plan.threads,
        "batch_size": plan.batch_size,
        "internal_batch_size": described.get("chunk"),
        "processor": described.get("processor"),
        "versions": described.get("versions"),
        **result_values(stored),
    }
    return json.loads(json_text(record))  # type: ignore[no-any-return]


def read_record(path: Path) -> dict[str, Any]:
    """Read a record from a file.

    Raises:
        ValueError: the file is not a record.
    """
    try:
        found = json.loads(read_text(path, "record"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not an audit record: {error}") from error
    image_id = found.get("image_id") if isinstance(found, dict) else None
    if not isinstance(found, dict) or found.get(MARK) != KIND or isinstance(image_id, bool):
        raise ValueError(f"{path} is not an audit record, which is JSON that {MARK} calls {KIND!r}")
    if not isinstance(image_id, int):
        raise ValueError(f"{path} is not an audit record: it has no image_id")
    return found


def record_differences(record: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare the values that two records share, such as "seed: 0 in the record, 7 here".

    Raises:
        ValueError: the records are of different models.
    """
    theirs, ours = record.get(_OF_THE_MODEL), now[_OF_THE_MODEL]
    if theirs != ours:
        raise ValueError(f"the record is of another model: its fingerprint is {theirs}, but the plan has {ours}")
    return [
        f"{name}: {_short(record[name])} in the record, {_short(value)} here"
        for name, value in now.items()
        if name in record and record[name] != value
    ]


def _short(value: object) -> str:
    text = json_text(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
