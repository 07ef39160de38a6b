"""Write replies in the client's format: JSON, the overlay as PNG, or the map as an .npy file."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..answers.result import RowResult, attribution_of

JSON, PNG, NPY = "application/json", "image/png", "application/x-npy"
FORMS = (JSON, PNG, NPY)
RECORD_HEADER = "fampe-record"
"""The header with the record in JSON, for replies in other formats."""


def chosen_form(accept: str | None) -> str | None:
    """Choose the format of a reply by the header ``Accept``; None if no supported one is accepted.

    On a tie the first one counts, and JSON for any format.
    """
    if accept is None or not accept.strip():
        return JSON
    wanted: list[tuple[float, int, str]] = []
    refused = set()
    for place, part in enumerate(accept.split(",")):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    quality = float(value)
                except ValueError:
                    quality = 0.0
        kind = media.partition("/")[0]
        own = next((form for form in FORMS if media in (form, "*/*") or media == f"{form.partition('/')[0]}/*"), None)
        if own is None or not kind:
            continue
        if not quality > 0:  # NaN, too
            refused.add(own)
            continue
        wanted.append((-quality, place, own))
    return next((form for _, _, form in sorted(wanted) if form not in refused), None)


def as_json(key: str, found: Sequence[dict[str, Any]]) -> bytes:
    """Write ``{key: [...]}``."""
    return json.dumps({key: found}, allow_nan=False, separators=(",", ":")).encode()


def header_of(record: dict[str, Any]) -> str:
    """Write a record into a header: JSON in ASCII, in one line."""
    return json.dumps(record, allow_nan=False, separators=(",", ":"))


def npy_of(result: RowResult) -> bytes:
    """Write the attribution (C, H, W) as float32 in NumPy's format."""
    buffer = io.BytesIO()
    np.save(buffer, attribution_of(result).astype("<f4"), allow_pickle=False)
    return buffer.getvalue()
