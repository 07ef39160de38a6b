"""Define what is stored or sent of an image: a map and what belongs to it, or why there is none."""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .summaries import FloatArray, Summary

ErrorKind = Literal["permanent", "transient"]


class RowError(NamedTuple):
    """Why a row has no map."""

    reason: str
    """In words; a function of the image where the kind is permanent."""
    kind: ErrorKind
    """``permanent`` where another try would find the same; ``transient`` where another one may heal it."""


class RowResult(NamedTuple):
    """What was found of a row."""

    target: int
    """The class explained."""
    class_name: str
    probability: float
    """The model's of that class."""
    predicted: int
    """The model's own first choice."""
    cutoff: float | None
    """In cycles over the shorter side; None for methods without one."""
    scale: float
    """A power of two: the attribution is ``map * scale``."""
    map: NDArray[np.floating[Any]]
    """(C, H, W), in the dtype and shape that were asked for."""
    summary: Summary
    overlay: bytes | None = None
    """A PNG."""


Result = RowResult | RowError


def scaled_map(attribution: FloatArray, dtype: str) -> tuple[NDArray[np.floating[Any]], float]:
    """Bring a map into the dtype that it is stored in.

    In half precision it is divided by a power of two, which is exact, so that its largest magnitude lies in [1/2, 1):
    evidence near 1e-6 would else be lost, and a sum over the stored numbers does not overflow. Single precision is
    stored as it is.

    Args:
        attribution: float32; NaN and infinity stay what they are.
        dtype: "float16" or "float32".

    Returns:
        The stored map and the power of two.
    """
    if dtype == "float32":
        return attribution.astype(np.float32), 1.0
    finite = attribution[np.isfinite(attribution)]
    peak = float(np.abs(finite).max()) if finite.size else 0.0
    # 2^128 is no float32; up to 2 instead of 1 does no harm.
    scale = 2.0 ** min(math.frexp(peak)[1], 127) if peak else 1.0
    return (attribution.astype(np.float64) / scale).astype(np.float16), scale


def attribution_of(result: RowResult) -> FloatArray:
    """Take a map itself, (C, H, W) float32: what is stored times its power of two."""
    scaled: FloatArray = result.map.astype(np.float32) * np.float32(result.scale)
    return scaled


def result_values(result: Result) -> dict[str, Any]:
    """Describe what was found of an image; the map by the SHA-256 of its stored numbers."""
    if isinstance(result, RowError):
        return {"error": result.reason, "error_kind": result.kind}
    return {
        "target": result.target,
        "class": result.class_name,
        "probability": float(f"{result.probability:.6g}"),
        "predicted": result.predicted,
        "cutoff": None if result.cutoff is None else float(f"{result.cutoff:.6g}"),
        "map_scale": result.scale,
        "map_dtype": str(result.map.dtype),
        "map_shape": list(result.map.shape),
        "map_sha256": hashlib.sha256(map_bytes(result)).hexdigest(),
    }


def map_bytes(result: RowResult) -> bytes:
    """Give the stored numbers of a map, row by row, little-endian."""
    return result.map.astype(result.map.dtype.newbyteorder("<")).tobytes()
