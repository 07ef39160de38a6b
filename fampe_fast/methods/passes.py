"""How many passes of the model a method makes for a map."""

from __future__ import annotations

from typing import Any


def passes_of(method: Any) -> int:
    """Forward and backward passes of the model per image; 1 for a method that does not say."""
    while hasattr(method, "method"):  # filters stand around the method that makes the passes
        method = method.method
    config = getattr(method, "config", None)
    if config is not None:
        return int(config.steps * config.samples) * (1 if getattr(method, "explorer", None) is None else 2)
    return 1 if getattr(method, "name", "") == "saliency" else int(getattr(method, "passes", 1))
