"""Describe a reply so that it can be checked later with ``verify``: an audit record."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ..answers.result import RowResult, map_bytes, result_values
from ..files import MARK, json_text, read_text

KIND = "service record"
_DTYPES = {"<f2": np.float16, "<f4": np.float32}


class ImageName(NamedTuple):
    """The identity of an image."""

    sha256: str
    """SHA-256 of its decoded pixels: upright RGB of its own size, one byte per value, row by row."""
    image_id: int
    """That names it in the random stream, unless the client gives another: the hash's first 32 bits, and 0 for the one
    number that the stream has reserved."""


def name_of(image: Image.Image) -> ImageName:
    """Identify an image by its pixels.

    Args:
        image: an RGB image from ``read_image``.
    """
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.tobytes()).hexdigest()
    return ImageName(digest, int(digest[:8], 16) % (2**32 - 1))


def describe(
    result: RowResult, image: ImageName, image_id: int, asked: Mapping[str, Any], made: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe a map and everything it was made from, in values for JSON.

    Args:
        result: the map.
        image: identity of its image.
        image_id: id of the image in the random stream.
        asked: method, options, configuration, passes, seed, reproducible.
        made: model, its fingerprint, device, backend, processor, threads, batch, chunk, versions.
    """
    return {
        MARK: KIND,
        "image_id": image_id,
        "image_sha256": image.sha256,
        **asked,
        **made,
        **result_values(result),
    }


def tag_of(record: Mapping[str, Any], form: str) -> str:
    """Make the ETag of a reply, a weak one if other images in the batch may change the last bits.

    Args:
        record: record of the reply.
        form: media type of the reply.
    """
    names = ("image_id", "image_sha256", "model_fingerprint", "configuration", "target", "reproducible")
    digest = hashlib.sha256(json_text([form, *(record[name] for name in names)]).encode()).hexdigest()[:32]
    return f'"{digest}"' if record["reproducible"] else f'W/"{digest}"'


def encode_map(result: RowResult) -> dict[str, Any]:
    """Write a map's stored numbers in JSON: base64, row by row, little-endian."""
    return {
        "b64": base64.b64encode(map_bytes(result)).decode(),
        "dtype": "<f2" if result.map.dtype == np.float16 else "<f4",
        "shape": list(result.map.shape),
    }


def decode_map(encoded: Any) -> np.ndarray[Any, np.dtype[np.floating[Any]]]:
    """Read a map written by ``encode_map``.

    Raises:
        ValueError: it has other content.
    """
    try:
        dtype, shape = _DTYPES[encoded["dtype"]], tuple(int(side) for side in encoded["shape"])
        data = base64.b64decode(encoded["b64"], validate=True)
        return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape).astype(dtype)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the record's map cannot be read: {error}") from error


def read_record(path: Path) -> dict[str, Any]:
    """Read a record from a file that contains it, or a whole JSON reply with one explanation.

    Raises:
        ValueError: the file contains neither.
    """
    try:
        found = json.loads(read_text(path, "record"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a record: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("explanations"), list):
        if len(found["explanations"]) != 1:
            raise ValueError(f"{path} holds {len(found['explanations'])} explanations; save the one to be checked")
        found = found["explanations"][0]
    if not isinstance(found, dict) or found.get(MARK) != KIND:
        raise ValueError(f"{path} is not a record of a service, which is JSON that {MARK} calls {KIND!r}")
    for name, kind in _NEEDED.items():
        value = float(found[name]) if kind is float and type(found.get(name)) is int else found.get(name)
        if type(value) is not kind:
            raise ValueError(f"{path} is not a complete record of a service: {name} is missing or of another kind")
    return found


_NEEDED: dict[str, type] = {
    "image_id": int,
    "image_sha256": str,
    "method": str,
    "options": dict,
    "configuration": str,
    "reproducible": bool,
    "model_fingerprint": str,
    "device": str,
    "backend": str,
    "threads": int,
    "batch_size": int,
    "internal_batch_size": int,
    "versions": dict,
    "target": int,
    "class": str,
    "probability": float,
    "predicted": int,
    "map_scale": float,
    "map_dtype": str,
    "map_sha256": str,
}
