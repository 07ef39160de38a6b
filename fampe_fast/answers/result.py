"""Define the stored or sent result of an image: a map with its values, or the reason for none."""

from __future__ import annotations

import hashlib
import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .summaries import FloatArray, Summary

ErrorKind = Literal["permanent", "transient"]


class RowError(NamedTuple):
    """The reason why a row has no map."""

    reason: str
    """Description of the error, which depends only on the image if the kind is permanent."""
    kind: ErrorKind
    """``permanent`` if every attempt fails in the same way; ``transient`` if another attempt may succeed."""


class RowResult(NamedTuple):
    """The result of a row."""

    target: int
    """The explained class."""
    class_name: str
    probability: float
    """The model's probability of that class."""
    predicted: int
    """The model's predicted class."""
    cutoff: float | None
    """Cut-off in cycles over the shorter side; None for methods without one."""
    scale: float
    """A power of two: the attribution is ``map * scale``."""
    map: NDArray[np.floating[Any]]
    """(C, H, W), in the requested dtype and shape."""
    summary: Summary
    overlay: bytes | None = None
    """A PNG."""


Result = RowResult | RowError


def scaled_map(attribution: FloatArray, dtype: str) -> tuple[NDArray[np.floating[Any]], float]:
    """Convert a map to the stored dtype.

    In half precision it is divided by a power of two, which is exact, so that its largest magnitude lies in [1/2, 1):
    otherwise evidence near 1e-6 would be lost, and sums over the stored numbers could overflow. Single precision is not
    scaled.

    Args:
        attribution: float32; NaN and infinity are kept.
        dtype: "float16" or "float32".

    Returns:
        The stored map and the power of two.
    """
    if dtype == "float32":
        return attribution.astype(np.float32), 1.0
    finite = attribution[np.isfinite(attribution)]
    peak = float(np.abs(finite).max()) if finite.size else 0.0
    # float32 does not hold 2^128; a limit of 2 instead of 1 does no harm.
    scale = 2.0 ** min(math.frexp(peak)[1], 127) if peak else 1.0
    return (attribution.astype(np.float64) / scale).astype(np.float16), scale


def attribution_of(result: RowResult) -> FloatArray:
    """Compute the attribution, (C, H, W) float32: the stored map times its power of two."""
    scaled: FloatArray = result.map.astype(np.float32) * np.float32(result.scale)
    return scaled


def result_values(result: Result) -> dict[str, Any]:
    """Describe the result of an image, with its map as the SHA-256 of its stored numbers."""
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
    """Return the stored numbers of a map as bytes, row by row, little-endian."""
    return result.map.astype(result.map.dtype.newbyteorder("<")).tobytes()
