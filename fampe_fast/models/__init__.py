"""Classifiers that take images in pixel space, [0, 1], and the ways to load one.

`Classifier` and `load_classifier` are imported on first use; neither timm nor torchvision is imported before a model
that needs it is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batch_norm import fold_batch_norm
    from .classifier import Classifier
    from .embedded import load_embedded_classifier
    from .loading import load_classifier

__all__ = ["Classifier", "fold_batch_norm", "load_classifier", "load_embedded_classifier"]

_HOMES = {
    "Classifier": "fampe_fast.models.classifier",
    "fold_batch_norm": "fampe_fast.models.batch_norm",
    "load_classifier": "fampe_fast.models.loading",
    "load_embedded_classifier": "fampe_fast.models.embedded",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
